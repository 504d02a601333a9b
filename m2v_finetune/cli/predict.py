"""`m2v predict`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from m2v_finetune.cli.catalogue import (
    SOURCE_HELP,
    TABLE_FORMATS,
    TABLE_OPTIONS,
    add_table_options,
    read_sources,
)
from m2v_finetune.cli.loading import load_model, warn_of_constant_outputs
from m2v_finetune.cli.options import (
    MODEL_HELP,
    Commands,
    count,
    print_utf8,
    warn,
    without_collection,
)
from m2v_finetune.cli.predictions import write_predictions
from m2v_finetune.errors import AudioError, UserError

if TYPE_CHECKING:
    from m2v_finetune.model import TaskModel

FORMAT_OF_SUFFIX = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json"}
DATA_FORMATS = ("csv", "json")


def add_commands(commands: Commands) -> None:
    """Add `predict` to the parser's subcommands."""
    predict = commands.add_parser(
        "predict",
        help="run a model on audio files",
        usage="m2v predict MODEL [MODEL ...] SOURCE [SOURCE ...] [options]",
        description="Prints the prediction for each track, or writes it in the formats of the task: "
        ".beats, .lab, MIDI, WAV. Each result is written as soon as it is computed. If --output is a folder, "
        "it writes a table of any number of tracks there. You can stop the command at any time: the same "
        "command resumes.",
    )
    predict.add_argument("model", metavar="MODEL", help=f"{MODEL_HELP}; several for a table")
    predict.add_argument("files", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    predict.add_argument(
        "--timeline",
        action="store_true",
        help="also output the prediction for each window of the track",
    )
    predict.add_argument(
        "--format",
        help="text (the default, unless the name of --output ends in .csv, .json or .jsonl), json or csv are "
        "printed; some tasks have other formats, such as beats, lab, midi or wav, which are written to "
        "files; for a table parquet (the default), jsonl or csv",
    )
    predict.add_argument(
        "--top",
        type=count,
        default=10,
        help="number of labels to show in text, without --decide (default: %(default)s)",
    )
    predict.add_argument(
        "--decide",
        action="store_true",
        help="output the labels of each track in place of scores: tags above their threshold, or the class "
        "of highest probability",
    )
    predict.add_argument(
        "--output",
        help="new file for the printed output; for formats that are written to files, their folder; or the "
        "folder of a table: a path that ends in / or has no suffix, unless --format is of another kind",
    )
    predict.add_argument(
        "--on-bad-file",
        choices=["stop", "skip"],
        help="policy for files that cannot be read: stop at the first, or continue without them and list "
        "them at the end (default: stop); a table always has a row with the error",
    )
    predict.add_argument(
        "--runtime",
        choices=["torch", "onnx"],
        default="torch",
        help="library that runs the model; onnx takes a file of `m2v export onnx` in place of the folder, "
        "and needs the extra onnx (default: %(default)s)",
    )
    predict.add_argument(
        "--precision",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="precision of the network; auto is bfloat16 on a CPU on which it is fast (AMX, Zen 4 and 5), "
        "and float32 elsewhere (default: %(default)s)",
    )
    add_table_options(predict)
    predict.set_defaults(command=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    models, sources = split_models(arguments)
    if is_table(arguments):
        write_predictions(arguments, models, sources)
        return
    _refuse_for_text(arguments, models)
    output = None if arguments.output is None else Path(arguments.output)
    on_bad_file: Literal["stop", "skip"] = arguments.on_bad_file or "stop"
    files = _expand(arguments, sources)
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {output.parent} for --output. Create it first.",
            code="output-no-parent",
        )
    if on_bad_file == "stop":
        _check_files(files)
    with without_collection():
        from m2v_finetune.data.manifest import problem_list
        from m2v_finetune.prediction import Rendering, predict_files
        from m2v_finetune.training.signals import stop_on_signals

    model = load_model(arguments.model, arguments)
    rendering = Rendering(
        format=_format(arguments, model),
        timeline=arguments.timeline,
        top=arguments.top,
        decide=arguments.decide,
    )
    if arguments.decide:
        _require_decisions(arguments, model)
    if rendering.format in DATA_FORMATS:
        print_utf8()
    with stop_on_signals(lambda: ""):
        done = predict_files(
            model,
            files,
            rendering=rendering,
            output=output,
            on_bad_file=on_bad_file,
        )
    if done.num_resumed:
        warn(f"{done.num_resumed} of {len(files)} files were already done.")
    if done.failed:
        warn(
            problem_list(
                f"Of {len(files)} files, these cannot be read and have no result",
                done.failed,
                "Repair them, and predict them with another command.",
                limit=None,
            )
        )
    warn_of_constant_outputs(model, done.variation, num_tracks=done.num_computed)


def split_models(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the models and the sources of a command line: the first word, and those like models after it.

    A folder with the config.json of a model is a model, and so are an ONNX file and a Hub id that is no path.
    The last word is always a source.
    """
    models, sources = [arguments.model], list(arguments.files)
    while len(sources) > 1:
        path = Path(sources[0])
        is_file = path.suffix == ".onnx" or (path / "config.json").is_file()
        if not (is_file or _is_like_a_repo_id(sources[0])):
            break
        models.append(sources.pop(0))
    return models, sources


def _is_like_a_repo_id(word: str) -> bool:
    """Return whether a word is a Hub id, and neither a path that exists nor an audio file by its name."""
    from m2v_finetune.data.folders import is_audio

    if os.path.lexists(word) or is_audio(Path(word)):
        return False
    from m2v_finetune.hub import is_repo_id

    return is_repo_id(word)


def is_table(arguments: argparse.Namespace) -> bool:
    """Return whether a command writes a table: to a folder, in a format of tables."""
    if arguments.output is None:
        return False
    if arguments.format is not None and arguments.format not in TABLE_FORMATS:
        return False
    path = Path(arguments.output)
    is_folder = arguments.output.endswith(os.sep) or path.is_dir()
    return is_folder or path.suffix == ""


def _refuse_for_text(arguments: argparse.Namespace, models: Sequence[str]) -> None:
    """Raise `UserError` for options and models that only tables have."""
    used = [name for name in TABLE_OPTIONS if getattr(arguments, name)]
    if len(models) > 1 or used or arguments.fail_on_error or arguments.engine != "local":
        what = f"Several models ({', '.join(models)})" if len(models) > 1 else "An option of tables"
        raise UserError(
            f"{what} need a table: name its folder by --output, with / at its end or without a suffix.",
            code="catalogue-not-a-table",
        )


def _expand(arguments: argparse.Namespace, sources: Sequence[str]) -> list[Path]:
    """Return the files of sources; files alone are kept as they are named, in their order."""
    from m2v_finetune.catalogue.sources import is_list
    from m2v_finetune.catalogue.stores import is_url

    remote = [source for source in sources if is_url(source)]
    if remote:
        raise UserError(
            f"{remote[0]} is in an object store, which is read for tables alone: name a folder, or an "
            "address, by --output, without a suffix.",
            code="catalogue-not-a-table",
        )
    if not any(map(is_list, sources)):
        return list(map(Path, sources))
    return [Path(item.path) for item in read_sources(arguments, sources).items]


def _require_decisions(arguments: argparse.Namespace, model: "TaskModel") -> None:
    """Raise `UserError` where ``--decide`` cannot be."""
    from m2v_finetune.tasks.clips import ClipTask

    if arguments.timeline:
        raise UserError(
            "--decide gives the labels of a track, not of its windows. Remove --timeline.",
            code="settings-conflict",
        )
    task = model.task
    if not isinstance(task, ClipTask) or task.decide(dict.fromkeys(task.labels, 0.0)) is None:
        raise UserError(
            f"--decide needs labels with thresholds, and this model of the task {task.name} has none. "
            "A tagger gets them in training: train it again, or resume its finished run with "
            "--run.resume auto. An average of models gets them in a short run from it, by "
            "--training.init_from.",
            code="model-without-thresholds",
        )


def _check_files(files: Sequence[Path]) -> None:
    """Raise `UserError` that names every file that cannot be read, before the model is loaded."""
    from m2v_finetune.audio.decode import inspect_audio
    from m2v_finetune.data.manifest import problem_list

    problems = []
    for path in files:
        try:
            inspect_audio(path)
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            problem_list(
                "Files that cannot be read",
                problems,
                "Repair them, or leave them out with --on-bad-file skip.",
            ),
            code="predict-unreadable-files",
        )


def _format(arguments: argparse.Namespace, model: "TaskModel") -> str:
    """Return the requested format, by its name or by the suffix of the output."""
    formats = model.task.formats
    suffix = "" if arguments.output is None else Path(arguments.output).suffix.lower()
    if arguments.format is None and suffix not in ("", *FORMAT_OF_SUFFIX) and "text" in formats:
        suffixes = [name for name, kind in FORMAT_OF_SUFFIX.items() if kind in formats]
        raise UserError(
            f"No format has the suffix of --output {arguments.output}. Name a file that ends in "
            f"{', '.join(suffixes)}; or choose a format by --format: {', '.join(formats)}.",
            code="output-unknown-format",
        )
    kind: str = arguments.format or FORMAT_OF_SUFFIX.get(suffix) or next(iter(formats))
    if kind not in formats:
        raise UserError(
            f"There is no format '{kind}' for {model.task.name}. There are: {', '.join(formats)}. Choose one "
            "by --format.",
            code="output-unknown-format",
        )
    return kind
