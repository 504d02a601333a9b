"""Windows of unlabelled music, each with a mask of the student's input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.config import PretrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Array, Augment, TrainingWindows, Window, read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.pretraining.masking import span_mask
from m2v_finetune.pretraining.model import PretrainingModel


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
    """

    windows: TrainingWindows
    mask_probability: float
    mask_span_frames: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def seed(self) -> int:
        """Seed of windows and masks."""
        return self.windows.seed

    def track_of(self, index: int) -> Track:
        """Return the track of an item."""
        return self.windows.track_of(index)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the window (samples,), its mask (frames,), and the mask again.

        The mask is both the mask of the student's input and that of the loss.
        """
        epoch, index = position
        windows = self.windows
        track_index, repeat = divmod(index, windows.windows_per_track)
        name = f"{windows.tracks[track_index].track.id}#{repeat}"
        mask = torch.from_numpy(
            span_mask(
                windows.grid.num_frames(windows.window_samples),
                probability=self.mask_probability,
                span_frames=self.mask_span_frames,
                generator=draw_generator(windows.seed, epoch, name, "mask"),
            )
        )
        (waveform,) = windows[position]
        return waveform, mask, mask


def masked_windows(
    model: PretrainingModel, tracks: Sequence[CheckedTrack], config: PretrainingConfig
) -> MaskedWindows:
    """Return random windows of tracks with random masks.

    Args:
        model: Model of student and teacher.
        tracks: Tracks of one split.
        config: All settings.
    """
    return MaskedWindows(
        windows=TrainingWindows(
            tracks=tracks,
            example=unlabelled_example,
            grid=model.backbone.frame_grid,
            window_samples=model.window_samples,
            windows_per_track=config.data.windows_per_track,
            augmentation=None,
            seed=config.run.seed,
        ),
        mask_probability=config.pretrain.mask_probability,
        mask_span_frames=config.pretrain.mask_span_frames,
    )


@dataclass(frozen=True, kw_only=True)
class FixedWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows with fixed masks, by index.

    Attributes:
        masked: Random windows, of which this has the first epoch.
    """

    masked: MaskedWindows

    def __len__(self) -> int:
        return len(self.masked)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a window (samples,) and its mask (frames,)."""
        waveform, mask, _ = self.masked[0, index]
        return waveform, mask
