"""`m2v predict`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from m2v_finetune.cli.options import MODEL_HELP, Commands, count
from m2v_finetune.errors import AudioError, UserError

if TYPE_CHECKING:
    from m2v_finetune.model import TaskModel


def add_commands(commands: Commands) -> None:
    """Add `predict` to the parser's subcommands."""
    predict = commands.add_parser(
        "predict",
        help="say what a model hears in music files",
        description="Prints what the model says of each track, or writes it in the formats of its task: "
        ".beats, .lab, MIDI, WAV.",
    )
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument("files", nargs="+", type=Path, help="music files of any length")
    predict.add_argument(
        "--timeline", action="store_true", help="also what is said of each window of the track"
    )
    predict.add_argument(
        "--format",
        help="text (the default), json or csv are printed; a model may have others, such as beats, lab, midi "
        "or wav, which are written to files",
    )
    predict.add_argument(
        "--top", type=count, default=10, help="labels to show in text (default: %(default)s)"
    )
    predict.add_argument(
        "--output",
        type=Path,
        help="a new file for what would be printed; for formats with files of their own, their folder",
    )
    predict.set_defaults(command=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    from m2v_finetune.audio.decode import inspect_audio
    from m2v_finetune.data.manifest import problem_list
    from m2v_finetune.model import TaskModel

    output: Path | None = arguments.output
    if output is not None and not output.parent.is_dir():
        raise UserError(f"There is no folder {output.parent} for --output. Make it first.")
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
    formats = model.task.formats
    kind = arguments.format or next(iter(formats))
    if kind not in formats:
        raise UserError(
            f"There is no format '{kind}' for {model.task.name}. There are: {', '.join(formats)}."
        )
    suffix = formats[kind]
    if suffix is None:
        _print_predictions(model, kind, arguments)
    else:
        _write_predictions(model, kind, suffix, arguments)


def _print_predictions(model: "TaskModel", kind: str, arguments: argparse.Namespace) -> None:
    """Print what is said of each file, or write it all to one new file."""
    output: Path | None = arguments.output
    if output is not None and output.exists():
        raise UserError(f"{output} exists, and is not overwritten. Name a new file.")
    parts: list[str] = []
    for path in arguments.files:
        part = model.predict(path).render(
            kind,
            path=path,
            top=arguments.top,
            timeline=arguments.timeline,
            is_first=not parts,
        )
        parts.append(part)
        if output is None:
            print(part, end="", flush=True)
    if output is not None:
        output.write_text("".join(parts), encoding="utf-8")


def _write_predictions(
    model: "TaskModel", kind: str, suffix: str, arguments: argparse.Namespace
) -> None:
    """Write a file, or folder, for each music file, into the folder ``--output``."""
    folder: Path | None = arguments.output
    if folder is None:
        raise UserError(f"The format '{kind}' is written to files. Name their folder by --output.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file. The format '{kind}' needs a folder.")
    places = [folder / f"{path.stem}{suffix}" for path in arguments.files]
    taken = [str(place) for place in places if place.exists() or places.count(place) > 1]
    if taken:
        raise UserError(
            f"These would be written, but exist or would be written twice: {', '.join(taken)}. Nothing is "
            "overwritten; choose another folder by --output."
        )
    folder.mkdir(exist_ok=True)
    for path, place in zip(arguments.files, places, strict=True):
        model.predict(path).write(kind, place)
        print(place, flush=True)
