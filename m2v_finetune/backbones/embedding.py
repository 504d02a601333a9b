"""Embeddings of sounds: means over time of hidden states, of a whole track or of each window."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2v_finetune.audio.decode import inspect_audio, read_excerpt
from m2v_finetune.audio.windows import pad_to_window, window_starts
from m2v_finetune.config.ranges import in_range, whole_number
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import ForwardPass

if TYPE_CHECKING:
    from m2v_finetune.backbones.backbone import Backbone

Pooled = Literal["track", "windows"]


def embed_file(
    path: Path,
    backbone: "Backbone",
    *,
    combine: Callable[[Iterable[Tensor]], Tensor],
    window_samples: int,
    hop_samples: int,
    pool: Pooled,
    batch_size: int,
) -> NDArray[np.float32]:
    """Return the embedding of an audio file.

    The network processes windows that cover the track; a track that is shorter than a window is padded
    with zeros. The embedding of a track is the mean of those of its windows.

    Args:
        path: Audio file.
        backbone: Backbone on its device.
        combine: Function from all hidden states, (batch, frames, hidden_size) each, to the embedding of each
            window, (batch, ...).
        window_samples: Length of a window at the backbone's rate.
        hop_samples: Distance of windows.
        pool: ``track`` or ``windows``.
        batch_size: Windows of a batch.

    Returns:
        (...) for ``track``, (windows, ...) for ``windows``.

    Raises:
        AudioError: The file cannot be read.
        UserError: There is no such pool, a window is too short for the network, or the output is not finite.
    """
    rate = backbone.sample_rate
    whole_number("batch_size", batch_size, 1)
    if pool not in get_args(Pooled):
        raise UserError(
            f"pool is {pool!r}. There are: {', '.join(get_args(Pooled))}.",
            code="embed-no-such-pool",
        )
    backbone.check_window(window_samples)
    num_samples = inspect_audio(path).num_samples(rate)
    starts = window_starts(num_samples, window_samples, hop_samples)
    embed = ForwardPass(
        backbone,
        lambda waveforms: combine(backbone.iterate_hidden_states(backbone.prepare(waveforms))),
    )
    rows = []
    for first in range(0, len(starts), batch_size):
        windows = [
            pad_to_window(
                read_excerpt(
                    path,
                    sample_rate=rate,
                    start_sample=start,
                    num_samples=min(window_samples, num_samples - start),
                ),
                window_samples,
            )
            for start in starts[first : first + batch_size]
        ]
        rows.append(embed(torch.from_numpy(np.stack(windows))).numpy())
    embeddings = np.concatenate(rows)
    if not np.isfinite(embeddings).all():
        raise UserError(
            f"The output for {path} is not finite. Check the weights and the audio file.",
            code="model-output-not-finite",
        )
    mean: NDArray[np.float32] = embeddings.mean(axis=0)
    return embeddings if pool == "windows" else mean


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and at the end the mode that each module had before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def checked_seconds(window_seconds: float) -> float:
    """Return a length of windows, in seconds, above 0 and at most an hour.

    Raises:
        UserError: It is no such number.
    """
    if not isinstance(window_seconds, Real):
        raise UserError(
            f"window_seconds is {window_seconds!r}. Give a number of seconds.",
            code="settings-range",
        )
    in_range("window_seconds", window_seconds, 0.0, 3600.0)
    return window_seconds


def mean_of_state(layer: int, num_hidden_states: int) -> Callable[[Iterable[Tensor]], Tensor]:
    """Return a function that averages one hidden state over time; it computes no state above.

    Raises:
        UserError: There is no such hidden state.
    """
    if (
        not isinstance(layer, Integral)
        or isinstance(layer, bool)
        or not 0 <= layer < num_hidden_states
    ):
        raise UserError(
            f"layer is {layer!r}; the hidden states of this backbone are 0 to {num_hidden_states - 1}.",
            code="embed-no-such-layer",
        )

    def combine(states: Iterable[Tensor]) -> Tensor:
        for number, state in enumerate(states):
            if number == layer:
                return state.mean(dim=1)
        raise AssertionError

    return combine


def mean_of_states(states: Iterable[Tensor]) -> Tensor:
    """Return all hidden states averaged over time, (batch, num_hidden_states, hidden_size)."""
    return torch.stack([state.mean(dim=1) for state in states], dim=1)
