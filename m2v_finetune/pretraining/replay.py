"""Windows of two sources in one epoch: one's own music, and a share of general music beside it."""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.config import UnlabelledDataConfig
from m2v_finetune.data.manifest import DatasetInfo, Track
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.errors import UserError

REPLAY = "replay"
"""Name of the split of the replayed tracks."""


class PretrainingWindows(Protocol):
    """Windows of pre-training, by (epoch, index)."""

    @property
    def seed(self) -> int:
        """Seed of windows and masks."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]: ...

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReplayedWindows(Dataset[tuple[Tensor, ...]]):
    """Windows of own tracks, then windows of replayed tracks, by (epoch, index).

    Every window of the own tracks is in each epoch. The replayed ones take turns over the epochs, in an
    order drawn by the seed, so that all of their tracks are used. The order of an epoch mixes both.

    Attributes:
        own: Windows of own tracks.
        replayed: Windows of replayed tracks.
        share: Share of replayed windows in an epoch, above 0 and below 1.
    """

    own: PretrainingWindows
    replayed: PretrainingWindows
    share: float

    def __len__(self) -> int:
        return len(self.own) + self.num_replayed

    @property
    def num_replayed(self) -> int:
        """Number of replayed windows in an epoch, at least 1."""
        return max(1, round(len(self.own) * self.share / (1.0 - self.share)))

    @property
    def seed(self) -> int:
        """Seed of windows, masks and order."""
        return self.own.seed

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        if index < len(self.own):
            return self.own.track_of(index, epoch)
        turn, item = self.replayed_item(epoch, index)
        return self.replayed.track_of(item, turn)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the tensors of an item."""
        epoch, index = position
        if index < len(self.own):
            return self.own[position]
        return self.replayed[self.replayed_item(epoch, index)]

    def replayed_item(self, epoch: int, index: int) -> tuple[int, int]:
        """Return the turn over all replayed windows, and the number in it, of an item."""
        number = epoch * self.num_replayed + index - len(self.own)
        turn, offset = divmod(number, len(self.replayed))
        order = draw_generator(self.seed, turn, "", REPLAY).permutation(len(self.replayed))
        return turn, int(order[offset])


def replay_split(
    config: UnlabelledDataConfig,
) -> tuple[dict[str, list[Track]], DatasetInfo | None]:
    """Return the tracks of ``data.replay`` as a split of its own, with ids of their own, and their data set.

    Without ``data.replay`` there is no split and no data set.

    Raises:
        UserError: There is nothing at the source, or it has no training tracks.
    """
    if config.replay is None:
        return {}, None
    tracks, dataset = load_tracks(
        config.replay,
        label_column=None,
        allow_outside=config.allow_outside,
        max_failing_fraction=config.max_failing_fraction,
    )
    used = [
        replace(track, id=f"{REPLAY}/{track.id}", split=REPLAY)
        for track in tracks
        if track.split in (None, "train")
    ]
    if not used:
        raise UserError(
            f"data.replay {config.replay} has no track without a split, or of train. Name other music.",
            code="split-empty",
        )
    return {REPLAY: used}, dataset
