"""A `TaskModel` as an ONNX file, from waveforms to logits: `export_onnx`.

The file's metadata have what a program needs beside the network: ``sample_rate``, ``window_samples`` and
``hop_samples``, ``labels`` as a JSON list, ``calibration`` of the probabilities of a track, the grid of
frames, and in ``m2v_finetune`` the settings of the model, as in config.json. The logits are not calibrated:
calibration is applied to the mean of the windows' probabilities.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from m2v_finetune.errors import UserError, disk_advice
from m2v_finetune.exporting.extra import import_extra
from m2v_finetune.files import write_atomically
from m2v_finetune.heads import MaskHead
from m2v_finetune.model import SECTION, TaskModel, describe_model, require_inference
from m2v_finetune.model.novelty import NUM_DISTANCES
from m2v_finetune.tuning import merge_adapters

Precision = Literal["float32", "float16"]
INPUT, OUTPUT, NOVELTY = "waveforms", "logits", "novelty"
FLOAT32_OPERATORS = ("ReduceMean", "LayerNormalization", "InstanceNormalization", "Softmax")
"""Operators that stay in float32: variances of quiet music are below the smallest float16."""


def export_onnx(model: TaskModel, file: str | Path, *, precision: Precision = "float32") -> None:
    """Write a model as an ONNX file.

    The input ``waveforms``, (batch, samples), are mono at the backbone's rate, in [-1, 1]; both lengths are
    free. The output ``logits`` is that of `TaskModel.forward`: (batch, outputs) for clips, (batch, frames,
    outputs) for frames. Both are float32. A model that measures novelty has its distances as second
    output ``novelty``, (batch, 2).

    Args:
        model: The model. Its adapters are merged in the file.
        file: New file.
        precision: Precision of weights and of most operators. The first convolution and its normalisation,
            whose input may be quiet, and the distances of novelty stay in float32.

    Raises:
        UserError: The extra ``onnx`` is missing, the file exists or cannot be written, there is no such
            precision, or the model cannot be exported.
    """
    file = Path(file)
    if precision not in get_args(Precision):
        raise UserError(
            f"precision is {precision!r}. There are: {', '.join(get_args(Precision))}.",
            code="export-precision",
        )
    require_inference(model)
    if isinstance(model.head, MaskHead):
        raise UserError(
            "Models of separation have no ONNX file: docs/exporting.md has the reason. Use `m2v predict`.",
            code="export-separation",
        )
    if file.exists():
        raise UserError(
            f"{file} exists. Nothing is overwritten; name a new file.", code="export-exists"
        )
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name)
    merged = copy.deepcopy(model).cpu().eval()
    merge_adapters(merged.backbone)
    for module in [*merged.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, _ExactGroupNorm(child))
    proto = _trace(merged)
    if precision == "float16":
        proto = _in_float16(proto)
    metadata = {SECTION: json.dumps(describe_model(model, "all")), **plain_metadata(model)}
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content = proto.SerializeToString()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda unfinished: unfinished.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"{error.filename or file} cannot be written: {error.strerror or error}. {disk_advice(error)}",
            code="output-not-writable",
        ) from error


def plain_metadata(model: TaskModel) -> dict[str, str]:
    """Return the metadata of a file for programs without this package, all text."""
    grid = model.backbone.frame_grid
    calibration = getattr(model.task, "calibration", None)
    return {
        "sample_rate": str(model.backbone.sample_rate),
        "window_samples": str(model.window_samples),
        "hop_samples": str(model.hop_samples),
        "labels": json.dumps(list(model.id2label.values()), ensure_ascii=False),
        "calibration": json.dumps(calibration.to_dict() if calibration else None),
        "frame_stride_samples": str(grid.stride_samples),
        "first_frame_seconds": str(float(grid.first_centre_seconds)),
    }


class _WithNovelty(nn.Module):
    """A model with logits and novelty as two outputs."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, outputs) and novelty (batch, 2) of waveforms."""
        scored = self.model.score(inputs)
        return scored[:, :-NUM_DISTANCES], scored[:, -NUM_DISTANCES:]


class _ExactGroupNorm(nn.Module):
    """A group normalisation with a channel in each group, in float64.

    ONNX Runtime's own is less exact than PyTorch's where most of a window is zeros: logits differed by 1e-3.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        assert norm.num_groups == norm.num_channels
        self.norm = norm

    def forward(self, frames: Tensor) -> Tensor:
        """Return normalised frames, (batch, channels, frames)."""
        exact = frames.double()
        centred = exact - exact.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        scaled = (centred * torch.rsqrt(variance + self.norm.eps)).to(frames.dtype)
        return scaled * self.norm.weight[:, None] + self.norm.bias[:, None]


def _trace(model: TaskModel) -> Any:
    """Return the ONNX model of a network, in float32."""
    dynamic = torch.export.Dim.DYNAMIC
    # Two windows: a batch of one would be taken for a constant.
    example = torch.zeros(2, model.window_samples)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            _WithNovelty(model) if model.measures_novelty else model,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT, NOVELTY] if model.measures_novelty else [OUTPUT],
            dynamic_shapes={"inputs": {0: dynamic, 1: dynamic}},
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _in_float16(proto: Any) -> Any:
    """Return an ONNX model with weights and most operators in float16; input and output stay float32."""
    convert = import_extra("onnxruntime.transformers.float16")
    second = [node for node in proto.graph.node if node.op_type == "Conv"][1]
    kept = _needed_for(proto, second.input[0])
    if len(proto.graph.output) > 1:
        kept |= _needed_for(proto, NOVELTY) - _needed_for(proto, OUTPUT)
    with _quiet():
        return convert.convert_float_to_float16(
            proto,
            keep_io_types=True,
            op_block_list=[*convert.DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS],
            node_block_list=sorted(kept),
            disable_shape_infer=True,
        )


def _needed_for(proto: Any, output: str) -> set[str]:
    """Return the names of the nodes that an output, or an inner value, is computed by."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    needed, waiting = set(), [output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            waiting += node.input
    return needed


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the log of the exporter, which names libraries that are not installed and need not be."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
