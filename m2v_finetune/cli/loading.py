"""Models of a command line: loaded on this machine's device, and a warning of outputs that hardly vary."""

import argparse
from typing import TYPE_CHECKING

from m2v_finetune.cli.options import warn
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    from m2v_finetune.model import TaskModel
    from m2v_finetune.variation import OutputVariation


def load_model(source: str, arguments: argparse.Namespace) -> "TaskModel":
    """Return a model on its device, in its precision."""
    import torch

    from m2v_finetune.allocation import keep_freed_memory
    from m2v_finetune.cpu_precision import inference_precision
    from m2v_finetune.model import TaskModel

    if arguments.runtime == "onnx":
        from m2v_finetune.exporting import OnnxModel

        if arguments.precision == "bfloat16":
            raise UserError(
                "--precision bfloat16 is not for --runtime onnx: an ONNX file has its precision. Leave it "
                "out, or write the file with m2v export onnx --precision float16.",
                code="settings-conflict",
            )
        return OnnxModel(source)
    model = TaskModel.from_pretrained(source).to("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory(model.device)
    model.precision = inference_precision(
        arguments.precision, task=model.task.name, device=model.device
    )
    if model.precision == "bfloat16":
        why = "which is fast on this CPU" if arguments.precision == "auto" else "as asked for"
        warn(f"Predicting in bfloat16, {why}; --precision float32 is exact.")
    return model


def warn_of_constant_outputs(
    model: "TaskModel", variation: "OutputVariation", *, num_tracks: int
) -> None:
    """Warn where the outputs of a model hardly vary over tracks."""
    from m2v_finetune.variation import explain_constant_outputs, outputs_hardly_vary

    if outputs_hardly_vary(variation, num_tracks=num_tracks):
        warn(
            explain_constant_outputs(
                variation,
                num_tracks=num_tracks,
                is_probe=model.tuning.method == "probe",
                is_standardized=model.head_config.standardize,
            )
        )
