"""Windows of unlabelled music, each with a mask of the network's input."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Array, Augment, TrainingWindows, Window, read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.pretraining.masking import span_mask


def unlabelled_example(
    checked: CheckedTrack, window: Window, augment: Augment | None
) -> tuple[Array]:
    """Read a window, (samples,)."""
    return (read_window(checked, window),)


@dataclass(frozen=True, kw_only=True)
class MaskedWindows(Dataset[tuple[Tensor, ...]]):
    """Random windows with random masks, by (epoch, index); they depend on (seed, epoch, track).

    Attributes:
        windows: Windows without masks.
        mask_probability: Probability for `span_mask`.
        mask_span_frames: Length of a span for `span_mask`.
        min_mask_spans: Least number of spans for `span_mask`.
    """

    windows: TrainingWindows
    mask_probability: float
    mask_span_frames: int
    min_mask_spans: int = 1

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def seed(self) -> int:
        """Seed of windows and masks."""
        return self.windows.seed

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        return self.windows.track_of(index, epoch)

    def name_of(self, index: int) -> str:
        """Return the name of an item in draws: its track, and its number among the track's windows."""
        track_index, repeat = divmod(index, self.windows.windows_per_track)
        return f"{self.windows.tracks[track_index].track.id}#{repeat}"

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the window (samples,), its mask (frames,), and the mask again.

        The mask is both the mask of the student's input and that of the loss.
        """
        (waveform,) = self.windows[position]
        mask = self.mask(position, self.num_frames)
        return waveform, mask, mask

    @property
    def num_frames(self) -> int:
        """Number of frames of a window."""
        return self.windows.grid.num_frames(self.windows.window_samples)

    def mask(self, position: tuple[int, int], num_frames: int) -> Tensor:
        """Return the mask of a window, (num_frames,) of `MaskedWindows.num_frames`, within its first frames.

        Args:
            position: Epoch and index.
            num_frames: Number of frames in which spans lie: all, or those before the end of the track.
        """
        epoch, index = position
        mask = torch.zeros(self.num_frames, dtype=torch.bool)
        mask[:num_frames] = torch.from_numpy(
            span_mask(
                num_frames,
                probability=self.mask_probability,
                span_frames=min(self.mask_span_frames, num_frames),
                min_spans=self.min_mask_spans,
                generator=draw_generator(self.seed, epoch, self.name_of(index), "mask"),
            )
        )
        return mask
