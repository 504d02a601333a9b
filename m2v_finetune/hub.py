"""Fetching from the Hugging Face Hub and pushing to it, with messages that a person can act on."""

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from httpx2 import ConnectError, HTTPError, TransportError
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
from huggingface_hub.utils.tqdm import tqdm

from m2v_finetune.errors import UserError

logger = logging.getLogger(__name__)

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
# The client repeats most requests itself, but not its first one, for the content of a repository.
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0)
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
NUM_THREADS = 8

Fetched = TypeVar("Fetched")


@dataclass(frozen=True, kw_only=True)
class HubAccess:
    """Access to the Hub for a download.

    Attributes:
        token: Token; that of the login if None, none if False.
        local_files_only: Whether only earlier downloads are used.
    """

    token: str | bool | None = None
    local_files_only: bool = False


DEFAULT_ACCESS = HubAccess()


def is_repo_id(source: str) -> bool:
    """Return True if a string has the form of a Hub id, ``user/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def download_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
    repo_type: Literal["model", "dataset"] = "model",
    access: HubAccess = DEFAULT_ACCESS,
) -> Path:
    """Return the local folder of a repository, fetched now or earlier; its name is the commit.

    Args:
        repo_id: ``user/name``.
        revision: Branch, tag or commit; the default branch if not given.
        patterns: Fetch only files that match one of these; all if not given.
        ignore_patterns: Do not fetch files that match one of these.
        repo_type: Models and data sets have names of their own.
        access: Token, and whether to download.

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
        token=access.token,
        local_files_only=access.local_files_only,
    )
    with explained(f"fetch {repo_id}" + (f" at {revision}" if revision else "")):
        return Path(_with_retries(fetch))


def download_checkpoint(
    repo_id: str,
    *,
    revision: str | None = None,
    files: Sequence[str],
    weights: Sequence[Sequence[str]],
    access: HubAccess = DEFAULT_ACCESS,
) -> Path:
    """Return the local folder of a checkpoint, fetched now or earlier, with its weights in one format.

    Repositories often hold the same weights several times, for other libraries or as several files.

    Args:
        repo_id: ``user/name``.
        revision: Branch, tag or commit; the default branch if not given.
        files: Files to fetch beside weights.
        weights: Formats, the best first. Each is the name of a file that shows the format, and
            patterns of its files.
        access: Token, and whether to download.

    Raises:
        UserError: Errors of `download_snapshot`.
    """
    for one in weights:
        folder = download_snapshot(
            repo_id, revision=revision, patterns=[*files, *one], access=access
        )
        if (folder / one[0]).is_file():
            break
    return folder


def download_dataset(
    repo_id: str,
    *,
    ignore_patterns: Sequence[str],
    is_audio: Callable[[str], bool],
    max_failing_fraction: float,
) -> tuple[Path, list[str]]:
    """Return the local folder of a data set, fetched now or earlier, where some of its audio may fail.

    Args:
        repo_id: ``user/name``.
        ignore_patterns: Do not fetch files that match one of these.
        is_audio: Function that returns True for the path of a track; the other files are useful without it.
        max_failing_fraction: The share of the audio files that may fail, each after several tries.

    Returns:
        The folder, and the audio files that could not be fetched, each with a warning.

    Raises:
        UserError: No such repository, no access, no network, a failing server; or files fail: one that is no
            audio, or more of them than may. They are named.
    """
    with explained(f"fetch {repo_id}"):
        try:
            snapshot = snapshot_download(
                repo_id, repo_type="dataset", ignore_patterns=list(ignore_patterns)
            )
            return Path(snapshot), []
        except (HTTPError, LocalEntryNotFoundError) as error:
            try:
                info = _with_retries(partial(HfApi().dataset_info, repo_id))
            except (HTTPError, *UNREACHABLE):
                raise error from error.__cause__  # it is not a matter of single files
    paths = [file.rfilename for file in info.siblings or []]
    wanted = [path for path in paths if not any(fnmatch(path, one) for one in ignore_patterns)]
    max_failing = int(max_failing_fraction * sum(map(is_audio, wanted)))
    folder, failing = None, {}
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        futures = {pool.submit(_fetch_file, repo_id, path, info.sha): path for path in wanted}
        for future in as_completed(futures):
            path, answer = futures[future], future.result()
            if isinstance(answer, Path):
                folder = answer
                continue
            if not is_audio(path):
                raise UserError(
                    f"Could not fetch {path} of {repo_id}: {answer}", code="hub-fetch-failed"
                )
            failing[path] = answer
            logger.warning("Could not fetch %s of %s: %s", path, repo_id, answer)
            if len(failing) > max_failing:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    if folder is None or len(failing) > max_failing:
        raise UserError(
            _too_many_failing(repo_id, failing, max_failing=max_failing),
            code="hub-too-many-failing",
        )
    return folder, sorted(failing)


def _fetch_file(repo_id: str, path: str, commit: str | None) -> Path | str:
    """Return the folder of the data set that a file of it was fetched into, or why it cannot be."""
    fetch = partial(
        hf_hub_download,
        repo_id,
        path,
        repo_type="dataset",
        revision=commit,
        tqdm_class=_SilentBar,
    )
    try:
        file = Path(_with_retries(fetch))
    except (HTTPError, LocalEntryNotFoundError) as error:
        return _explanation(error)
    return file.parents[len(PurePosixPath(path).parts) - 1]


class _SilentBar(tqdm):
    """No bar for each of thousands of files."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


def _too_many_failing(repo_id: str, failing: dict[str, str], *, max_failing: int) -> str:
    [first, *_] = failing.items()
    if max_failing == 0 and len(failing) == 1:
        return f"Could not fetch {first[0]} of {repo_id}: {first[1]}"
    listed = "\n".join(f"  - {path}: {why}" for path, why in sorted(failing.items()))
    return (
        f"Could not fetch {len(failing)} audio files of {repo_id}, and data.max_bad_fraction allows "
        f"{max_failing}:\n{listed}\nTry again later, fetched files are kept; or raise data.max_bad_fraction."
    )


def _with_retries(fetch: Callable[[], Fetched]) -> Fetched:
    """Fetch, and where a server fails for a moment try again after a pause."""
    for pause_seconds in RETRY_PAUSES_SECONDS:
        try:
            return fetch()
        except (HTTPError, LocalEntryNotFoundError) as error:
            if not _is_of_the_moment(error):
                raise
            time.sleep(pause_seconds)
    return fetch()


def _is_of_the_moment(error: Exception) -> bool:
    """Return True if a server failed in a way that may pass."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, TransportError):
        return not isinstance(cause, ConnectError)  # most often there is no network
    return isinstance(cause, HfHubHTTPError) and (
        cause.response.status_code == 429 or cause.response.status_code >= 500
    )


def check_login(repo_id: str) -> None:
    """Check that the Hub accepts the token.

    Raises:
        UserError: It does not, or it cannot be reached.
    """
    with explained(f"log in for {repo_id}"):
        HfApi().whoami()


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    message: str,
    library: tuple[str, str],
    space_sdk: str | None = None,
) -> str:
    """Create a repository of a model or a Space if needed, and upload a folder in one commit.

    Args:
        folder: Its files replace those of the same name; others in the repository stay.
        repo_id: ``user/name``.
        private: True to create a private repository.
        message: Commit message.
        library: Name and version that are sent to the Hub.
        space_sdk: Library of a Space; None for a model.

    Returns:
        The address of the repository.

    Raises:
        UserError: No access, no network, or a failing server; the folder is untouched.
    """
    with explained(f"push to {repo_id}"):
        api = HfApi(library_name=library[0], library_version=library[1])
        api.whoami()  # creating an existing repository succeeds without a token; this does not
        kind = "model" if space_sdk is None else "space"
        url = api.create_repo(
            repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=space_sdk
        )
        api.upload_folder(
            repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message=message
        )
    return str(url)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the Hub client's errors into a `UserError` with the failed action and the reason.

    Args:
        doing: Action, such as ``fetch m-a-p/music2vec-v1``.
    """
    try:
        yield
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, *UNREACHABLE) as error:
        raise UserError(f"Could not {doing}: {_explanation(error)}", code=_code(error)) from error
    except RuntimeError as error:
        # The client wraps errors in the upload of a large file.
        if not isinstance(error.__cause__, HTTPError):
            raise
        cause = error.__cause__
        raise UserError(f"Could not {doing}: {_explanation(cause)}", code=_code(cause)) from error


def _code(error: BaseException) -> str:
    """Return the code of an error of the Hub client."""
    kinds: dict[type[BaseException], str] = {
        GatedRepoError: "hub-gated",
        RepositoryNotFoundError: "hub-not-found",
        RevisionNotFoundError: "hub-no-revision",
        LocalTokenNotFoundError: "hub-not-logged-in",
        HFValidationError: "hub-invalid-id",
    }
    for kind, code in kinds.items():
        if isinstance(error, kind):
            return code
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if not isinstance(cause, HfHubHTTPError):
        return "hub-unreachable"
    return "hub-no-access" if cause.response.status_code in (401, 403) else "hub-server-error"


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
