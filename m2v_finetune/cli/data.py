"""`m2v data`: prepare, check and convert data sets."""

import argparse
import os
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m2v_finetune.cli.options import OUTSIDE_HELP, Commands, count, warn
from m2v_finetune.errors import Stopped, UserError

if TYPE_CHECKING:
    from m2v_finetune.data.manifest import Track

MAX_LABELS = 10
"""Labels of a column that `m2v data check` names."""


def add_commands(commands: Commands) -> None:
    """Add `data` to the parser's subcommands."""
    data = commands.add_parser("data", help="prepare or check data")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    prepare = data_commands.add_parser(
        "prepare",
        help="download the labels of a benchmark, check its audio, write its manifest",
        description="You download the audio yourself; the command names its source and its folder.",
    )
    prepare.add_argument(
        "name", help="name of the data set, such as gtzan; any other word lists all"
    )
    prepare.add_argument("--root", type=Path, required=True, help="folder of the data set")
    prepare.add_argument(
        "--on-bad-track",
        choices=["stop", "skip"],
        default="stop",
        help="policy for files that cannot be read (default: %(default)s)",
    )
    prepare.add_argument(
        "--without-audio",
        action="store_true",
        help="write the manifest from the labels alone, for precomputed vectors "
        "(--data.features of a recipe)",
    )
    prepare.set_defaults(command=_prepare)
    check = data_commands.add_parser("check", help="check every audio file of a data source")
    check.add_argument("source", help="manifest, folder or Hub id, as --data.source of a recipe")
    check.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    check.set_defaults(command=_check)
    convert = data_commands.add_parser(
        "convert",
        help="resample a data set once, so that training reads faster",
        description="Writes a mono copy of every file at the rate of a backbone, with checksums, to "
        "~/.cache/m2v-finetune/audio (or below the folder that the environment variable M2V_CACHE names). "
        "Recipes find the copies, and read the original of a file that has changed since. Your "
        "files are not changed. You can stop it at any time: the same command resumes. To remove the copies, "
        "delete the folder.",
        epilog="Useful for MP3, Ogg and M4A, and for files at another sample rate than the backbone's. "
        "Separation reads stereo at its own rate, and uses no copies.",
    )
    convert.add_argument("source", help="manifest, folder or Hub id, as --data.source of a recipe")
    convert.add_argument(
        "--backbone",
        default="music2vec-v1",
        help="backbone that sets the sample rate of the copies, as --backbone.source of a recipe: a "
        "name from `m2v backbones`, a folder or a Hub id (default: %(default)s)",
    )
    convert.add_argument(
        "--format",
        choices=["flac", "wav"],
        default="flac",
        help="file format, 16 bits; flac takes about half the space, wav is faster to read "
        "(default: %(default)s)",
    )
    convert.add_argument(
        "--processes",
        type=count,
        default=os.cpu_count() or 1,
        help="number of processes (default: one for each core, %(default)s)",
    )
    convert.add_argument(
        "--on-bad-track",
        choices=["stop", "skip"],
        default="stop",
        help="policy for files that cannot be read: list them all and stop, or convert the others "
        "(default: %(default)s)",
    )
    convert.add_argument(
        "--verify",
        action="store_true",
        help="compare checksums of files and copies, not only sizes and dates, and rewrite "
        "copies that differ",
    )
    convert.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)
    convert.set_defaults(command=_convert)


def _prepare(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.benchmarks import BENCHMARKS, prepare_benchmark

    if arguments.name not in BENCHMARKS:
        raise UserError(
            f"There is no data set '{arguments.name}' to prepare. There are: {', '.join(BENCHMARKS)}.",
            code="benchmark-unknown",
        )
    benchmark = BENCHMARKS[arguments.name]
    for made in prepare_benchmark(
        benchmark,
        arguments.root,
        on_bad_track=arguments.on_bad_track,
        with_audio=not arguments.without_audio,
    ):
        skipped = f", {made.num_skipped} skipped" if made.num_skipped else ""
        print(f"{made.path}: {made.num_tracks} tracks{skipped}")
    print(f"Licence: {benchmark.info.licence}")
    recipes = " or ".join(f"recipes/{task}.py, configs/{task}/" for task in benchmark.recipes)
    print(f"Train on it: {recipes}, with --data.source as above.")


def _check(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_splits, check_tracks
    from m2v_finetune.data.manifest import SPLITS
    from m2v_finetune.data.sources import load_tracks

    tracks, dataset = load_tracks(
        arguments.source, label_column="tags", allow_outside=arguments.allow_outside
    )
    found = {name: [track for track in tracks if track.split == name] for name in SPLITS}
    splits = {name: members for name, members in found.items() if members}
    if splits:
        usable, _ = check_splits(splits, on_bad_track="stop", skip_option=None)
        checked = [one for members in usable.values() for one in members]
    else:
        checked, _ = check_tracks(tracks, on_bad_track="stop", skip_option=None)
    hours = sum(item.audio.duration_seconds for item in checked) / 3600
    print(f"{dataset.name}: all {len(checked)} tracks can be read ({hours:.2f} h).")
    _print_labels(tracks)


def _print_labels(tracks: "Sequence[Track]") -> None:
    """Print the labels in the columns of the tasks, and warn of one that every track has."""
    from m2v_finetune.data.folders import count_of
    from m2v_finetune.data.manifest import as_labels
    from m2v_finetune.tasks import TASK_SETTINGS, TASKS

    for name, task in TASKS.items():
        settings = TASK_SETTINGS[name]()
        has_labels = is_dataclass(task) and any(field.name == "labels" for field in fields(task))
        if not has_labels or not any(field.name == "label_column" for field in fields(settings)):
            continue  # it has annotations, or numbers
        column = settings.label_column
        counts: Counter[str] = Counter()
        for track in tracks:
            with suppress(ValueError):  # listed when a task is trained
                counts.update(set(as_labels(track, column)))
        if not counts:
            continue
        shown = [f"{label} ({count})" for label, count in counts.most_common(MAX_LABELS)]
        more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
        print(f"Column {column}: {count_of(len(counts), 'label')}: {', '.join(shown)}{more}.")
        if len(counts) == 1 and counts.total() == len(tracks):
            warn(
                f"Every track has the label '{next(iter(counts))}': nothing can be learned from '{column}'."
            )


def _convert(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks, stop_or_skip
    from m2v_finetune.data.resampling import resample_tracks
    from m2v_finetune.data.sources import load_tracks

    def stop(number: int, frame: object) -> None:
        raise Stopped(
            number, "Stopped. The copies that were written are complete; the same command resumes."
        )

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    sample_rate = _rate_of(arguments.backbone)
    tracks, dataset = load_tracks(
        arguments.source,
        label_column=None,
        allow_outside=arguments.allow_outside,
        max_failing_fraction=float(arguments.on_bad_track == "skip"),
    )
    checked, _ = check_tracks(
        tracks, on_bad_track=arguments.on_bad_track, skip_option="--on-bad-track skip"
    )
    done = resample_tracks(
        checked,
        sample_rate=sample_rate,
        file_format=arguments.format,
        num_processes=arguments.processes,
        verify=arguments.verify,
    )
    num_resampled = done.num_written + done.num_kept
    hours = sum(one.audio.duration_seconds for one in checked) / 3600
    print(
        f"{dataset.name}: {num_resampled} of {len(tracks)} tracks ({hours:.2f} h) have a copy, mono at "
        f"{sample_rate} Hz in 16-bit {arguments.format.upper()}: {done.num_written} written in "
        f"{done.seconds:.1f} s, {done.num_kept} there already{', verified' if arguments.verify else ''}."
    )
    print(
        f"Files: {done.original_bytes / 1e6:,.1f} MB; copies: {done.resampled_bytes / 1e6:,.1f} MB in "
        f"{done.folder}"
    )
    stop_or_skip(
        done.problems,
        num_tracks=len(tracks),
        is_any_left=num_resampled > 0,
        on_bad_track=arguments.on_bad_track,
        skip_option="--on-bad-track skip",
    )
    print("Recipes with a backbone of this rate use the copies, and report it at the start.")


def _rate_of(backbone: str) -> int:
    """Return the sample rate of a backbone, by its name if that is known."""
    from m2v_finetune.backbones import build_architecture
    from m2v_finetune.backbones.checkpoints import published_checkpoint

    published = published_checkpoint(backbone)
    return published.sample_rate if published else build_architecture(backbone).sample_rate
