"""The command `m2v`: what one does beside training.

Heavy imports stand inside the subcommands, so that `--help` and errors come at once.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from m2v_finetune import __version__
from m2v_finetune.errors import AudioError, UserError, run_command

if TYPE_CHECKING:
    from m2v_finetune.tasks.tagging import TagPrediction

DESCRIPTION = """\
Beside the recipes (accelerate launch recipes/tagging.py --help), which train:

  m2v backbones                              what loads by a short name
  m2v data prepare magnatagatune --root DIR  make a benchmark ready to train on
  m2v data check songs.csv                   look at every file of your own data
  m2v predict MODEL song.mp3                 what a model says of music files
  m2v evaluate MODEL songs.csv               the metrics of a model on labelled tracks
  m2v push runs/tagging-.../model me/tagger  put a trained model on the Hub
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand and end the process with its exit code (`run_command`)."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    run_command(lambda: arguments.command(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="m2v", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"m2v-finetune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    backbones = commands.add_parser("backbones", help="list what loads by a short name")
    backbones.set_defaults(command=_backbones)

    data = commands.add_parser("data", help="prepare or check data")
    data_commands = data.add_subparsers(required=True, metavar="COMMAND")
    prepare = data_commands.add_parser(
        "prepare",
        help="fetch the labels of a benchmark, check its audio, write its manifest",
        description="Audio has to be fetched by hand; the command says from where, and where to put it.",
    )
    prepare.add_argument("name", help="magnatagatune or mtg-jamendo")
    prepare.add_argument("--root", type=Path, required=True, help="folder of the data set")
    prepare.add_argument(
        "--on-bad-track", choices=["stop", "skip"], default="stop", help="(default: %(default)s)"
    )
    prepare.set_defaults(command=_prepare)
    check = data_commands.add_parser("check", help="look at every audio file of a data source")
    check.add_argument("source", help="manifest, folder or Hub id, as --data.source of a recipe")
    check.set_defaults(command=_check)

    predict = commands.add_parser(
        "predict",
        help="say what a model hears in music files",
        description="Prints the tags of each track with their probabilities, best first.",
    )
    predict.add_argument("model", help="a folder, such as model/ of a run, or a Hub id")
    predict.add_argument("files", nargs="+", type=Path, help="music files of any length")
    predict.add_argument(
        "--timeline", action="store_true", help="also the tags of each window of the track"
    )
    predict.add_argument(
        "--format",
        choices=["text", "json", "csv"],
        default="text",
        help="text for people; json: a line a file; csv: a line a track, or a window (default: %(default)s)",
    )
    predict.add_argument(
        "--top", type=_count, default=10, help="tags to show in text (default: %(default)s)"
    )
    predict.add_argument("--output", type=Path, help="write to this new file, not to the terminal")
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser("evaluate", help="measure a model on labelled tracks")
    evaluate.add_argument("model", help="a folder, such as model/ of a run, or a Hub id")
    evaluate.add_argument("source", help="manifest, folder or Hub id with the labels")
    evaluate.add_argument(
        "--split",
        default="test",
        help="train, validation or test; ignored if the data have no split (default: %(default)s)",
    )
    evaluate.set_defaults(command=_evaluate)

    push = commands.add_parser("push", help="put a trained model on the Hugging Face Hub")
    push.add_argument("folder", type=Path, help="model/ of a run")
    push.add_argument("repo_id", help="such as me/my-tagger")
    push.add_argument("--private", action="store_true", help="if the repository is created")
    push.set_defaults(command=_push)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def _backbones(arguments: argparse.Namespace) -> None:
    from m2v_finetune.backbones.checkpoints import CHECKPOINTS

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("layers", justify="right")
    table.add_column("width", justify="right")
    table.add_column("Hz", justify="right")
    table.add_column("frames/s", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("pre-training")
    for name, known in CHECKPOINTS.items():
        numbers = (known.num_layers, known.hidden_size, known.sample_rate, known.frame_rate)
        table.add_row(name, *map(str, numbers), known.licence, known.pretraining)
    console = Console()
    console.print(table)
    console.print(
        "All but random-small, which ships, are on the Hub under m-a-p/. Any other HuBERT, wav2vec 2.0 or "
        "data2vec audio checkpoint loads by its Hub id or folder."
    )


def _prepare(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.benchmarks import BENCHMARKS, prepare_benchmark

    if arguments.name not in BENCHMARKS:
        raise UserError(
            f"There is no data set '{arguments.name}' to prepare. There are: {', '.join(BENCHMARKS)}."
        )
    benchmark = BENCHMARKS[arguments.name]
    for made in prepare_benchmark(benchmark, arguments.root, on_bad_track=arguments.on_bad_track):
        skipped = f", {made.num_skipped} skipped" if made.num_skipped else ""
        print(f"{made.path}: {made.num_tracks} tracks{skipped}")
    print(f"Licence: {benchmark.info.licence}")
    print("Train on it with a config of configs/tagging/ and --data.source as above.")


def _check(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks
    from m2v_finetune.data.sources import load_tracks

    tracks, dataset = load_tracks(arguments.source, label_column="tags")
    checked, _ = check_tracks(tracks, on_bad_track="stop")
    hours = sum(item.audio.duration_seconds for item in checked) / 3600
    print(f"{dataset.name}: all {len(checked)} tracks can be read ({hours:.2f} h).")


def _predict(arguments: argparse.Namespace) -> None:
    from m2v_finetune.audio.decode import inspect_audio
    from m2v_finetune.data.manifest import problem_list
    from m2v_finetune.model import TaskModel

    if arguments.output is not None:
        if arguments.output.exists():
            raise UserError(f"{arguments.output} exists, and is not overwritten. Name a new file.")
        if not arguments.output.parent.is_dir():
            raise UserError(
                f"There is no folder {arguments.output.parent} for --output. Make it first."
            )
    problems = []  # every unreadable file is named before the model is loaded
    for path in arguments.files:
        try:
            inspect_audio(path)
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            problem_list("Files that cannot be read", problems, "Repair them, or leave them out.")
        )
    import torch

    model = TaskModel.from_pretrained(arguments.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    render = {"text": _as_text, "json": _as_json, "csv": _as_csv}[arguments.format]
    parts: list[str] = []
    for path in arguments.files:
        parts.append(render(path, model.predict(path), arguments, not parts))
        if arguments.output is None:
            print(parts[-1], end="", flush=True)
    if arguments.output is not None:
        arguments.output.write_text("".join(parts), encoding="utf-8")


def _as_text(
    path: Path, prediction: "TagPrediction", arguments: argparse.Namespace, is_first: bool
) -> str:
    lines = [str(path)]
    lines += [f"  {score:.3f}  {tag}" for tag, score in prediction.top(arguments.top)]
    for window in prediction.timeline if arguments.timeline else []:
        best = sorted(window.tags.items(), key=lambda item: -item[1])[: arguments.top]
        tags = ", ".join(f"{tag} {score:.3f}" for tag, score in best)
        lines.append(f"  {window.start_seconds:8.2f} - {window.end_seconds:8.2f} s  {tags}")
    return "\n".join(lines) + "\n"


def _as_json(
    path: Path, prediction: "TagPrediction", arguments: argparse.Namespace, is_first: bool
) -> str:
    content = {"path": str(path), **asdict(prediction)}
    if not arguments.timeline:
        del content["timeline"]
    return json.dumps(content, ensure_ascii=False) + "\n"


def _as_csv(
    path: Path, prediction: "TagPrediction", arguments: argparse.Namespace, is_first: bool
) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    tags = list(prediction.tags)
    if arguments.timeline:
        header = ["path", "start_seconds", "end_seconds", *tags]
        rows = [
            [path, f"{w.start_seconds:.3f}", f"{w.end_seconds:.3f}", *_digits(w.tags.values())]
            for w in prediction.timeline
        ]
    else:
        header = ["path", *tags]
        rows = [[path, *_digits(prediction.tags.values())]]
    writer.writerows([header, *rows] if is_first else rows)
    return text.getvalue()


def _digits(scores: Iterable[float]) -> list[str]:
    return [f"{score:.7g}" for score in scores]


def _evaluate(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.checking import check_tracks
    from m2v_finetune.data.manifest import problem_list
    from m2v_finetune.data.sources import load_tracks
    from m2v_finetune.model import TaskModel
    from m2v_finetune.training.results import measure

    model = TaskModel.from_pretrained(arguments.model)
    tracks, dataset = load_tracks(arguments.source, label_column=model.task.label_column)
    chosen = [track for track in tracks if track.split in (None, arguments.split)]
    if not chosen:
        raise UserError(f"{dataset.name} has no track in the split '{arguments.split}'.")
    column = model.task.label_column
    if not any(column in track.columns for track in chosen):
        raise UserError(
            f"No track of {dataset.name} has a column '{column}', where this model's labels are looked for. "
            "Rename the one that holds them."
        )
    unknown = model.task.unknown_labels(chosen)
    if unknown:
        raise UserError(
            problem_list("Labels that the model does not know", unknown, "Correct them.")
        )
    checked, _ = check_tracks(chosen, on_bad_track="stop")
    print(json.dumps(measure(model, checked), indent=2, ensure_ascii=False))


def _push(arguments: argparse.Namespace) -> None:
    from m2v_finetune.model import TaskModel, upload_model

    if not arguments.folder.is_dir():
        raise UserError(f"There is no folder {arguments.folder}. Name model/ of a run.")
    TaskModel.from_pretrained(arguments.folder)  # only a whole model is pushed
    print(
        f"Pushed to {upload_model(arguments.folder, arguments.repo_id, private=arguments.private)}"
    )
