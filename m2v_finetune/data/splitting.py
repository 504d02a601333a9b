"""Splits: those the data bring, or one made so that an artist or album stays on one side."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from sklearn.model_selection import GroupShuffleSplit

from m2v_finetune.data.manifest import SPLITS, Track
from m2v_finetune.errors import UserError

logger = logging.getLogger(__name__)


def split_tracks(
    tracks: Sequence[Track],
    *,
    group_columns: Sequence[str],
    validation_fraction: float,
    test_fraction: float | None,
    seed: int,
) -> dict[str, list[Track]]:
    """Return the tracks by split; where they have none, draw one over groups.

    Args:
        tracks: All with a split, or all without.
        group_columns: The first of these columns that any track has is the group: tracks that share its
            value get the same split. A track without a value is a group of its own.
        validation_fraction: Share of groups.
        test_fraction: Share of groups; None for no test split, and to leave out one that the data bring.
        seed: Decides the draw.

    Raises:
        UserError: A split of the data's own is empty, or there are fewer groups than splits.
    """
    names = [name for name in SPLITS if name != "test" or test_fraction is not None]
    if tracks[0].split is None:
        tracks = _draw(tracks, group_columns, validation_fraction, test_fraction, seed)
    splits = {name: [track for track in tracks if track.split == name] for name in names}
    empty = [name for name, members in splits.items() if not members]
    if empty:
        found = dict(Counter(track.split for track in tracks))
        raise UserError(
            f"The data have no track in {' and '.join(empty)} (found: {found}). "
            "Put tracks there, or remove the column 'split' to have a split made."
        )
    return splits


def _draw(
    tracks: Sequence[Track],
    group_columns: Sequence[str],
    validation_fraction: float,
    test_fraction: float | None,
    seed: int,
) -> list[Track]:
    column = next((c for c in group_columns if any(t.columns.get(c) for t in tracks)), None)
    groups = [
        f"{column}={track.columns[column]}" if column and track.columns.get(column) else track.id
        for track in tracks
    ]
    shares = {"validation": validation_fraction}
    if test_fraction is not None:
        rest_share = validation_fraction / (1 - test_fraction)
        shares = {"test": test_fraction, "validation": rest_share}
    if len(set(groups)) < 1 + len(shares):
        units = f"values of '{column}'" if column else "tracks"
        raise UserError(
            f"A split cannot be made: there are {len(set(groups))} {units}, and {1 + len(shares)} splits "
            f"need {1 + len(shares)}. Add tracks, give a column 'split', or set data.group_columns."
        )
    logger.info(
        "No split in the data: one is made with seed %d, over %d %s.",
        seed,
        len(set(groups)),
        f"values of '{column}', each on one side" if column else "tracks",
    )
    assigned: dict[int, str] = {}
    rest = list(range(len(tracks)))
    for name, share in shares.items():
        # At least one group for each split, however few there are.
        num_groups = len({groups[i] for i in rest})
        needed_after = len(shares) - len(set(assigned.values()))
        taken = min(max(1, round(share * num_groups)), num_groups - needed_after)
        splitter = GroupShuffleSplit(n_splits=1, test_size=taken, random_state=seed)
        kept, drawn = next(splitter.split(rest, groups=[groups[i] for i in rest]))
        assigned |= {rest[i]: name for i in drawn}
        rest = [rest[i] for i in kept]
    return [replace(t, split=assigned.get(i, "train")) for i, t in enumerate(tracks)]
