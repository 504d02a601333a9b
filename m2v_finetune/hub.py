"""Fetching from the Hugging Face Hub and pushing to it, with messages that a person can act on."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Literal

from httpx2 import HTTPError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from m2v_finetune.errors import UserError

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
# The client repeats most requests itself, but not its first question, what a repository holds.
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0)
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)


def is_repo_id(source: str) -> bool:
    """Tell whether a string has the form of a Hub id, ``user/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def download_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
    repo_type: Literal["model", "dataset"] = "model",
) -> Path:
    """Return the local folder of a repository, fetched now or earlier; its name is the commit.

    Args:
        repo_id: ``user/name``.
        revision: Branch, tag or commit; the default branch if not given.
        patterns: Fetch only files that match one of these; all if not given.
        ignore_patterns: Do not fetch files that match one of these.
        repo_type: Models and data sets have names of their own.

    Raises:
        UserError: No such repository or revision, no access, no network, a failing server.
    """
    fetch = partial(
        snapshot_download,
        repo_id,
        revision=revision,
        allow_patterns=list(patterns) if patterns else None,
        ignore_patterns=list(ignore_patterns) if ignore_patterns else None,
        repo_type=repo_type,
    )
    with explained(f"fetch {repo_id}" + (f" at {revision}" if revision else "")):
        for pause_seconds in RETRY_PAUSES_SECONDS:
            try:
                return Path(fetch())
            except (HfHubHTTPError, LocalEntryNotFoundError) as error:
                if not _is_of_the_moment(error):
                    raise
                time.sleep(pause_seconds)
        return Path(fetch())


def download_most(
    repo_id: str,
    *,
    ignore_patterns: Sequence[str],
    may_miss: Callable[[str], bool],
    max_missing_fraction: float,
) -> tuple[Path, dict[str, str]]:
    """Return the local folder of a data set, and which of its files cannot be fetched.

    Args:
        repo_id: ``user/name``.
        ignore_patterns: Do not fetch files that match one of these.
        may_miss: Tells by its name whether a file may be left out.
        max_missing_fraction: The share of such files that may be.

    Returns:
        The folder, and why each file that is not in it cannot be fetched, by its name.

    Raises:
        UserError: As `download_snapshot`; or files cannot be fetched that may not be left out, or too many.
    """
    try:
        whole = download_snapshot(repo_id, ignore_patterns=ignore_patterns, repo_type="dataset")
        return whole, {}
    except UserError:
        if max_missing_fraction == 0:
            raise
    with explained(f"fetch {repo_id}"):
        info = HfApi().dataset_info(repo_id)
    names = [
        file.rfilename
        for file in info.siblings or ()
        if not any(fnmatch(file.rfilename, pattern) for pattern in ignore_patterns)
    ]
    most = max_missing_fraction * sum(map(may_miss, names))
    missing: dict[str, str] = {}
    folder: Path | None = None
    # Those that can be missed last, so that the others are there before anything is counted.
    for name in sorted(names, key=may_miss):
        try:
            with explained(f"fetch {name} of {repo_id}"):
                file = hf_hub_download(repo_id, name, repo_type="dataset", revision=info.sha)
            folder = Path(file).parents[len(Path(name).parts) - 1]
        except UserError as error:
            missing[name] = str(error)
            if not may_miss(name) or len(missing) > most or len(missing) == len(names):
                raise
    assert folder is not None
    return folder, missing


def _is_of_the_moment(error: Exception) -> bool:
    """Tell whether a server failed in a way that may pass."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    return isinstance(cause, HfHubHTTPError) and (
        cause.response.status_code == 429 or cause.response.status_code >= 500
    )


def check_login(repo_id: str) -> None:
    """Ask the Hub whether it takes the token.

    Raises:
        UserError: It does not, or it cannot be reached.
    """
    with explained(f"log in for {repo_id}"):
        HfApi().whoami()


def upload_folder(
    folder: Path, repo_id: str, *, private: bool, message: str, library: tuple[str, str]
) -> str:
    """Create a model repository if needed and upload a folder in one commit.

    Args:
        folder: Its files replace those of the same name; others in the repository stay.
        repo_id: ``user/name``.
        private: Whether a repository that is created is a private one.
        message: Of the commit.
        library: Name and version that the Hub is told.

    Returns:
        The address of the repository.

    Raises:
        UserError: No access, no network, or a failing server; the folder is untouched.
    """
    with explained(f"push to {repo_id}"):
        api = HfApi(library_name=library[0], library_version=library[1])
        api.whoami()  # creating an existing repository succeeds without a token; this does not
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(url)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the Hub client's errors into a `UserError` that says what could not be done and why.

    Args:
        doing: What is being done, such as ``fetch m-a-p/music2vec-v1``.
    """
    try:
        yield
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, *UNREACHABLE) as error:
        raise UserError(f"Could not {doing}: {_explanation(error)}") from error
    except RuntimeError as error:
        # The client wraps what fails while a large file is uploaded.
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise UserError(f"Could not {doing}: {_explanation(error.__cause__)}") from error


def _explanation(error: BaseException) -> str:
    if isinstance(error, GatedRepoError):
        return f"the repository is gated. Accept its terms on its page. {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "the Hub knows no such repository, or it is private and your token does not open it. Check "
            f"the name. {LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision. Check its branches and tags."
    if isinstance(error, LocalTokenNotFoundError):
        return f"you are not logged in. {LOG_IN}"
    if isinstance(error, HFValidationError):
        return str(error)
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if not isinstance(cause, HfHubHTTPError):
        advice = "Check the network (and HF_HUB_OFFLINE, HF_ENDPOINT)"
        if isinstance(error, LocalEntryNotFoundError):
            return (
                "the Hub cannot be reached, and there is no complete earlier copy here. "
                f"{advice}, or use a local folder."
            )
        return f"the Hub cannot be reached. {advice}."
    status = cause.response.status_code
    if status == 401:
        return f"the Hub refuses your token (401). {LOG_IN}"
    if status == 403:
        return f"your token may not do that (403). Check the user or organisation in the name. {LOG_IN}"
    return f"the Hub failed with status {status}. Try again later."
