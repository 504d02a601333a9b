"""`OnnxModel`: an ONNX file with the inference of a `TaskModel`."""

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from m2v_finetune.backbones import frame_grid_of
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.cpu_precision import InferencePrecision
from m2v_finetune.errors import UserError
from m2v_finetune.exporting.extra import import_extra
from m2v_finetune.exporting.onnx_file import INPUT, NOVELTY, OUTPUT, plain_metadata
from m2v_finetune.files import require_readable
from m2v_finetune.heads import Head
from m2v_finetune.model import SECTION, TaskModel, parse_description
from m2v_finetune.model.novelty import NUM_DISTANCES

MAX_FRAMES = 1_000_000
"""Largest number of frames of a window, several hours: a file with more is damaged."""


class OnnxBackbone(nn.Module):
    """Facts of the backbone inside an ONNX file, in place of the network.

    Attributes:
        source: Name of the backbone.
        sample_rate: Sample rate of its input, in Hz.
        normalize: Whether the file normalises windows.
        frame_grid: Grid of its frames.
    """

    num_hidden_states = 1

    def __init__(self, saved: Any, *, where: str) -> None:
        super().__init__()
        self.source = saved.source
        self.sample_rate = saved.sample_rate
        self.normalize = saved.normalize
        self.frame_grid = frame_grid_of(saved.settings, saved.sample_rate, where=where)

    def frozen_modules(self) -> list[nn.Module]:
        """Return no module."""
        return []


class OnnxModel(TaskModel):
    """A model that ONNX Runtime runs on the CPU: `predict` and `predict_many` alone.

    Args:
        file: File that `export_onnx` wrote.

    Raises:
        UserError: The extra ``onnx`` is missing, or the file is none of `export_onnx`.
    """

    def __init__(self, file: str | Path) -> None:
        path = Path(file)
        if path.is_dir():
            raise UserError(
                f"{path} is a folder, not an ONNX file. Export one: m2v export onnx {path} FILE. Or predict "
                "without --runtime onnx.",
                code="model-missing",
            )
        if not path.is_file():
            raise UserError(f"There is no ONNX file {path}.", code="model-missing")
        require_readable(path)
        content = path.read_bytes()
        onnxruntime = import_extra("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # of errors alone: float16 is not in all of its kernels
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            description = json.loads(session.get_modelmeta().custom_metadata_map[SECTION])
        # Its errors have no common class of their own.
        except Exception as error:
            raise UserError(
                f"{path} is no ONNX file of m2v export onnx ({str(error).splitlines()[0]}).",
                code="onnx-unreadable",
            ) from error
        saved, task = parse_description(description, path)
        super().__init__(
            backbone=OnnxBackbone(saved.backbone, where=str(path)),  # type: ignore[arg-type]
            # Without weights: ONNX Runtime has threads of its own (`threads.batches_at_once`).
            layer_weighting=LayerWeighting("last", 1),
            head=Head(),
            head_config=saved.head,
            task=task,
            tuning=saved.tuning,
            window_seconds=float(saved.window_seconds),
            hop_seconds=float(saved.hop_seconds),
            base_fingerprint=None,
        )
        self.session = session
        self._check(path, [OUTPUT, NOVELTY] if saved.novelty_windows else [OUTPUT])
        # Part of the fingerprint of the model, by which a command resumes.
        digest = list(hashlib.sha256(content).digest())
        self.register_buffer("digest", torch.tensor(digest, dtype=torch.uint8))

    def _check(self, path: Path, names: list[str]) -> None:
        """Raise `UserError` if the network of the file is not the one that its metadata describe."""
        network = self.session
        outputs = [one.name for one in network.get_outputs()]
        written = network.get_modelmeta().custom_metadata_map
        problems = [
            f"{key} of its metadata is {written.get(key)}, not {value}"
            for key, value in plain_metadata(self).items()
            if written.get(key) != value
        ]
        if [one.name for one in network.get_inputs()] != [INPUT]:
            problems.append(f"its input is not {INPUT}")
        if outputs != names:
            problems.append(f"its outputs are {', '.join(outputs)}, not {', '.join(names)}")
        num_frames = self.backbone.frame_grid.num_frames(self.window_samples)
        if not 1 <= num_frames <= MAX_FRAMES:
            problems.append(f"a window has {num_frames} frames")
        if not problems:
            frames = (num_frames,) if self.task.on_frames else ()
            expected = [(1, *frames, self.task.num_outputs), (1, NUM_DISTANCES)][: len(outputs)]
            try:
                window = np.zeros((1, self.window_samples), np.float32)
                shapes = [one.shape for one in network.run(None, {INPUT: window})]
            except Exception as error:  # of ONNX Runtime, whose errors have no common class
                problems.append(f"it cannot be run: {str(error).splitlines()[0]}")
            else:
                if shapes != expected:
                    problems.append(f"its outputs have the shapes {shapes}, not {expected}")
        if problems:
            raise UserError(
                f"{path} is no ONNX file of this version of m2v export onnx: {'; '.join(problems)}. Export "
                "the model again.",
                code="onnx-unreadable",
            )

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise `UserError`: ``OnnxModel(file)`` opens a file."""
        raise cls._refusal("from_pretrained")

    @property
    def precision(self) -> InferencePrecision:
        """Precision around the file: ``float32``; that of its operators is chosen at the export.

        Raises:
            UserError: Another one is set.
        """
        return "float32"

    @precision.setter
    def precision(self, value: InferencePrecision) -> None:
        if value != "float32":
            raise self._refusal("precision but that of its export")

    def forward(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return the logits of waveforms (batch, samples), on the CPU."""
        return torch.from_numpy(self.session.run(None, {INPUT: inputs.numpy()})[0])

    @property
    def measures_novelty(self) -> bool:
        """Whether the file has novelty as its second output."""
        return len(self.session.get_outputs()) > 1

    def score(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return the logits of waveforms, and in last columns their novelty, if the file has it."""
        outputs = self.session.run(None, {INPUT: inputs.numpy()})
        return torch.cat([torch.from_numpy(one) for one in outputs], dim=1)

    def embed(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `UserError`: an ONNX file has the logits alone."""
        raise self._refusal("embed")

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Raise `UserError`: an ONNX file cannot be turned into a model folder."""
        raise self._refusal("save_pretrained")

    def to_transformers(self) -> NoReturn:
        """Raise `UserError`: an ONNX file cannot be turned into a network of transformers."""
        raise self._refusal("to_transformers")

    def merge_and_unload(self) -> NoReturn:
        """Raise `UserError`: an ONNX file has no adapters."""
        raise self._refusal("merge_and_unload")

    def card_data(self, **__: Any) -> NoReturn:
        """Raise `UserError`: the card is that of the model folder."""
        raise self._refusal("card_data")

    def num_parameters(self, **__: Any) -> NoReturn:
        """Raise `UserError`: the parameters are constants of the file."""
        raise self._refusal("num_parameters")

    @staticmethod
    def _refusal(method: str) -> UserError:
        return UserError(
            f"An ONNX file has no {method}: it is for predictions alone. Load the model folder that it was "
            "made from by TaskModel.from_pretrained.",
            code="onnx-predicts-only",
        )
