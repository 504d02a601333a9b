"""Module that computes all hidden states of a network from windows of samples."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from m2v_finetune.audio.in_memory import AudioInput, audio_file
from m2v_finetune.backbones.checkpoint_files import fingerprint, write_checkpoint
from m2v_finetune.backbones.embedding import (
    Pooled,
    checked_seconds,
    embed_file,
    in_evaluation_mode,
    mean_of_state,
    mean_of_states,
)
from m2v_finetune.backbones.encoders import ENCODERS
from m2v_finetune.backbones.network_parts import (
    has_final_norm,
    keep_layers,
    set_spec_augment,
)
from m2v_finetune.backbones.window import normalized, require_frames
from m2v_finetune.config import WINDOW_SECONDS
from m2v_finetune.errors import UserError

CONV_ENCODER = -1
"""Depth of the network after its convolutional encoder. Other depths are indices of hidden states."""
CONV_CHUNK_SAMPLES = 2**20
"""Number of samples in one call of the conv encoder: 13 windows of 5 s at 16 kHz, or 1 of 30 s at 24 kHz.

The first layer outputs 512 / 5 numbers for each sample: 0.4 GB for a chunk in float32.
"""


class Backbone(nn.Module):
    """Pre-trained network that returns every hidden state, the same number in every mode.

    The layers run one by one here, so that hidden states can be consumed one by one (a running
    weighted sum keeps one of them in memory, not all), so that none is ever dropped (LayerDrop is off), and
    so that the last state is the same in all versions of transformers: the output of the network,
    after the final LayerNorm where there is one.

    Batch normalisation keeps its running statistics in training mode too: with those of a batch, a step
    would depend on how the total batch is divided, and checkpointing would count each batch twice.

    Attributes:
        network: Network of transformers, without a head.
        encoder: Family of the network, a row of `ENCODERS`.
        source: Name by which it was loaded.
        revision: Branch, tag or commit from which it was loaded, or None.
        licence: SPDX identifier of the weights, or empty when unknown.
        sample_rate: Sample rate of its input, in Hz.
        frame_grid: Stride, receptive field and first centre of the frames of a window.
        num_hidden_states: Number of transformer layers in use + 1; state 0 is the input of the first layer.
        hidden_size: Size of each hidden state.
        conv_size: Number of channels of the convolutional encoder's features.
        final_norm: Name of the LayerNorm of the last hidden state, or None where it has none.
        normalize: Whether each window is normalised to zero mean and unit variance first.
        gradient_checkpointing: Whether the activations of each layer are recomputed in the
            backward pass, in training mode.
        settings: Settings for `build_network` to build the same network, before truncation.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        *,
        source: str,
        revision: str | None,
        licence: str,
        sample_rate: int,
        normalize: bool,
        num_layers: int | None = None,
        spec_augment: bool = False,
    ) -> None:
        super().__init__()
        config = network.config
        self.settings: dict[str, Any] = {**config.to_dict(), "vocab_size": None}
        self.encoder = ENCODERS[config.model_type]
        self.source = source
        self.revision = revision
        self.licence = licence
        self.sample_rate = sample_rate
        self.normalize = normalize
        self.spec_augment = spec_augment
        self.frame_grid = self.encoder.frame_grid(config, sample_rate)
        self.hidden_size: int = config.hidden_size
        self.conv_size: int = config.conv_dim[-1]
        self.gradient_checkpointing = False
        self.network = network
        keep_layers(network, self.encoder, num_layers, source=source)
        self.final_norm = self.encoder.norm if has_final_norm(network, self.encoder) else None
        set_spec_augment(network, self.encoder, spec_augment, source=source)
        self.eval()

    @property
    def frame_rate(self) -> Fraction:
        """Exact number of frames in a second."""
        return self.frame_grid.frame_rate

    @property
    def layers(self) -> nn.ModuleList:
        """Transformer layers in use."""
        layers: nn.ModuleList = self.network.get_submodule(self.encoder.layers)
        return layers

    @property
    def num_layers(self) -> int:
        """Number of transformer layers in use."""
        return len(self.layers)

    @property
    def num_hidden_states(self) -> int:
        """Number of hidden states that `forward` returns."""
        return self.num_layers + 1

    @property
    def conv_encoder(self) -> nn.Module:
        """Convolutional encoder."""
        module: nn.Module = self.network.get_submodule(self.encoder.conv_encoder)
        return module

    @property
    def mask_vector(self) -> nn.Parameter:
        """Embedding that replaces masked frames, (hidden_size,); exists only with ``spec_augment``."""
        vector: nn.Parameter = self.network.get_parameter(self.encoder.mask_vector)
        return vector

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    @property
    def frozen_depth(self) -> int | None:
        """Greatest depth below which no parameter is trainable.

        It is the index of a hidden state, so the number of transformer layers below it; `CONV_ENCODER` if
        only the convolutional encoder is frozen; None if that is trainable too.
        """
        if _is_trainable(self.conv_encoder):
            return None
        if any(map(_is_trainable, self.embedding_modules())):
            return CONV_ENCODER
        for index in range(self.num_layers):
            if any(map(_is_trainable, self.layer_modules(index))):
                return index
        return self.num_layers

    def frozen_modules(self) -> list[nn.Module]:
        """Return the modules below `frozen_depth`."""
        depth = self.frozen_depth
        if depth is None:
            return []
        if depth == self.num_layers:
            return [self]
        modules = [self.conv_encoder]
        if depth > CONV_ENCODER:
            modules += [*self.embedding_modules(), *self.layers[:depth]]
        return modules

    def embedding_modules(self) -> list[nn.Module]:
        """Return the modules between the convolutional encoder and hidden state 0."""
        names = list(self.encoder.embedding)
        if self.final_norm is None or not self.layers:
            names.append(self.encoder.norm)
        return [self.network.get_submodule(name) for name in names]

    def layer_modules(self, index: int) -> list[nn.Module]:
        """Return the modules between a hidden state and the next one."""
        modules = [self.layers[index]]
        if index + 1 == self.num_layers and self.final_norm is not None:
            modules.append(self.network.get_submodule(self.final_norm))
        return modules

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a window of ``num_samples`` samples; 0 if it is too short."""
        return self.frame_grid.num_frames(num_samples)

    def embed(
        self,
        audio: AudioInput,
        *,
        sample_rate: int | None = None,
        layer: int | None = None,
        pool: Pooled = "track",
        window_seconds: float = WINDOW_SECONDS,
        batch_size: int = 16,
    ) -> NDArray[np.float32]:
        """Return an embedding of a sound of any length: hidden states, averaged over time, without dropout.

        Args:
            audio: Path; an array or tensor with ``sample_rate``; the audio of a row of `datasets`; or a file
                object (`audio.in_memory.audio_file`).
            sample_rate: Sample rate of an array, in Hz.
            layer: Number of a hidden state, from 0 (the input of the first layer); all of them if None.
            pool: ``track`` is the mean over time; ``windows`` the mean of each window.
            window_seconds: Length of the windows, one after the other.
            batch_size: Windows of a batch.

        Returns:
            (hidden_size,) with a layer, (num_hidden_states, hidden_size) without; for ``windows`` with the
            windows as first dimension.

        Raises:
            AudioError: The file cannot be read.
            UserError: ``audio`` is none of these, there is no such layer, or the windows are too short.
        """
        num_samples = round(checked_seconds(window_seconds) * self.sample_rate)
        combine = mean_of_states if layer is None else mean_of_state(layer, self.num_hidden_states)
        with audio_file(audio, sample_rate) as path, in_evaluation_mode(self):
            return embed_file(
                path,
                self,
                combine=combine,
                window_samples=num_samples,
                hop_samples=num_samples,
                pool=pool,
                batch_size=batch_size,
            )

    def check_window(self, num_samples: int) -> None:
        """Raise `UserError` where a window is too short for the network or for its masks."""
        require_frames(
            num_samples,
            grid=self.frame_grid,
            sample_rate=self.sample_rate,
            mask_length=self.network.config.mask_time_length if self.spec_augment else None,
        )

    def prepare(self, waveforms: Tensor) -> Tensor:
        """Return ``input_values``: each window with zero mean and unit variance, if `normalize` is set.

        Args:
            waveforms: (batch, samples), mono at `sample_rate`, in [-1, 1].
        """
        return normalized(waveforms) if self.normalize else waveforms

    def forward(self, input_values: Tensor) -> tuple[Tensor, ...]:
        """Return all hidden states.

        Args:
            input_values: (batch, samples), as `prepare` returns them.

        Returns:
            `num_hidden_states` tensors, each (batch, frames, hidden_size).
        """
        return tuple(self.iterate_hidden_states(input_values))

    def iterate_hidden_states(self, input_values: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states of `forward` one after the other, as they are computed.

        Frozen layers have no autograd graph, so their activations are not kept.
        """
        yield from self.iterate_from(CONV_ENCODER, self.encode(input_values))

    def iterate_from(self, depth: int, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states above a depth of the network, from its output there.

        Args:
            depth: Index of a hidden state, or `CONV_ENCODER`.
            state: That hidden state, (batch, frames, hidden_size), or the output of `encode`.
        """
        if depth == CONV_ENCODER:
            # Masks are drawn outside of the recomputed part, as numpy's random state is not restored.
            masked = self.encoder.mask(self.network, self.project(state))
            yield from self.iterate_layers(masked)
        else:
            yield from self._iterate_layers_above(depth, state)

    def project(self, features: Tensor) -> Tensor:
        """Return features (batch, channels, frames) as (batch, frames, hidden_size)."""
        return self.encoder.project(self.network, features)

    def iterate_layers(self, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states of projected features (batch, frames, hidden_size), masked or not."""
        embed = partial(self.encoder.embed, self.network)
        state = self._run(embed, state, *self.embedding_modules())
        if not self.layers:
            state = self._finish(state)
        yield state
        yield from self._iterate_layers_above(0, state)

    def _iterate_layers_above(self, depth: int, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states above the one at ``depth``."""
        inputs = self.encoder.layer_inputs(self.network, state)
        for index, layer in enumerate(self.layers[depth:], start=depth):
            state = self._run(partial(layer, **inputs), state, layer)
            if index + 1 == self.num_layers:
                state = self._finish(state)
            yield state

    def _finish(self, state: Tensor) -> Tensor:
        """Return the last hidden state from the output of the last layer."""
        if self.final_norm is not None:
            state = self.network.get_submodule(self.final_norm)(state)
        return state

    def encode(self, input_values: Tensor) -> Tensor:
        """Return the features of the conv encoder, (batch, channels, frames).

        The outputs of its first layers are the largest tensors of all. Where they are not kept, or are
        recomputed, the batch is processed in chunks, so that it needs no more memory than one window.
        """
        is_trained = _is_trainable(self.conv_encoder) and torch.is_grad_enabled()
        convolve = partial(self.encoder.convolve, self.network)
        with torch.set_grad_enabled(is_trained):
            is_kept = is_trained and not self._is_checkpointing()
            if is_kept or torch.compiler.is_exporting():  # its batch has no number
                return convolve(input_values)
            size = max(1, CONV_CHUNK_SAMPLES // input_values.shape[-1])
            chunks = [
                self._run(convolve, chunk, self.conv_encoder)
                for chunk in input_values.split(size)  # type: ignore[no-untyped-call]
            ]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def _is_checkpointing(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _run(self, part: Callable[[Tensor], Tensor], state: Tensor, *modules: nn.Module) -> Tensor:
        """Run a part of the network, keeping only its input for the backward pass with checkpointing.

        Args:
            part: Function to run.
            state: Input of the function.
            modules: Modules that the function uses.
        """
        if self._is_checkpointing() and (state.requires_grad or any(map(_is_trainable, modules))):
            return checkpoint(part, state, use_reentrant=False)  # type: ignore[no-any-return]
        return part(state)

    def compile_layers(self) -> None:
        """Compile the transformer layers with torch.compile, in place, at their first use.

        They share one graph; the first has its own where its input needs no gradient. Names of weights do
        not change.
        """
        for layer in self.layers:
            layer.compile()

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors, as `load_backbone` reads them.

        A card with the licence is written too, unless the folder has one.

        Args:
            folder: Folder, created if needed; files of these names in it are replaced.

        Raises:
            UserError: Layers below the final norm of the network were removed, or it has modules of tuning.
            OSError: The files cannot be written; then no file is changed.
        """
        if self.final_norm is None and self.encoder.has_final_norm(self.network.config):
            raise UserError(
                f"The first {self.num_layers} layers of {self.source} are no network of their own: its final "
                "norm belongs to its last layer. Load it with all layers to save it.",
                code="backbone-without-norm",
            )
        write_checkpoint(
            folder,
            self.network,
            num_layers=self.num_layers,
            sample_rate=self.sample_rate,
            normalize=self.normalize,
            licence=self.licence,
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 over the names and values of all weights, to identify the backbone.

        SpecAugment's mask embedding is left out, as it exists only while its setting is on.
        """
        return fingerprint(self.network, without=self.encoder.mask_vector)


def _is_trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
