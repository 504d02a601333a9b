"""Pre-train with one of two objectives that no recipe has, for the trials of the small backbone.

    python benchmarks/trial_objectives.py both --data.source MANIFEST --objective masked_prediction ...
    python benchmarks/trial_objectives.py equivariant --data.source MANIFEST --objective masked_prediction ...

Both add a loss to masked prediction, with weight 1; all else is recipes/pretrain.py, with its settings.

- both: music2vec's loss. A teacher, an average of the network over its steps, sees the window without masks.
  The network predicts the mean of the teacher's layers at the masked frames.
- equivariant: equivariance to transposition, after PESTO (arXiv 2309.02265). The network sees a part of a
  window, and the same part transposed by 1 to 4 semitones (played faster or slower), both without masks. A
  linear layer with a softmax over 128 classes follows, and its mean over time. That of the transposed part
  should be that of the other, shifted by as many classes as semitones.
"""

import sys

import torch
from torch import Tensor, nn

from m2v_finetune import pretraining_runs
from m2v_finetune.backbones import Backbone
from m2v_finetune.config import PretrainingConfig
from m2v_finetune.pretraining.data2vec.teacher import Teacher, ema_decay
from m2v_finetune.pretraining.masked_prediction.model import MaskedPredictionModel
from m2v_finetune.runs import main

NUM_CLASSES = 128
LARGEST_SHIFT = 4
"""In semitones."""
EMA = {"start": 0.998, "end": 0.9998, "ramp_steps": 600}


class AddedLoss(MaskedPredictionModel):
    """Masked prediction, and another loss of each window, `added`, of the last forward pass."""

    added: Tensor

    def window_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of both losses of each window, (batch,)."""
        return super().window_losses(outputs, targets) + self.added


class WithTeacher(AddedLoss):
    """Masked prediction, and music2vec's objective with the same masks."""

    def __init__(self, backbone: Backbone, config: PretrainingConfig) -> None:
        super().__init__(
            backbone, config.masked_prediction, window_seconds=config.data.window_seconds
        )
        self.teacher = Teacher(backbone, num_target_layers=backbone.num_layers, averages="all")
        self.prediction = nn.Linear(backbone.hidden_size, backbone.hidden_size)
        self._last = self._features = torch.empty(0)
        first = next(iter(self.heads.values()))
        first.register_forward_pre_hook(lambda _, inputs: setattr(self, "_last", inputs[0]))

    def watch_conv(self, features: Tensor) -> None:
        """Keep the features for the teacher, too: its bank is the same, as the bank does not learn."""
        super().watch_conv(features)
        self._features = features.detach()

    def forward(self, waveforms: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Return what masked prediction returns, and keep music2vec's loss."""
        outputs = super().forward(waveforms, labels, masks)
        with torch.no_grad():
            targets = self.teacher.targets(self._features)
        errors = (self.prediction(self._last).float() - targets).square().mean(dim=-1)
        self.added = (errors * masks).sum(dim=1) / masks.sum(dim=1)
        return outputs

    def end_step(self, num_updates: int) -> None:
        """Update the teacher after a step."""
        self.teacher.ema_update(self.backbone, ema_decay(num_updates, **EMA))
        super().end_step(num_updates)


class Equivariant(AddedLoss):
    """Masked prediction, and equivariance to transposition."""

    def __init__(self, backbone: Backbone, config: PretrainingConfig) -> None:
        super().__init__(
            backbone, config.masked_prediction, window_seconds=config.data.window_seconds
        )
        self.classes = nn.Linear(backbone.hidden_size, NUM_CLASSES)

    def forward(self, waveforms: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Return what masked prediction returns, and keep the loss of equivariance."""
        outputs = super().forward(waveforms, labels, masks)
        windows = waveforms[:, 0]
        length = int(windows.shape[1] / 2 ** (LARGEST_SHIFT / 12))
        shifts = [
            int(torch.randint(1, LARGEST_SHIFT + 1, ())) * (1 if torch.rand(()) < 0.5 else -1)
            for _ in windows
        ]
        # The same music: as much of a window as is `length` samples when it is played at another speed.
        parts = [
            window[: round(length * 2 ** (shift / 12))]
            for window, shift in zip(windows, shifts, strict=True)
        ]
        plain = torch.cat([self._classes(part.unsqueeze(0)) for part in parts])
        other = self._classes(torch.stack([transpose(part, length) for part in parts]))
        # Circular: the loss does not say which class is which pitch.
        expected = torch.stack([row.roll(shift) for row, shift in zip(plain, shifts, strict=True)])
        self.added = -(expected * other.clamp(min=1e-8).log()).sum(dim=1)
        return outputs

    def _classes(self, windows: Tensor) -> Tensor:
        """Return the distribution over the classes of each window, (batch, `NUM_CLASSES`)."""
        state = self.backbone.project(self.backbone.encode(self.backbone.prepare(windows)))
        *_, last = self.backbone.iterate_layers(state)
        probabilities: Tensor = self.classes(last).float().softmax(dim=-1).mean(dim=1)
        return probabilities


def transpose(part: Tensor, length: int) -> Tensor:
    """Return a part of a window, (samples,), played faster or slower, so that it has `length` samples."""
    spectrum = torch.fft.rfft(part)
    played: Tensor = torch.fft.irfft(spectrum[: length // 2 + 1], n=length)
    return played * (length / len(part))


MODELS = {"both": WithTeacher, "equivariant": Equivariant}


if __name__ == "__main__":
    chosen = MODELS[sys.argv[1]]
    pretraining_runs.build_pretraining_model = chosen
    main(["pretrain", *sys.argv[2:]])
