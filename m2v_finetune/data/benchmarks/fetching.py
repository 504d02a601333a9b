"""Download of label files, with their checksums."""

import hashlib
import http.client
import ipaddress
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from m2v_finetune.data.benchmarks.benchmark import RemoteFile
from m2v_finetune.data.benchmarks.writing import write_file
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError

TIMEOUT_SECONDS = 30.0


def fetch_all(remote_files: Sequence[RemoteFile], root: Path) -> None:
    """Fetch several files in parallel; see `fetch`.

    Raises:
        UserError: Lists every file that could not be had.
    """
    with ThreadPoolExecutor() as executor:
        futures = [executor.submit(fetch, remote, root) for remote in remote_files]
        errors = [future.exception() for future in futures]
    problems = []
    for error in errors:
        if isinstance(error, UserError):
            problems.append(str(error))
        elif error is not None:
            raise error
    if problems:
        raise UserError(
            problem_list(
                "Label files are missing or wrong",
                problems,
                "Valid files are kept; run the same command again.",
            ),
            code="benchmark-download-failed",
        )


def fetch(remote: RemoteFile, root: Path) -> Path:
    """Return the file's path below a root, after fetching it unless it is there already.

    The content is complete and checked before the name exists, so an interrupted transfer leaves
    nothing behind.

    Raises:
        UserError: The download failed, or the content (fetched now, or put there by hand)
            has another sum.
    """
    target = root / remote.path
    if target.is_file():
        problem = _sum_problem(target.read_bytes(), remote)
        if problem:
            raise UserError(
                f"{target} is not the file that belongs there: {problem}. "
                "Delete it, and it is fetched again.",
                code="benchmark-checksum-mismatch",
            )
        return target
    by_hand = f"Fetch it by hand on any machine with a network and save it as {target}."
    try:
        content = _download(remote.url)
    except (OSError, http.client.HTTPException) as error:
        # A URLError without a status code wraps the reason, such as a refused connection.
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise UserError(
            f"{remote.url} could not be fetched ({reason}). {by_hand}",
            code="benchmark-download-failed",
        ) from error
    problem = _sum_problem(content, remote)
    if problem:
        raise UserError(
            f"{remote.url} gave another file than expected: {problem}. Nothing was saved. A proxy "
            f"or a login page may have been returned in its place. {by_hand}",
            code="benchmark-checksum-mismatch",
        )
    write_file(target, content)
    return target


def _download(url: str) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError(f"a label file must have an https address: {url}")
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 (https only, above)
        # Read without a size: only then does a connection that breaks off raise IncompleteRead.
        content: bytes = response.read()
        return content


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _sum_problem(content: bytes, remote: RemoteFile) -> str | None:
    for name, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        found = hashlib.new(name, content, usedforsecurity=False).hexdigest()
        if expected not in (None, found):
            return f"its {name} is {found}, expected is {expected}"
    return None
