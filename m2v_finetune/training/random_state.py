"""Random states of this process: all that a training step draws from."""

import random
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """Return the states of dropout (CPU and GPU), of SpecAugment's masks (numpy) and of Python."""
    version, keys, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, words, position, has_gauss, cached = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(keys), gauss],
        "numpy": [str(name), torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set the states that `get_random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
