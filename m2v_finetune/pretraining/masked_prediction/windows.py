"""Windows with masks and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.data.manifest import Track
from m2v_finetune.pretraining.masked_prediction.labels import TrackLabels
from m2v_finetune.pretraining.masked_prediction.mixing import Mixing
from m2v_finetune.pretraining.windows import MaskedWindows


@dataclass(frozen=True, kw_only=True)
class LabelledWindows(Dataset[tuple[Tensor, ...]]):
    """Random windows with random masks, and the labels of their frames, by (epoch, index).

    Attributes:
        masked: Windows, which start at frames of the track.
        labels: Labels of the tracks.
        mixing: Addition of segments of other tracks; None for none.
    """

    masked: MaskedWindows
    labels: TrackLabels
    mixing: Mixing | None = None

    def __len__(self) -> int:
        return len(self.masked)

    @property
    def seed(self) -> int:
        """Seed of windows and masks."""
        return self.masked.seed

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        return self.masked.track_of(index, epoch)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return waveforms (1 or 2, samples), labels (sets, frames), the mask (frames,), and the mask again.

        The first waveform is the input of the network; the last one is clean, the source of the targets.
        They are one without `mixing`.
        """
        epoch, index = position
        (waveform,) = self.masked.windows[position]
        sampled = self.masked.windows.sample(position)
        grid = sampled.window.grid
        labels = self.labels.read(
            sampled.checked.track.id,
            first=sampled.window.start_sample // grid.stride_samples,
            num_frames=self.masked.num_frames,
        )
        # Frames after the end of a track have no labels: spans there would count for nothing.
        mask = self.masked.mask(position, int((labels[0] >= 0).sum()))
        waveforms = waveform[None]
        if self.mixing is not None:
            name = self.masked.name_of(index)
            mixed = self.mixing.mix(waveform.numpy(), sampled, epoch=epoch, name=name)
            waveforms = torch.stack([torch.from_numpy(mixed), waveform])
        return waveforms, torch.from_numpy(labels), mask, mask
