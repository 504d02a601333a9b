"""`m2v export`: write a model for programs that run it without this package."""

import argparse
from pathlib import Path

from m2v_finetune.cli.options import MODEL_HELP, Commands
from m2v_finetune.errors import UserError


def add_commands(commands: Commands) -> None:
    """Add `export` to the parser's subcommands."""
    export = commands.add_parser("export", help="write a model for transformers, or as ONNX")
    formats = export.add_subparsers(required=True, metavar="FORMAT")

    transformers = formats.add_parser(
        "transformers",
        help="a folder that transformers loads without this package",
        description="Writes a folder that pipeline('audio-classification') of transformers loads, and "
        "TaskModel.from_pretrained too. Models of clips with a linear head only.",
    )
    transformers.add_argument("model", help=MODEL_HELP)
    transformers.add_argument("folder", type=Path, help="new or empty folder")
    transformers.set_defaults(command=_export_transformers)

    onnx = formats.add_parser(
        "onnx",
        help="an ONNX file, from waveforms to logits",
        description="Writes an ONNX file, from waveforms to logits of clips or frames. It needs the "
        "extra onnx.",
    )
    onnx.add_argument("model", help=MODEL_HELP)
    onnx.add_argument("file", type=Path, help="new file, such as tagger.onnx")
    onnx.add_argument(
        "--precision",
        choices=["float32", "float16"],
        default="float32",
        help="precision of weights and most operators (default: %(default)s)",
    )
    onnx.set_defaults(command=_export_onnx)


def _export_onnx(arguments: argparse.Namespace) -> None:
    from m2v_finetune.exporting import export_onnx
    from m2v_finetune.model import TaskModel

    model = TaskModel.from_pretrained(arguments.model)
    export_onnx(model, arguments.file, precision=arguments.precision)
    print(f"Wrote {arguments.file}")


def _export_transformers(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists. Nothing is overwritten; name a new or empty folder.",
            code="export-exists",
        )
    from m2v_finetune.model import TaskModel

    model = TaskModel.from_pretrained(arguments.model)
    model.save_pretrained(folder, native=True)
    print(f"Wrote {folder}")
