"""Repositories of models and data sets, fetched from the Hub."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from httpx2 import ConnectError, HTTPError, TransportError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from m2v_finetune.errors import UserError
from m2v_finetune.hub.explained import UNREACHABLE, explained, explanation
from m2v_finetune.path_hints import did_you_mean

logger = logging.getLogger(__name__)

# The client repeats most requests itself, but not its first one, for the content of a repository.
RETRY_PAUSES_SECONDS = (1.0, 2.0, 4.0)
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
    try:
        with explained(f"fetch {repo_id}" + (f" at {revision}" if revision else "")):
            return Path(_with_retries(fetch))
    except UserError as error:  # a folder with a mistake in its name looks like an id
        hint = did_you_mean(Path(repo_id).absolute())
        raise UserError(f"{error}{hint}", code=error.code) from error


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
        return explanation(error)
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
