"""The module that turns windows of samples into all hidden states of the network."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_files

NORMALIZE_EPSILON = 1e-7
CONV_ENCODER = -1
"""A depth of the network: behind its convolutional encoder. Others are numbers of hidden states."""
MASK_VECTOR = "masked_spec_embed"
CONV_PIECE_SAMPLES = 2**20
"""Samples that go through the conv encoder at once: 13 windows of 5 s at 16 kHz, or 1 of 30 s at 24 kHz.

The first layer makes 512 / 5 numbers of each sample: 0.4 GB for a piece in float32.
"""


class Backbone(nn.Module):
    """A pre-trained network that returns every hidden state, the same number in every mode.

    The layers are run one by one here, so that hidden states can be consumed as they come (a running
    weighted sum keeps one of them, not all), so that none is ever dropped (LayerDrop is off), and so
    that the last state means the same whatever transformers calls it: the output of the network,
    after the final LayerNorm where there is one.

    Attributes:
        network: HubertModel, Data2VecAudioModel or Wav2Vec2Model of transformers.
        source: The name it was loaded by.
        revision: Branch, tag or commit it was loaded from, or None.
        licence: SPDX identifier of the weights, or empty when unknown.
        sample_rate: Of the audio it expects, in Hz.
        frame_grid: Where the frames of a window lie: stride and receptive field of the conv encoder.
        num_hidden_states: Transformer layers in use + 1; state 0 is the input of the first layer.
        hidden_size: Width of each hidden state.
        conv_size: Width of the convolutional encoder's features.
        normalize: Whether each window is brought to zero mean and unit variance first.
        gradient_checkpointing: In training mode, recompute the activations of each layer in the
            backward pass instead of keeping them.
        settings: What `build_network` needs to build the same network, before truncation.
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
        self.source = source
        self.revision = revision
        self.licence = licence
        self.sample_rate = sample_rate
        self.normalize = normalize
        self.spec_augment = spec_augment
        self.frame_grid = FrameGrid.from_convolutions(
            sample_rate=sample_rate, kernels=config.conv_kernel, strides=config.conv_stride
        )
        self.hidden_size: int = config.hidden_size
        self.conv_size: int = config.conv_dim[-1]
        self.is_pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.gradient_checkpointing = False
        self.network = network
        self._truncate(num_layers)
        self._control_masking(spec_augment)
        self.eval()

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second, exact."""
        return self.frame_grid.frame_rate

    @property
    def num_layers(self) -> int:
        """Transformer layers in use."""
        return len(self.network.encoder.layers)

    @property
    def num_hidden_states(self) -> int:
        """Hidden states that `forward` returns."""
        return self.num_layers + 1

    @property
    def frozen_depth(self) -> int | None:
        """The deepest point below which no weight learns.

        A hidden state's number, which is that of the transformer layers below it; `CONV_ENCODER` where only
        the convolutional encoder is frozen; None where that learns too.
        """
        if _learns(self.network.feature_extractor):
            return None
        encoder = self.network.encoder
        if any(map(_learns, self._input_modules())):
            return CONV_ENCODER
        for index, layer in enumerate(encoder.layers):
            # The final LayerNorm of a pre-norm network belongs to the last state.
            is_last = self.is_pre_norm and index + 1 == self.num_layers
            if _learns(layer) or (is_last and _learns(encoder.layer_norm)):
                return index
        return self.num_layers

    def frozen_modules(self) -> list[nn.Module]:
        """Return the modules below `frozen_depth`."""
        depth = self.frozen_depth
        if depth is None:
            return []
        if depth == self.num_layers:
            return [self]
        modules: list[nn.Module] = [self.network.feature_extractor]
        if depth > CONV_ENCODER:
            modules += [*self._input_modules(), *self.network.encoder.layers[:depth]]
        return modules

    def _input_modules(self) -> list[nn.Module]:
        """Return what makes hidden state 0 of the convolutional encoder's features."""
        encoder = self.network.encoder
        modules = [self.network.feature_projection, encoder.pos_conv_embed, encoder.dropout]
        if not self.is_pre_norm or not encoder.layers:
            modules.append(encoder.layer_norm)
        return modules

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a window of ``num_samples`` samples gives; 0 if it is too short."""
        return self.frame_grid.num_frames(num_samples)

    def check_window(self, num_samples: int) -> None:
        """Raise `UserError` where a window is too short for the network or for its masks."""
        frames = self.num_frames(num_samples)
        least = self.network.config.mask_time_length if self.spec_augment else 1
        if frames < least:
            why = "SpecAugment masks spans of" if self.spec_augment else "The network needs"
            grid = self.frame_grid
            needed = grid.receptive_field_samples + (least - 1) * grid.stride_samples
            needed_seconds = math.ceil(100 * needed / self.sample_rate) / 100
            raise UserError(
                f"A window of {num_samples / self.sample_rate:.4g} s gives {frames} frames. {why} "
                f"{least}. Set data.window_seconds to at least {needed_seconds:g}."
            )

    def prepare(self, waveforms: Tensor) -> Tensor:
        """Return ``input_values``: each window with zero mean and unit variance, if the checkpoint asks.

        Args:
            waveforms: (batch, samples), mono at `sample_rate`, in [-1, 1].

        Source: transformers, Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
        """
        if not self.normalize:
            return waveforms
        centred = waveforms - waveforms.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred / torch.sqrt(variance + NORMALIZE_EPSILON)

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

        What lies below the first weight that learns runs without a graph, so nothing of it is kept.
        """
        yield from self.iterate_from(CONV_ENCODER, self.encode(input_values))

    def iterate_from(self, depth: int, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states above a depth of the network, from what it gave there.

        Args:
            depth: The number of a hidden state, or `CONV_ENCODER`.
            state: That hidden state, (batch, frames, hidden_size), or what `encode` returned.
        """
        if depth == CONV_ENCODER:
            # Masks are drawn outside of what is recomputed, as numpy's random state is not brought back.
            masked = self.network._mask_hidden_states(self.project(state))
            yield from self.iterate_layers(masked)
        else:
            yield from self._iterate_layers_above(depth, state)

    def project(self, features: Tensor) -> Tensor:
        """Return features (batch, channels, frames) as (batch, frames, hidden_size)."""
        projected = self.network.feature_projection(features.transpose(1, 2))
        # data2vec and wav2vec 2.0 return the features beside their projection, HuBERT does not.
        return projected[0] if isinstance(projected, tuple) else projected  # type: ignore[no-any-return]

    def iterate_layers(self, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states of projected features (batch, frames, hidden_size), masked or not."""
        encoder = self.network.encoder
        state = self._run(self._embed, state, encoder.pos_conv_embed)
        if not encoder.layers and self.is_pre_norm:
            state = encoder.layer_norm(state)
        yield state
        yield from self._iterate_layers_above(0, state)

    def _iterate_layers_above(self, depth: int, state: Tensor) -> Iterator[Tensor]:
        """Yield the hidden states above one."""
        encoder = self.network.encoder
        for index, layer in enumerate(encoder.layers[depth:], start=depth):
            state = self._run(layer, state, layer)
            if index + 1 == len(encoder.layers) and self.is_pre_norm:
                state = encoder.layer_norm(state)
            yield state

    def encode(self, input_values: Tensor) -> Tensor:
        """Return the features of the conv encoder, (batch, channels, frames).

        The outputs of its first layers are the largest tensors of all. Where none of them is kept, or
        all are recomputed, the windows go through it in pieces, so that a batch costs no more than one.
        """
        encoder = self.network.feature_extractor
        learns = _learns(encoder) and torch.is_grad_enabled()
        windows = input_values.unsqueeze(1)
        with torch.set_grad_enabled(learns):
            if learns and not self._recomputes():
                return self._convolve(windows)
            size = max(1, CONV_PIECE_SAMPLES // windows.shape[-1])
            pieces = [self._run(self._convolve, piece, encoder) for piece in windows.split(size)]  # type: ignore[no-untyped-call]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _convolve(self, windows: Tensor) -> Tensor:
        """Return the features of windows (batch, 1, samples)."""
        features = windows
        for index, layer in enumerate(self.network.feature_extractor.conv_layers):
            if index == 0:
                # In float32, which costs no memory: its normalisation makes float32 anyway.
                with torch.autocast(features.device.type, enabled=False):
                    features = layer(features)
            else:
                features = layer(features)
        return features

    def _embed(self, state: Tensor) -> Tensor:
        """Return hidden state 0 from projected features, (batch, frames, hidden_size)."""
        encoder = self.network.encoder
        # Everything is added to this state: it stays in float32 whatever the layers compute in.
        state = state.float()
        state = state + encoder.pos_conv_embed(state)
        if not self.is_pre_norm:
            state = encoder.layer_norm(state)
        return encoder.dropout(state)  # type: ignore[no-any-return]

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _run(self, part: Callable[[Tensor], Tensor], state: Tensor, module: nn.Module) -> Tensor:
        """Run a part, keeping only its input for the backward pass where checkpointing is on.

        Args:
            part: Of the network.
            state: Its input.
            module: Where its weights are.
        """
        if self._recomputes() and (state.requires_grad or _learns(module)):
            return checkpoint(part, state, use_reentrant=False)  # type: ignore[no-any-return]
        return part(state)

    def compile_layers(self) -> None:
        """Have torch.compile make code of the transformer layers, in place, at their first use.

        They share one graph, made once; the first has its own where its input needs no gradient. Names of
        weights stay as they are.
        """
        for layer in self.network.encoder.layers:
            layer.compile()

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors, as `load_backbone` reads them.

        Args:
            folder: Made if needed; files of these names in it are replaced.

        Raises:
            OSError: The disk does not take it; then no file is changed.
        """
        config = self.network.config
        config.architectures = [type(self.network).__name__]
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        preprocessor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "do_normalize": self.normalize,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
            "sampling_rate": self.sample_rate,
        }
        contents = {
            "model.safetensors": save(tensors, metadata={"format": "pt"}),
            "config.json": config.to_json_string().encode(),
            "preprocessor_config.json": (json.dumps(preprocessor, indent=2) + "\n").encode(),
        }
        write_files(folder, contents)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the names and values of all weights: which backbone this is.

        SpecAugment's vector does not count, as it is there only while its setting is on.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            if name == MASK_VECTOR:
                continue
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _truncate(self, num_layers: int | None) -> None:
        encoder = self.network.encoder
        available = len(encoder.layers)
        if num_layers is None or num_layers == available:
            return
        if not 0 <= num_layers < available:
            raise UserError(
                f"The backbone {self.source} has {available} transformer layers, so {num_layers} cannot "
                f"be kept. Choose 0 to {available}."
            )
        encoder.layers = encoder.layers[:num_layers]
        if self.is_pre_norm:
            # The final LayerNorm belongs to the network's output; a lower state is what the next layer gets.
            encoder.layer_norm = nn.Identity()

    def _control_masking(self, spec_augment: bool) -> None:
        config = self.network.config
        config.apply_spec_augment = spec_augment
        if spec_augment and config.mask_time_prob == 0.0 and config.mask_feature_prob == 0.0:
            raise UserError(
                f"The config of {self.source} masks nothing (mask_time_prob and mask_feature_prob are 0), so "
                "the network has no vector for masked frames. Switch backbone.spec_augment off; to "
                "pre-train, set mask_time_prob in its config.json, such as to 0.05."
            )
        if not spec_augment and hasattr(self.network, MASK_VECTOR):
            delattr(self.network, MASK_VECTOR)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
