"""A small tagger with random weights, and batches for it."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging

PUBLISHED = ("music2vec-v1", "MERT-v0", "MERT-v0-public", "MERT-v1-95M", "MERT-v1-330M")
"""The published checkpoints."""
TAGGING = Tagging(labels=("drums", "flute", "minor"), label_column="tags")
SAMPLES = 8000
"""Of a window: 0.5 s at 16 kHz."""

Module = TypeVar("Module", bound=torch.nn.Module)


def build_tagger(
    *,
    source: Any = "random-small",
    method: Any = "full",
    seed: int = 0,
    seconds: float = SAMPLES / 16000,
    head: HeadConfig | None = None,
    train_conv_encoder: bool = False,
    **backbone: Any,
) -> TaskModel:
    """Return a tagger of `TAGGING`.

    Args:
        source: Name or folder of the backbone.
        method: Tuning method.
        seed: Of the weights of head and adapters.
        seconds: Length of a window.
        head: Settings of the head; the defaults if None.
        train_conv_encoder: Whether full tuning trains the convolutions too.
        **backbone: More settings of the backbone, such as ``num_layers``.
    """
    torch.manual_seed(seed)
    return TaskModel.build(
        task=TAGGING,
        backbone=BackboneConfig(source=str(source), **backbone),
        head=head or HeadConfig(),
        tuning=TuningConfig(
            method=method, train_conv_encoder=train_conv_encoder if method == "full" else None
        ),
        window_seconds=seconds,
    )


def without_dropout(model: Module) -> Module:
    """Switch dropout off in place, so that two computations of one thing can be compared."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # attention has no module for it
            vars(module)["dropout"] = 0.0
    return model


def random_batch(size: int = 4, *, seed: int = 0, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Return waveforms (size, samples) of quiet noise, and targets of `TAGGING` (size, labels)."""
    generator = torch.Generator().manual_seed(seed)
    waveforms = 0.1 * torch.randn(size, samples, generator=generator)
    targets = torch.randint(0, 2, (size, len(TAGGING.labels)), generator=generator).float()
    return waveforms, targets
