"""Table of embeddings: means over time of hidden states, of each track or of each of its windows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from m2v_finetune import __version__
from m2v_finetune.backbones import Backbone, is_backbone, load_backbone
from m2v_finetune.backbones.checkpoint_files import find_checkpoint
from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.backbones.embedding import (
    Pooled,
    checked_seconds,
    mean_of_state,
    mean_of_states,
)
from m2v_finetune.backbones.network_parts import settings_beside_weights
from m2v_finetune.catalogue.analysis import Array, Layout, Pass, Row
from m2v_finetune.catalogue.items import Item
from m2v_finetune.config import WINDOW_SECONDS
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.paths import absolute
from m2v_finetune.errors import UserError
from m2v_finetune.model import NotFiniteError, TaskModel, require_inference

Precision = Literal["float32", "float16"]


class Embeddings:
    """Analysis of tracks by the hidden states of a network; see `analysis.Analysis`.

    The vectors are those of `TaskModel.embed` and `Backbone.embed`.

    Args:
        source: Name, folder or Hub id of the network, for the table.
        network: Model of a task, or backbone, on its device.
        layer: Number of a hidden state, from 0. If None, the weighted sum that the head of a model reads;
            of a backbone the mean of all.
        pool: ``track`` for a vector of each track; ``windows`` for one of each window, with its ``time``.
        precision: Type of the numbers.
        window_seconds: Length of the windows of a backbone, one after the other; a model has its own if None.

    Raises:
        UserError: There is no such layer, the windows are too short, or the model reads vectors or sets its
            windows.
    """

    kind = "embeddings"

    def __init__(
        self,
        source: str,
        network: TaskModel | Backbone,
        *,
        layer: int | None = None,
        pool: Pooled = "track",
        precision: Precision = "float32",
        window_seconds: float | None = None,
    ) -> None:
        import pyarrow

        self.source = source
        self.pool = pool
        self.dtype = np.dtype(precision)
        network.eval()
        combine: Callable[[Iterable[Tensor]], Tensor] = _mean_of_layers
        layers: int | str = "mean"
        if isinstance(network, TaskModel):
            require_inference(network)
            if window_seconds is not None:
                raise UserError(
                    f"{source} is a model of a task, whose windows have {network.window_seconds:g} s. Leave "
                    "out --window-seconds, or give a backbone.",
                    code="embed-window-of-model",
                )
            assert isinstance(network.backbone, Backbone)
            backbone = network.backbone
            window_samples, hop_samples = network.window_samples, network.hop_samples
            if layer is None:
                combine, layers = _Weighted(network), "weighted"
        else:
            backbone = network
            seconds = WINDOW_SECONDS if window_seconds is None else window_seconds
            window_samples = round(checked_seconds(seconds) * backbone.sample_rate)
            hop_samples = window_samples
        if layer is not None:
            combine, layers = mean_of_state(layer, backbone.num_hidden_states), layer
        backbone.check_window(window_samples)

        def compute(waveforms: Tensor) -> list[Tensor]:
            return [combine(backbone.iterate_hidden_states(backbone.prepare(waveforms)))]

        self.layouts = [
            Layout(grid=backbone.frame_grid, window_samples=window_samples, hop_samples=hop_samples)
        ]
        self.passes = [Pass(layout=0, network=backbone, compute=compute)]
        self.identity: dict[str, Any] = {
            "weights": backbone.fingerprint(),
            "settings": settings_beside_weights(backbone.settings),
            "tuning": asdict(network.tuning) if isinstance(network, TaskModel) else None,
            "normalize": backbone.normalize,
            "layer": layers,
            "pool": pool,
            "precision": precision,
            "hidden_size": backbone.hidden_size,
            "sample_rate": backbone.sample_rate,
            "window_samples": window_samples,
            "hop_samples": hop_samples,
        }
        if isinstance(combine, _Weighted):
            self.identity["layer_weights"] = combine.numbers()
        self.facts: dict[str, Any] = {
            "m2v_finetune": __version__,
            "source": absolute(source) if Path(source).is_dir() else source,
        }
        self.constants: dict[str, Any] = {}
        number = pyarrow.float16() if precision == "float16" else pyarrow.float32()
        times = [("time", pyarrow.float64())] if pool == "windows" else []
        self.schema: pyarrow.Schema = pyarrow.schema(
            [
                ("id", pyarrow.string()),
                ("path", pyarrow.string()),
                ("duration", pyarrow.float64()),
                *times,
                ("vector", pyarrow.list_(number, backbone.hidden_size)),
                ("error", pyarrow.string()),
            ]
        )

    def rows(
        self,
        item: Item,
        checked: CheckedTrack,
        windows: Sequence[Sequence[Window]],
        outputs: Sequence[Sequence[Sequence[Array]]],
    ) -> list[Row]:
        """Return the row of a track, or of each of its windows."""
        vectors = np.stack([output for (output,) in outputs[0]])
        if self.pool == "track":
            vectors = vectors.mean(axis=0, keepdims=True)
        with np.errstate(over="ignore"):
            vectors = vectors.astype(self.dtype)
        if not np.isfinite(vectors).all():
            return [{"error": f"{NotFiniteError.code}: {NotFiniteError(item.path)}"}]
        if self.pool == "track":
            return [{"vector": vectors[0]}]
        return [
            {"time": window.start_seconds, "vector": vector}
            for window, vector in zip(windows[0], vectors, strict=True)
        ]


class _Weighted:
    """The weighted sum of layers that the head of a model reads, averaged over time."""

    def __init__(self, model: TaskModel) -> None:
        self.layer_weighting = model.layer_weighting

    def __call__(self, states: Iterable[Tensor]) -> Tensor:
        """Return the sum for each window, (batch, hidden_size)."""
        combined: Tensor = self.layer_weighting(states)
        return combined.mean(dim=1)

    def numbers(self) -> list[float]:
        """Return the weights, and the offset if there is one."""
        with torch.inference_mode():
            weights: list[float] = self.layer_weighting.weights().tolist()
        offset = getattr(self.layer_weighting, "offset", None)
        return weights if offset is None else [*weights, float(offset)]


def _mean_of_layers(states: Iterable[Tensor]) -> Tensor:
    """Return the mean over layers and time, (batch, hidden_size)."""
    return mean_of_states(states).mean(dim=1)


def load_network(source: str) -> TaskModel | Backbone:
    """Load a backbone by its short name, folder or Hub id, or the model of a task.

    Raises:
        UserError: There is no such network, or it cannot be loaded.
    """
    if published_checkpoint(source) is not None and not Path(source).is_dir():
        return load_backbone(source)
    folder, _ = find_checkpoint(source, None, with_weights=False)
    return load_backbone(source) if is_backbone(folder) else TaskModel.from_pretrained(source)
