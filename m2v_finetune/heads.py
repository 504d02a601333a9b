"""Task heads on top of the weighted hidden states."""

import math
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import HeadKind

Pooling = Literal["mean", "mean_std", "attention"]
STANDARD_DEVIATION_EPSILON = 1e-5


def _layers(
    kind: HeadKind, input_size: int, num_outputs: int, hidden_size: int, dropout: float
) -> nn.Sequential:
    """Return the layers of a head, a linear one or an MLP, over the last dimension."""
    if kind != "mlp":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(input_size, num_outputs))
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(input_size, hidden_size),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_size, num_outputs),
    )


class Standardization(nn.Module):
    """Standardises each feature to mean 0 and standard deviation 1 over the training windows.

    Mean and standard deviation are computed once, before training, and saved with the model. Until
    then the module is the identity.

    Source: the probes of jukemir (Castellon et al. 2021), which use scikit-learn's StandardScaler.

    Attributes:
        mean: Mean of each feature, (size,).
        std: Standard deviation of each feature, (size,), above 0.
        is_fixed: Whether both are those of an earlier training, and are not measured again.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.is_fixed = False
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, features: Tensor) -> Tensor:
        """Return features (..., size), standardised."""
        return (features - self.mean) / self.std


class Head(nn.Module):
    """A network from weighted hidden states to the output of a task."""

    def pre_pool(self, hidden_states: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield what `forward` needs of each hidden state (batch, frames, hidden_size); here all frames."""
        return iter(hidden_states)


class AttentionPooling(nn.Module):
    """Weighted mean over frames with trainable weights.

    Source: the self-attention pooling of SUPERB's speaker baselines (Safari et al., arXiv 2008.01077):
    softmax over frames of a linear score.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, hidden_size) from (batch, frames, hidden_size)."""
        weights = self.score(features).softmax(dim=1)
        pooled: Tensor = (weights * features).sum(dim=1)
        return pooled


class ClipHead(Head):
    """Head with one vector of logits for a window: pooling over frames, then a linear layer or MLP.

    The MLP with one hidden layer of 512 and dropout is the published probe (MARBLE, arXiv 2306.10548).

    Args:
        input_size: Feature dimension of a frame.
        num_outputs: Number of logits.
        pooling: Pooling over frames, ``mean``, ``mean_std`` or ``attention``.
        kind: Kind of layers, ``linear`` or ``mlp``; ``logistic`` and ``ridge`` are linear.
        hidden_size: Size of the MLP's hidden layer.
        dropout: Dropout probability before each linear layer.
        standardize: Whether the pooled vector is standardised before the layers.

    Raises:
        ValueError: The pooling or kind does not exist.
    """

    def __init__(
        self,
        *,
        input_size: int,
        num_outputs: int,
        pooling: Pooling = "mean",
        kind: HeadKind = "linear",
        hidden_size: int = 512,
        dropout: float = 0.2,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling) or kind not in get_args(HeadKind):
            raise ValueError(f"no head has pooling {pooling!r} and kind {kind!r}")
        self.pooling = pooling
        if pooling == "attention":
            self.attention = AttentionPooling(input_size)
        pooled_size = 2 * input_size if pooling == "mean_std" else input_size
        self.standardization = Standardization(pooled_size) if standardize else nn.Identity()
        self.layers = _layers(kind, pooled_size, num_outputs, hidden_size, dropout)

    def pre_pool(self, hidden_states: Iterable[Tensor]) -> Iterator[Tensor]:
        """Average each hidden state over time first, where pooling is the mean.

        The mean over frames and the weighted sum over layers commute. Averaging each state first keeps
        (batch, hidden_size) of it in memory, not (batch, frames, hidden_size).
        """
        for state in hidden_states:
            yield state.mean(dim=1, keepdim=True) if self.pooling == "mean" else state

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, num_outputs) from weighted states (batch, frames, hidden_size)."""
        return self.layers(self.standardization(self._pool(features)))  # type: ignore[no-any-return]

    def _pool(self, features: Tensor) -> Tensor:
        """Return pooled features of each window, (batch, pooled_size)."""
        if self.pooling == "attention":
            return self.attention(features)  # type: ignore[no-any-return]
        pooled = features.mean(dim=1)
        if self.pooling == "mean_std":
            variance = features.var(dim=1, correction=0)
            # The epsilon keeps the gradient of the root finite where all frames are the same.
            pooled = torch.cat([pooled, (variance + STANDARD_DEVIATION_EPSILON).sqrt()], dim=-1)
        return pooled


class FrameHead(Head):
    """Head with logits for every frame: a linear layer or an MLP over the features of each frame.

    Args:
        input_size: Feature dimension of a frame.
        num_outputs: Number of logits.
        kind: Kind of layers, ``mlp`` or ``linear``.
        hidden_size: Size of the MLP's hidden layer.
        dropout: Dropout probability before each linear layer.
        prior: Approximate probability of a new head's outputs, set by its last bias: where few frames
            are positive, training need not find this first. Source: the initialisation of Lin et
            al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.
        standardize: Whether each frame is standardised before the layers.

    Raises:
        ValueError: The kind does not exist.
    """

    def __init__(
        self,
        *,
        input_size: int,
        num_outputs: int,
        kind: HeadKind = "linear",
        hidden_size: int = 512,
        dropout: float = 0.2,
        prior: float | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if kind not in get_args(HeadKind):
            raise ValueError(f"no head has kind {kind!r}")
        self.standardization = Standardization(input_size) if standardize else nn.Identity()
        self.layers = _layers(kind, input_size, num_outputs, hidden_size, dropout)
        if prior is not None:
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.constant_(last.bias, math.log(prior / (1 - prior)))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, frames, num_outputs) from states (batch, frames, hidden_size)."""
        return self.layers(self.standardization(features))  # type: ignore[no-any-return]


class MaskHead(Head):
    """Head that separates a mixture by a mask of its spectrogram for each stem.

    The mixture's log magnitudes and the frames, interpolated to the times of the spectrogram, are
    projected to the hidden size and added. A bidirectional GRU and a linear layer compute, for each
    stem, a logit for each channel and frequency. Masks are the softmax over stems, so the stems sum to the
    mixture. Their phase is the mixture's.

    Source: after open-unmix (Stöter et al., JOSS 2019): spectrogram of 4096 samples each 1024, a
    normalised projection with tanh, a recurrent network with a connection around it. A GRU replaces
    its three LSTMs, as the backbone already models the context. Layer normalisation replaces its batch
    normalisation, so that a result does not depend on the batch. One network outputs all stems.

    Args:
        input_size: Feature dimension of a frame.
        num_stems: Number of stems.
        grid: Grid of the backbone's frames, at its sample rate.
        sample_rate: Sample rate of the mixture, in Hz.
        channels: Number of channels of the mixture.
        n_fft: Window of the spectrogram, in samples of the mixture.
        hop_samples: Hop of the spectrogram, at most a quarter of `n_fft`, so that every sample
            is well inside some window.
        hidden_size: Input size of the GRU, even: each direction has half as many units.
        dropout: Dropout probability before the GRU and before the last layer.

    Raises:
        ValueError: `hop_samples` is over a quarter of `n_fft`, or `hidden_size` is odd.
    """

    window: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        num_stems: int,
        grid: FrameGrid,
        sample_rate: int,
        channels: int = 2,
        n_fft: int = 4096,
        hop_samples: int = 1024,
        hidden_size: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if not 1 <= hop_samples <= n_fft // 4 or hidden_size % 2:
            raise ValueError(
                f"hop_samples={hop_samples} must be from 1 to n_fft / 4 = {n_fft // 4}, and "
                f"hidden_size={hidden_size} must be even"
            )
        self.num_stems = num_stems
        self.grid = grid
        self.sample_rate = sample_rate
        self.channels = channels
        self.n_fft = n_fft
        self.hop_samples = hop_samples
        num_bins = channels * (n_fft // 2 + 1)
        self.project_features = nn.Linear(input_size, hidden_size)
        self.project_spectrum = nn.Linear(num_bins, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size // 2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, num_stems * num_bins)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, features: Tensor, mixture: Tensor) -> Tensor:
        """Separate a mixture.

        Args:
            features: Weighted states of the same window, (batch, frames, input_size).
            mixture: (batch, channels, samples) at `sample_rate`.

        Returns:
            Stems, (batch, num_stems, channels, samples); their sum is the mixture.
        """
        spectrum = self._spectrum(mixture)
        masks = self._masks(features, spectrum)
        return self._waveforms(masks * spectrum[:, None], mixture.shape[-1])

    def apply_masks(self, mixture: Tensor, masks: Tensor) -> Tensor:
        """Return the stems from masks of the mixture's spectrogram.

        Args:
            mixture: (batch, channels, samples).
            masks: (batch, stems, channels, n_fft // 2 + 1, columns), where the columns are
                ``samples // hop_samples + 1`` and column k is centred at sample ``k * hop_samples``.

        Returns:
            Stems, (batch, stems, channels, samples).
        """
        return self._waveforms(masks * self._spectrum(mixture)[:, None], mixture.shape[-1])

    def _spectrum(self, mixture: Tensor) -> Tensor:
        """Return the complex spectrogram, (batch, channels, n_fft // 2 + 1, columns)."""
        spectrum = torch.stft(
            mixture.flatten(0, 1),
            self.n_fft,
            self.hop_samples,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.view(*mixture.shape[:2], *spectrum.shape[1:])

    def _waveforms(self, spectra: Tensor, num_samples: int) -> Tensor:
        """Return the waveforms (..., num_samples) of spectrograms (..., n_fft // 2 + 1, columns)."""
        waveforms = torch.istft(
            spectra.flatten(0, -3),
            self.n_fft,
            self.hop_samples,
            window=self.window,
            length=num_samples,
        )
        return waveforms.view(*spectra.shape[:-2], num_samples)

    def _masks(self, features: Tensor, spectrum: Tensor) -> Tensor:
        """Return masks for `apply_masks`."""
        # log(1 + x): a full-scale sine has a magnitude of n_fft / 4 here, silence has 0.
        magnitudes = spectrum.abs().log1p().movedim(-1, 1).flatten(2)
        at_columns = self.at_columns(features, spectrum.shape[-1])
        states = self.project_features(at_columns) + self.project_spectrum(magnitudes)
        states = self.norm(states).tanh()
        states = states + self.gru(self.dropout(states))[0]
        logits = self.output(self.dropout(states)).float()
        logits = logits.view(*logits.shape[:2], self.num_stems, *spectrum.shape[1:3])
        masks: Tensor = logits.softmax(dim=2).movedim(1, -1)
        return masks

    def at_columns(self, features: Tensor, num_columns: int) -> Tensor:
        """Interpolate frames (batch, frames, hidden_size) linearly to the times of the spectrogram.

        Columns before the first frame's centre, or after the last one's, copy that frame.
        """
        num_frames = features.shape[1]
        first = (self.grid.receptive_field_samples - 1) / 2
        # Positions reach into the hundreds: single precision is exact to 1e-4 of a frame.
        columns = torch.arange(num_columns, device=features.device, dtype=torch.float32)
        seconds = columns * (self.hop_samples / self.sample_rate)
        positions = (seconds * self.grid.sample_rate - first) / self.grid.stride_samples
        positions = positions.clamp(0, num_frames - 1)
        lower = positions.floor().long().clamp(max=max(0, num_frames - 2))
        upper = (lower + 1).clamp(max=num_frames - 1)
        part = (positions - lower)[:, None].to(features.dtype)
        return features[:, lower].lerp(features[:, upper], part)
