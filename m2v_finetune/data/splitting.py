"""Splits of the data, given in the manifest or made so that an artist or album stays on one side."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from m2v_finetune.data.manifest import SPLITS, Track, problem_list
from m2v_finetune.data.values import as_texts, named
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
        group_columns: Columns; the first one that any track fills is the group: tracks that share a value
            of it, read as labels are, get the same split. A track without a value is a group of its own.
        validation_fraction: Share of groups.
        test_fraction: Share of groups; None for no test split, and to leave out one that the data bring.
        seed: Seed of the random split.

    Raises:
        UserError: A split of the data's own is empty, there are fewer groups than splits, or a group is
            neither text nor a number.
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
            "Put tracks there. Or remove the splits, a column 'split' or folders with their names, to have "
            "them drawn.",
            code="split-empty",
        )
    return splits


def _draw(
    tracks: Sequence[Track],
    group_columns: Sequence[str],
    validation_fraction: float,
    test_fraction: float | None,
    seed: int,
) -> list[Track]:
    from sklearn.model_selection import GroupShuffleSplit

    column, groups = group_tracks(tracks, group_columns)
    shares = {"validation": validation_fraction}
    if test_fraction is not None:
        rest_share = validation_fraction / (1 - test_fraction)
        shares = {"test": test_fraction, "validation": rest_share}
    if len(set(groups)) < 1 + len(shares):
        units = f"values of '{column}'" if column else "tracks"
        raise UserError(
            f"A split cannot be made: there are {len(set(groups))} {units}, and {1 + len(shares)} splits "
            f"need {1 + len(shares)}. Add tracks, give a column 'split', or set data.group_columns.",
            code="split-too-few-groups",
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


def group_tracks(
    tracks: Sequence[Track], group_columns: Sequence[str]
) -> tuple[str | None, list[str]]:
    """Return the column of the groups, and the group of each track; see `split_tracks`.

    Raises:
        UserError: A group is neither text nor a number.
    """
    filled = [name for name in group_columns if any(_has(track, name) for track in tracks)]
    column = filled[0] if filled else None
    return column, _groups(tracks, column)


def _has(track: Track, column: str) -> bool:
    try:
        return bool(_values(track, column))
    except ValueError:
        return True  # `_groups` reports the problem


def _values(track: Track, column: str) -> list[str]:
    found = named(track.columns, column)
    return [] if found is None else as_texts(track.columns[found])


def _groups(tracks: Sequence[Track], column: str | None) -> list[str]:
    """Return a name for the group of each track: the same for those that share a value, or a file.

    A track with several values, as of artists who play together, makes one group of theirs. The names do
    not depend on the order of the tracks, nor on where their files are.

    Raises:
        UserError: A value is neither text nor a number.
    """
    values, problems = [], []
    for track in tracks:
        try:
            texts = [] if column is None else _values(track, column)
        except ValueError as error:
            problems.append(f"{track.origin}: the column '{column}' holds {error}")
            continue
        values.append([f"{column}={text}" for text in texts] or [track.id])
    if problems:
        raise UserError(
            problem_list(
                "Groups that stay on one side when a split is made cannot be read",
                problems,
                "Correct them, name another column by data.group_columns, or give a column 'split'.",
            ),
            code="split-bad-groups",
        )
    joined = _Joined()
    first_of_file: dict[str, str] = {}
    for track, [first, *others] in zip(tracks, values, strict=True):
        for other in others:
            joined.join(first, other)
        # Rows of a data set of the Hub may share a file; in one's own data that is an error.
        if track.path_rule == "foreign":
            joined.join(first, first_of_file.setdefault(os.path.realpath(track.path), first))
    return [joined.name(first) for first, *_ in values]


class _Joined:
    """Names that were joined to groups; the name of a group is the least of its own."""

    def __init__(self) -> None:
        self.lower: dict[str, str] = {}

    def name(self, name: str) -> str:
        while (lower := self.lower.get(name, name)) != name:
            self.lower[name] = self.lower.get(lower, lower)
            name = lower
        return name

    def join(self, one: str, other: str) -> None:
        low, high = sorted((self.name(one), self.name(other)))
        self.lower[high] = low
