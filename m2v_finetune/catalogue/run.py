"""Run of a catalogue: which tracks are missing in a table, their computation, and the shards."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from m2v_finetune.catalogue.analysis import Analysis, Row
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.remote_table import open_remote
from m2v_finetune.catalogue.shards import TableFolder, open_folder, shard_of
from m2v_finetune.catalogue.stores import is_url
from m2v_finetune.catalogue.tracks import track_rows
from m2v_finetune.data.values import printable
from m2v_finetune.errors import Stopped, UserError

SHARD_TRACKS = 256
"""Tracks of a shard of a new table, about."""
REPORT_SECONDS = 60.0
"""Time between lines of progress where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class CatalogueSummary:
    """Result of `run_catalogue`.

    Attributes:
        num_tracks: Tracks of the sources.
        num_computed: Tracks that were computed now.
        num_kept: Tracks that were in the table before.
        errors: Number of the tracks with an error, by code.
        num_others: Tracks in the table that the sources do not name.
    """

    num_tracks: int
    num_computed: int
    num_kept: int
    errors: Counter[str]
    num_others: int


@dataclass
class Plan:
    """Tracks to compute, in the order of their shards, and those that are there.

    Attributes:
        items: Tracks.
        units: First and last number, exclusive, of the tracks that one process reads.
        left: Number of tracks to compute of each shard.
        num_kept: Tracks that are in the table.
        num_others: Tracks of the table that the sources do not name.
        errors: Number of kept tracks with an error, by code.
    """

    items: list[Item] = field(default_factory=list)
    units: list[tuple[int, int]] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)
    num_kept: int = 0
    num_others: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Engine(Protocol):
    """Computation of the shards of a plan."""

    def __call__(
        self,
        analysis: Analysis,
        folder: TableFolder,
        plan: Plan,
        *,
        batch_size: int,
        num_workers: int,
        advance: Callable[[], None],
    ) -> Iterator[list[Row]]:
        """Write each shard, and yield its new rows, with ``id`` and ``error`` at least.

        Args:
            analysis: What is computed.
            folder: Folder of the table.
            plan: Tracks to compute.
            batch_size: Windows of a batch.
            num_workers: Number of processes that read audio, beside each that computes.
            advance: Function to call once for each track.
        """


def run_catalogue(
    analysis: Analysis,
    items: Sequence[Item],
    output: Path | str,
    *,
    format: str = "parquet",
    batch_size: int,
    num_workers: int,
    shard_tracks: int = SHARD_TRACKS,
    overwrite: bool = False,
    retry_errors: bool = False,
    show_progress: bool = True,
    engine: "Engine | None" = None,
) -> CatalogueSummary:
    """Compute the rows of all tracks that a table does not have yet.

    Args:
        analysis: What is computed.
        items: Tracks, each id once.
        output: Folder of the table, or its address in an object store.
        format: ``parquet``, ``jsonl`` or ``csv``.
        batch_size: Windows of a batch; a process reads as many files in a row.
        num_workers: Number of processes that read audio; with 0 this one does.
        shard_tracks: Tracks of a shard, about, if the table is new.
        overwrite: Whether to delete a table that is there.
        retry_errors: Whether to compute tracks again that have an error in the table.
        show_progress: Whether to show progress on standard error.
        engine: Function that computes the shards in place of this process, such as a cluster.

    Raises:
        UserError: The folder has another table, or cannot be written; a process that reads audio died; or a
            window does not fit in memory. The shards that are there are complete.
        Stopped: A signal arrived; the same.
    """
    with _open_table(
        output,
        analysis,
        format=format,
        num_shards=-(-len(items) // shard_tracks),
        overwrite=overwrite,
    ) as folder:
        plan = _plan(folder, items, unit_tracks=batch_size, retry_errors=retry_errors)
        errors = plan.errors
        num_done = 0
        try:
            with _progress(len(items), plan.num_kept, is_shown=show_progress) as advance:
                for rows in (engine or _finished_shards)(
                    analysis,
                    folder,
                    plan,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    advance=advance,
                ):
                    num_done += len({row["id"] for row in rows})
                    errors.update(_error_codes(rows))
        except Stopped as stopped:
            raise Stopped(
                stopped.signal_number,
                f"Stopped. {plan.num_kept + num_done:,} of {len(items):,} tracks are in {output}. The same "
                "command resumes.",
            ) from None
        except torch.OutOfMemoryError as error:
            raise UserError(
                "A single window does not fit in memory. Use a machine with more memory. The shards in "
                f"{output} are complete.",
                code="predict-out-of-memory",
            ) from error
    return CatalogueSummary(
        num_tracks=len(items),
        num_computed=num_done,
        num_kept=plan.num_kept,
        errors=errors,
        num_others=plan.num_others,
    )


def _open_table(
    output: Path | str, analysis: Analysis, *, format: str, num_shards: int, overwrite: bool
) -> AbstractContextManager[TableFolder]:
    if isinstance(output, str) and is_url(output):
        return open_remote(
            output, analysis, format=format, num_shards=num_shards, overwrite=overwrite
        )
    return open_folder(
        Path(output), analysis, format=format, num_shards=num_shards, overwrite=overwrite
    )


def _plan(
    folder: TableFolder, items: Sequence[Item], *, unit_tracks: int, retry_errors: bool
) -> Plan:
    """Compare the tracks of the sources with those of the table."""
    by_shard: dict[int, list[Item]] = {}
    for item in items:
        by_shard.setdefault(shard_of(item.id, folder.num_shards), []).append(item)
    plan = Plan()
    for shard in range(folder.num_shards):
        wanted = by_shard.get(shard, [])
        rows = folder.read_shard(shard, columns=("id", "error", "path"))
        there = {row["id"]: row["error"] for row in rows}
        _require_same_files({row["id"]: str(row["path"]) for row in rows}, wanted)
        kept = {name for name, error in there.items() if not (retry_errors and error)}
        missing = [item for item in wanted if item.id not in kept]
        if missing:
            plan.left[shard] = len(missing)
        first = len(plan.items)
        plan.items += missing
        plan.units += [
            (start, min(start + unit_tracks, len(plan.items)))
            for start in range(first, len(plan.items), unit_tracks)
        ]
        plan.num_kept += len(wanted) - len(missing)
        plan.num_others += len(there.keys() - {item.id for item in wanted})
        plan.errors.update(
            _code(there[item.id]) for item in wanted if item.id in kept and there[item.id]
        )
    return plan


def _require_same_files(there: Mapping[str, str], wanted: Sequence[Item]) -> None:
    """Check that tracks whose ids are in the table are not other files.

    A path that is gone was moved: then the id alone counts. Addresses in object stores are not compared.

    Raises:
        UserError: A track of the table has the id of another file.
    """
    for item in wanted:
        before = there.get(item.id)
        if before is None or before == printable(item.path):
            continue
        if is_url(before) or is_url(item.path):
            continue
        old, new = Path(before), Path(item.path)
        if old.exists() and new.exists() and not old.samefile(new):
            raise UserError(
                f"The table has the id {item.id} for {printable(before)}, and now it is that of "
                f"{printable(item.path)}. Name a folder that holds both, give ids in a column 'id' of a "
                "manifest, or name another --output.",
                code="catalogue-duplicate-id",
            )


def _finished_shards(
    analysis: Analysis,
    folder: TableFolder,
    plan: Plan,
    *,
    batch_size: int,
    num_workers: int,
    advance: Callable[[], None],
) -> Iterator[list[Row]]:
    """Write each shard when its last track is computed, and yield its new rows."""
    waiting: dict[int, list[Row]] = {}
    left = dict(plan.left)
    for track in track_rows(
        analysis, plan.items, batch_size=batch_size, num_workers=num_workers, units=plan.units
    ):
        shard = shard_of(plan.items[track.number].id, folder.num_shards)
        waiting.setdefault(shard, []).extend(track.rows)
        left[shard] -= 1
        advance()
        if left[shard] == 0:
            new = waiting.pop(shard)
            add_rows(folder, shard, new)
            yield new


def add_rows(folder: TableFolder, shard: int, new: Sequence[Row]) -> None:
    """Write a shard with the rows that it has and new ones, which replace those of the same tracks.

    Raises:
        UserError: The disk does not take it.
    """
    ids = {row["id"] for row in new}
    folder.write_shard(
        shard, [*(row for row in folder.read_shard(shard) if row["id"] not in ids), *new]
    )


def _error_codes(rows: Sequence[Row]) -> list[str]:
    return list({row["id"]: _code(row["error"]) for row in rows if row["error"]}.values())


def _code(error: str) -> str:
    """Return the code at the start of an error."""
    return error.split(":", 1)[0]


@contextmanager
def _progress(total: int, done: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """Show the number of tracks, their rate and the time left; give the function that counts one.

    A terminal has a bar; elsewhere, as in the log of a job, there is a line a minute.
    """
    console = Console(stderr=True)
    start = last = time.monotonic()
    num_new = 0

    def rate() -> float:
        return num_new / max(1e-9, time.monotonic() - start)

    bar = Progress(
        TextColumn("Tracks"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (is_shown and console.is_terminal),
    )
    with bar:
        row = bar.add_task("", total=total, completed=done, rate="")

        def advance() -> None:
            nonlocal num_new, last
            num_new += 1
            bar.update(row, advance=1, rate=f"{3600 * rate():,.0f} an hour")
            if bar.disable and is_shown and time.monotonic() - last >= REPORT_SECONDS:
                last = time.monotonic()
                hours = (total - done - num_new) / rate() / 3600
                console.print(
                    f"{done + num_new:,} of {total:,} tracks, {3600 * rate():,.0f} an hour, "
                    f"{hours:.1f} hours left"
                )

        yield advance
