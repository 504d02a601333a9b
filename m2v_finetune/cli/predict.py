"""`m2v predict`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m2v_finetune.cli.options import (
    MODEL_HELP,
    Commands,
    count,
    print_utf8,
    warn,
)
from m2v_finetune.errors import AudioError, UserError

if TYPE_CHECKING:
    from m2v_finetune.model import TaskModel

FORMAT_OF_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json"}
DATA_FORMATS = ("csv", "json")


def add_commands(commands: Commands) -> None:
    """Add `predict` to the parser's subcommands."""
    predict = commands.add_parser(
        "predict",
        help="run a model on audio files",
        description="Prints the prediction for each track, or writes it in the formats of the task: "
        ".beats, .lab, MIDI, WAV. Each result is written as soon as it is computed. You can stop the "
        "command at any time: the same command resumes.",
    )
    predict.add_argument("model", help=MODEL_HELP)
    predict.add_argument("files", nargs="+", type=Path, help="music files of any length")
    predict.add_argument(
        "--timeline",
        action="store_true",
        help="also output the prediction for each window of the track",
    )
    predict.add_argument(
        "--format",
        help="text (the default, unless the name of --output ends in .csv, .json or .jsonl), json or csv are "
        "printed; some tasks have other formats, such as beats, lab, midi or wav, which are written to files",
    )
    predict.add_argument(
        "--top",
        type=count,
        default=10,
        help="number of labels to show in text (default: %(default)s)",
    )
    predict.add_argument(
        "--decide",
        action="store_true",
        help="output the labels of each track in place of scores: tags above their threshold, or the class "
        "of highest probability",
    )
    predict.add_argument(
        "--output",
        type=Path,
        help="new file for the printed output; for formats that are written to files, their folder",
    )
    predict.add_argument(
        "--on-bad-file",
        choices=["stop", "skip"],
        default="stop",
        help="policy for files that cannot be read: stop at the first, or continue without them and list "
        "them at the end (default: %(default)s)",
    )
    predict.add_argument(
        "--runtime",
        choices=["torch", "onnx"],
        default="torch",
        help="library that runs the model; onnx takes a file of `m2v export onnx` in place of the folder, "
        "and needs the extra onnx (default: %(default)s)",
    )
    predict.set_defaults(command=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {output.parent} for --output. Create it first.",
            code="output-no-parent",
        )
    if arguments.on_bad_file == "stop":
        _check_files(arguments.files)
    import torch

    from m2v_finetune.data.manifest import problem_list
    from m2v_finetune.model import TaskModel
    from m2v_finetune.prediction import Rendering, predict_files
    from m2v_finetune.training.signals import stop_on_signals
    from m2v_finetune.variation import explain_constant_outputs, outputs_hardly_vary

    if arguments.runtime == "onnx":
        from m2v_finetune.exporting import OnnxModel

        model: TaskModel = OnnxModel(arguments.model)
    else:
        model = TaskModel.from_pretrained(arguments.model)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
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
            arguments.files,
            rendering=rendering,
            output=output,
            on_bad_file=arguments.on_bad_file,
        )
    if done.num_resumed:
        warn(f"{done.num_resumed} of {len(arguments.files)} files were already done.")
    if done.failed:
        warn(
            problem_list(
                f"Of {len(arguments.files)} files, these cannot be read and have no result",
                done.failed,
                "Repair them, and predict them with another command.",
                limit=None,
            )
        )
    if outputs_hardly_vary(done.variation, num_tracks=done.num_computed):
        warn(
            explain_constant_outputs(
                done.variation,
                num_tracks=done.num_computed,
                is_probe=model.tuning.method == "probe",
                is_standardized=model.head_config.standardize,
            )
        )


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
            "--run.resume auto.",
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
    suffix = "" if arguments.output is None else arguments.output.suffix.lower()
    kind: str = arguments.format or FORMAT_OF_SUFFIX.get(suffix) or next(iter(formats))
    if kind not in formats:
        raise UserError(
            f"There is no format '{kind}' for {model.task.name}. There are: {', '.join(formats)}. Choose one "
            "by --format.",
            code="output-unknown-format",
        )
    return kind
