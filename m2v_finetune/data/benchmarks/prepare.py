"""Prepare a public data set: fetch its labels, check audio and labels, write its manifests.

The labels are small and public, so they are fetched. The audio is large and often behind a form or
a licence, so the user downloads it, by the instructions that each data set brings.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.benchmarks.benchmark import MISSING, Benchmark, Row
from m2v_finetune.data.benchmarks.fetching import fetch_all
from m2v_finetune.data.benchmarks.writing import write_dataset_info, write_file, write_manifest
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import AudioError, UserError

BAD_TRACKS_NAME = "bad-tracks.tsv"


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
    try:
        manifests = benchmark.manifests(root)
    except FileNotFoundError as error:
        raise UserError(
            f"{title} is not in {root}: there is no {error.filename}.\n\n"
            + benchmark.instructions.format(root=root),
            code="benchmark-audio-missing",
        ) from error
    names = list(dict.fromkeys(row["path"] for rows in manifests.values() for row in rows))
    if not names:
        raise UserError(
            f"There is no track of {title} in {root}.\n\n"
            + benchmark.instructions.format(root=root),
            code="benchmark-audio-missing",
        )
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
        write_file(report, "".join(lines).encode())
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


def _audio_problem(path: Path) -> str | None:
    if not path.is_file():
        return MISSING
    try:
        inspect_audio(path)
    except AudioError as error:
        return str(error).removeprefix(f"{path}: ")
    return None
