"""Folds of cross-validation, and nested subsets of the training tracks; groups stay together in both."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.manifest import Track, as_labels
from m2v_finetune.data.splitting import group_tracks
from m2v_finetune.errors import UserError

UNUSED = "unused"
"""Split of the training tracks that a subset leaves out."""


def fold_splits(
    tracks: Sequence[Track],
    *,
    group_columns: Sequence[str],
    label_column: str | None,
    num_folds: int,
    fold: int | None,
    validation_fraction: float,
    seed: int,
) -> dict[str, list[Track]]:
    """Return the splits of one fold: its tracks are the test split, and a part of the others is validation.

    Each track is in exactly one fold. Groups stay together, and the rarest label of each track is spread
    evenly over the folds as far as the groups allow. Splits of the data's own are ignored.

    Source: `sklearn.model_selection.StratifiedGroupKFold`.

    Args:
        tracks: All tracks.
        group_columns: As for `splitting.split_tracks`.
        label_column: Column of the labels to spread; None for none.
        num_folds: Number of folds, at least 2.
        fold: Number of the fold, from 0; None for a split of all tracks without a test split.
        validation_fraction: Share of the other groups in the validation split.
        seed: Seed of the folds.

    Raises:
        UserError: There are fewer groups than folds, or too few for validation.
    """
    tracks = sorted(tracks, key=lambda track: track.id)  # the order of the data changes nothing
    column, groups = group_tracks(tracks, group_columns)
    units = f"values of '{column}'" if column else "tracks"
    if len(set(groups)) < max(num_folds, 3):
        raise UserError(
            f"data.folds is {num_folds}, but there are {len(set(groups))} {units}. Groups stay together, so "
            f"set it to at most their number, and have at least 3; or set data.group_columns.",
            code="folds-too-few-groups",
        )
    strata = _rarest_labels(tracks, label_column)
    folds = _assign(strata, groups, num_folds, seed)
    rest = [n for n in range(len(tracks)) if folds[n] != fold]
    num_parts = min(max(2, round(1 / validation_fraction)), len({groups[n] for n in rest}))
    parts = _assign([strata[n] for n in rest], [groups[n] for n in rest], num_parts, seed)
    split = dict.fromkeys(range(len(tracks)), "test")
    split |= {
        n: "validation" if part == 0 else "train" for n, part in zip(rest, parts, strict=True)
    }
    named = [replace(track, split=split[n]) for n, track in enumerate(tracks)]
    names = ("train", "validation") if fold is None else ("train", "validation", "test")
    return {name: [track for track in named if track.split == name] for name in names}


def nested_subset(
    tracks: Sequence[Track],
    num_tracks: int,
    *,
    group_columns: Sequence[str],
    label_column: str | None,
    seed: int,
) -> tuple[list[Track], list[Track]]:
    """Return a subset of tracks, and the others, of split ``unused``; larger subsets contain smaller ones.

    Groups are drawn in an order by the seed, first those that are needed for each label to occur. The last
    group of a subset may be cut, so that the number is exact.

    Args:
        tracks: Training tracks.
        num_tracks: Size of the subset, at least 1.
        group_columns: As for `splitting.split_tracks`.
        label_column: Column of the labels; None for none.
        seed: Seed of the order.

    Raises:
        UserError: There are fewer tracks.
    """
    if num_tracks > len(tracks):
        raise UserError(
            f"data.num_train_tracks is {num_tracks}, but the training split has {len(tracks)} tracks.",
            code="settings-range",
        )
    ordered = _nested_order(tracks, group_columns, label_column, seed)
    chosen = {track.id for track in ordered[:num_tracks]}
    return (
        [track for track in tracks if track.id in chosen],
        [replace(track, split=UNUSED) for track in tracks if track.id not in chosen],
    )


def least_subset(
    tracks: Sequence[Track], *, group_columns: Sequence[str], label_column: str | None, seed: int
) -> int:
    """Return the size of the smallest subset of `nested_subset` in which each label occurs."""
    ordered = _nested_order(tracks, group_columns, label_column, seed)
    labels = [_labels(track, label_column) for track in ordered]
    missing = set().union(*labels)
    for number, own in enumerate(labels):
        missing -= own
        if not missing:
            return number + 1
    return len(ordered)


def _nested_order(
    tracks: Sequence[Track],
    group_columns: Sequence[str],
    label_column: str | None,
    seed: int,
) -> list[Track]:
    """Return the tracks by groups in a random order, first those that cover all labels, the rarest first."""
    by_id = sorted(tracks, key=lambda track: track.id)
    _, groups = group_tracks(by_id, group_columns)
    names = sorted(set(groups))
    generator = draw_generator(seed, 0, "", "subset")
    names = [names[n] for n in generator.permutation(len(names))]
    members: dict[str, list[Track]] = {name: [] for name in names}
    for track, name in zip(by_id, groups, strict=True):
        members[name].append(track)
    for own in members.values():
        own[:] = [own[n] for n in generator.permutation(len(own))]
    counts = Counter(label for track in tracks for label in _labels(track, label_column))
    first: list[Track] = []
    covered: set[str] = set()
    for label, _ in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        if label not in covered:
            track = next(
                track
                for name in names
                for track in members[name]
                if label in _labels(track, label_column)
            )
            first.append(track)
            covered |= _labels(track, label_column)
    ids = {track.id for track in first}
    return [*first, *(t for name in names for t in members[name] if t.id not in ids)]


def _assign(strata: Sequence[str], groups: Sequence[str], num_folds: int, seed: int) -> list[int]:
    """Return the number of the fold of each track; strata are spread where one of them reaches every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    if max(Counter(strata).values()) < num_folds:  # which scikit-learn refuses
        strata = [""] * len(strata)
    splitter = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=seed)
    folds = np.zeros(len(groups), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare labels are not in every fold
        for number, (_, drawn) in enumerate(splitter.split(groups, strata, groups)):
            folds[drawn] = number
    return folds.tolist()


def _rarest_labels(tracks: Sequence[Track], column: str | None) -> list[str]:
    """Return the rarest label of each track; empty without any."""
    labels = [_labels(track, column) for track in tracks]
    counts = Counter(label for own in labels for label in own)
    return [min(own, key=lambda label: (counts[label], label), default="") for own in labels]


def _labels(track: Track, column: str | None) -> set[str]:
    try:
        return set() if column is None else set(as_labels(track, column))
    except ValueError:
        return set()  # the task reports it
