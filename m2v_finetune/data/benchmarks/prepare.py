"""Prepare a public data set: fetch its labels, check audio and labels, write its manifests.

The labels are small and public, so they are fetched. The audio is large and often behind a form or
a licence, so the user downloads it, by the instructions that each data set brings.
"""

import hashlib
import http.client
import ipaddress
import json
import lzma
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.manifest import DATASET_INFO_NAME, DatasetInfo, problem_list
from m2v_finetune.errors import AudioError, UserError

TIMEOUT_SECONDS = 30.0
BAD_TRACKS_NAME = "bad-tracks.tsv"
MISSING = "missing"
MAX_UNPACKED_BYTES = 256 * 2**20
MAX_UNPACKED_ENTRIES = 100_000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """Label file at a public address.

    Attributes:
        url: ``https`` address that names one version for good, such as one with a commit.
        path: Path of the file, relative to the root of the data set.
        sha256: Sum of the content in hexadecimal; None where the sum is not known. Then the commit
            in the address pins the content, and the reader of the file checks its counts.
        md5: Sum of the content where only this one is published.
    """

    url: str
    path: str
    sha256: str | None
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Public data set as `prepare_benchmark` needs it.

    Attributes:
        info: Facts for the model card.
        remote_files: Label files to fetch; none if the labels are beside the audio.
        instructions: Steps to get the audio by hand; ``{root}`` is the root folder.
        recipes: Names of the recipes that train on it, such as ``tagging``; so are their folders of
            configs.
        manifests: Reads the label files below a root and returns the rows of each manifest by file
            name. A row has ``id``, ``path`` relative to the root, ``split`` and the label columns.
        check_labels: Looks into the label files of one row, and returns all that is wrong with them,
            each with its file and line; None where labels are not in files of their own.
    """

    info: DatasetInfo
    remote_files: tuple[RemoteFile, ...]
    instructions: str
    recipes: tuple[str, ...]
    manifests: Callable[[Path], dict[str, list[Row]]]
    check_labels: Callable[[Path, Row], list[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedManifest:
    """Manifest that was written.

    Attributes:
        path: File.
        num_tracks: Tracks in it.
        num_skipped: Tracks of the official list left out of it because their audio or a label is bad.
    """

    path: Path
    num_tracks: int
    num_skipped: int


def prepare_benchmark(
    benchmark: Benchmark,
    root: Path,
    *,
    on_bad_track: Literal["stop", "skip"] = "stop",
    with_audio: bool = True,
) -> list[PreparedManifest]:
    """Fetch the labels, check audio and labels and write the manifests of a data set into its root.

    Bad tracks are also listed in ``bad-tracks.tsv`` in the root: a line has path and problem.

    Args:
        benchmark: Data set.
        root: Its folder, made when it does not exist.
        on_bad_track: ``stop`` writes no manifest while a track is missing or damaged or has a wrong
            label; ``skip`` writes the manifests without these tracks, but none that would be empty.
        with_audio: Without, the manifests hold every track of the labels, and no audio is looked for: for
            vectors that were computed elsewhere.

    Returns:
        The manifests written, with their counts.

    Raises:
        UserError: Label files cannot be fetched or are not the right ones; there is no audio at all
            (the message holds the instructions); tracks are missing or damaged or have wrong labels
            and ``on_bad_track`` is ``stop``, or no track is good; the root cannot be written.
    """
    title = benchmark.info.title
    fetch_all(benchmark.remote_files, root)
    manifests = benchmark.manifests(root)
    names = list(dict.fromkeys(row["path"] for rows in manifests.values() for row in rows))
    if with_audio and not any((root / name).is_file() for name in names):
        raise UserError(
            f"The label files of {title} are in {root}, its audio is not: none of {len(names)} "
            f"files is there, such as {root / names[0]}.\n\n"
            + benchmark.instructions.format(root=root),
            code="benchmark-audio-missing",
        )
    problems = check_files([root / name for name in names]) if with_audio else {}
    bad = {name: [problems[root / name]] for name in names if root / name in problems}
    if benchmark.check_labels is not None:
        distinct = {row["path"]: row for rows in manifests.values() for row in rows}
        for name, found in _check_all_labels(benchmark.check_labels, root, distinct).items():
            bad.setdefault(name, []).extend(found)
    listed = [(name, problem) for name, found in bad.items() for problem in found]
    report = root / BAD_TRACKS_NAME
    if bad:
        lines = [f"{name}\t{' '.join(problem.split())}\n" for name, problem in listed]
        _write_atomically(report, "".join(lines).encode())
    else:
        report.unlink(missing_ok=True)
    good = {
        file_name: [row for row in rows if row["path"] not in bad]
        for file_name, rows in manifests.items()
    }
    if bad and (on_bad_track == "stop" or not any(good.values())):
        affected = ", ".join(
            f"{file_name}: {len(rows) - len(good[file_name])} of {len(rows)}"
            for file_name, rows in manifests.items()
        )
        raise UserError(
            problem_list(
                f"{title} has audio files that are missing or damaged, or labels that are wrong",
                [f"{name}: {problem}" for name, problem in listed],
                f"All of them are in {report}. Tracks that cannot be used: {affected}.\n"
                "Download or unpack these files again, correct the labels, or continue without them "
                "(--on-bad-track skip); results are then not comparable with published ones.\n\n"
                + benchmark.instructions.format(root=root),
            ),
            code="benchmark-bad-tracks",
        )
    prepared = []
    for file_name, rows in good.items():
        if rows:
            write_manifest(root / file_name, rows)
            skipped = len(manifests[file_name]) - len(rows)
            prepared.append(
                PreparedManifest(path=root / file_name, num_tracks=len(rows), num_skipped=skipped)
            )
    write_dataset_info(root, benchmark.info)
    return prepared


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
    _write_atomically(target, content)
    return target


def check_files(paths: Sequence[Path]) -> dict[Path, str]:
    """Open every audio file, on several threads and with a progress bar on stderr.

    Returns:
        The problem of each file that is missing or damaged, in the order given, without its path.
    """
    executor = ThreadPoolExecutor()
    problems = {}
    try:
        with _progress("Checking audio") as progress:
            found = progress.track(executor.map(_audio_problem, paths), total=len(paths))
            for path, problem in zip(paths, found, strict=True):
                if problem is not None:
                    problems[path] = problem
    finally:
        executor.shutdown(cancel_futures=True)  # an interrupt must not wait for 50,000 files
    return problems


def require_counts(
    rows: Iterable[Row],
    published: Mapping[str, int],
    *,
    source: Path,
    advice: str = "Delete it, and it is fetched again.",
) -> None:
    """Check that every split has as many tracks as published.

    Args:
        rows: All rows of a manifest.
        published: Tracks by split.
        source: Source of the rows, for the message.
        advice: Remedy if the counts differ.

    Raises:
        UserError: They differ.
    """
    found = Counter(row["split"] for row in rows)
    if found != Counter(published):
        listed = " / ".join(str(found[split]) for split in published)
        raise UserError(
            f"{source} lists {listed} tracks ({' / '.join(published)}), published are "
            f"{' / '.join(str(count) for count in published.values())}. {advice}",
            code="benchmark-count-mismatch",
        )


def unpack(
    archive: Path,
    folder: Path,
    *,
    inside: str = "",
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_entries: int = MAX_UNPACKED_ENTRIES,
) -> None:
    """Unpack a tar archive, or one folder of it, unless that was done before.

    The folder is complete or absent. Nothing is written outside it, whatever the archive names.

    Args:
        archive: A tar file, compressed or not.
        folder: Folder for the content; an existing folder is left as it is.
        inside: Folder of the archive to unpack; all of it if empty.
        max_bytes: Largest size to unpack.
        max_entries: Largest number of files, folders and links in the archive, unpacked or not.

    Raises:
        UserError: The archive is damaged, names files outside the folder, is too large, or has no
            such folder; or the folder cannot be written.
    """
    if folder.is_dir():
        return
    advice = f"Delete {archive}, get it again, and run the same command again."
    num_bytes = 0
    try:
        with (
            tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as partial,
            tarfile.open(archive) as tar,
        ):
            content = Path(partial) / "content"
            for number, member in enumerate(tar, start=1):
                if number > max_entries:
                    raise UserError(
                        f"{archive} holds more than {max_entries:,} files, so it is not the archive that "
                        f"belongs there. Nothing was unpacked. {advice}",
                        code="archive-too-large",
                    )
                tarfile.data_filter(member, str(content))
                if inside and not member.name.startswith(f"{inside}/"):
                    continue
                num_bytes += member.size
                if num_bytes > max_bytes:
                    raise UserError(
                        f"{archive} holds more than {max_bytes:,} bytes, so it is not the archive that "
                        f"belongs there. Nothing was unpacked. {advice}",
                        code="archive-too-large",
                    )
                tar.extract(member, content, filter="data")
            if not (content / inside).is_dir():
                raise UserError(
                    f"{archive} has no folder '{inside}'. {advice}", code="archive-missing-folder"
                )
            folder.parent.mkdir(parents=True, exist_ok=True)
            (content / inside).rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}). {advice}", code="archive-unreadable"
        ) from error


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSONL; the file is complete or absent.

    Raises:
        UserError: The file cannot be written.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    _write_atomically(path, "".join(lines).encode())


def write_dataset_info(folder: Path, info: DatasetInfo) -> None:
    """Write ``dataset.json``, which `read_dataset_info` reads, beside the manifests of a folder.

    Raises:
        UserError: The file cannot be written.
    """
    content = json.dumps(asdict(info), ensure_ascii=False, indent=2) + "\n"
    _write_atomically(folder / DATASET_INFO_NAME, content.encode())


def _check_all_labels(
    check: Callable[[Path, Row], list[str]], root: Path, rows: Mapping[str, Row]
) -> dict[str, list[str]]:
    """Return the label problems of the rows that have any, by the key of the row."""
    with _progress("Checking labels") as progress:
        found = {
            name: check(root, row) for name, row in progress.track(rows.items(), total=len(rows))
        }
    return {name: problems for name, problems in found.items() if problems}


def _progress(title: str) -> Progress:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


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


def _audio_problem(path: Path) -> str | None:
    if not path.is_file():
        return MISSING
    try:
        inspect_audio(path)
    except AudioError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Check the disk space and the rights of "
            "the folder, or choose another root.",
            code="benchmark-not-writable",
        ) from error
    finally:
        with suppress(OSError):  # gone after a success
            partial.unlink()
