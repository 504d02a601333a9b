"""Splits: one made for the user keeps groups together; one of the data's own is kept."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises

from m2v_finetune.data.manifest import SPLITS, Track
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.data.values import as_texts
from m2v_finetune.errors import UserError


def make_track(number: int, *, split: str | None = None, **columns) -> Track:
    name = f"{number}.mp3"
    return Track(
        folder=Path(),
        id=name,
        path=Path("/music") / name,
        split=split,
        columns=columns,
        origin=f"m.csv:{number}",
    )


def split(tracks, *, seed=0, group_columns=("artist", "album"), validation=0.1, test=0.2):
    return split_tracks(
        tracks,
        group_columns=group_columns,
        validation_fraction=validation,
        test_fraction=test,
        seed=seed,
    )


def sides(splits) -> dict[str, str]:
    return {track.id: name for name, members in splits.items() for track in members}


@settings(max_examples=150, deadline=None)
@given(
    artists=st.lists(st.integers(0, 12), min_size=3, max_size=60),
    seed=st.integers(0, 2**32 - 1),
    validation=st.floats(0.01, 0.98),
    share=st.floats(0.01, 0.99),
    column=st.sampled_from(["artist", "album"]),
)
def test_a_drawn_split_keeps_groups_together(artists, seed, validation, share, column):
    test = share * (1 - validation)
    tracks = [make_track(n, **{column: f"a{a}"}) for n, a in enumerate(artists)]
    if len(set(artists)) < 3:
        with raises("split-too-few-groups", f"'{column}'"):
            split(tracks, seed=seed, validation=validation, test=test)
        return
    splits = split(tracks, seed=seed, validation=validation, test=test)
    assert list(splits) == list(SPLITS)
    assert sorted(sides(splits)) == sorted(track.id for track in tracks)  # none lost, none twice
    assert all(splits.values())
    assert all(track.split == name for name, members in splits.items() for track in members)
    groups = [{track.columns[column] for track in members} for members in splits.values()]
    assert sum(len(names) for names in groups) == len(set().union(*groups))


def test_the_shares_are_shares_of_groups():
    splits = split([make_track(n, artist=f"a{n % 100}") for n in range(300)])
    counts = {name: len({t.columns["artist"] for t in m}) for name, m in splits.items()}
    assert counts == {"train": 70, "validation": 10, "test": 20}


def test_a_seed_gives_one_split_whatever_the_order_of_tracks():
    tracks = [make_track(n, artist=f"a{n % 20}") for n in range(60)]
    first = sides(split(tracks))
    assert sides(split(tracks)) == first
    assert sides(split(tracks[::-1])) == first
    assert sides(split(tracks, seed=1)) != first


def test_tracks_without_a_group_are_their_own_groups():
    known = [make_track(n, artist="one band") for n in range(10)]
    unknown = [make_track(n, artist="") for n in range(10, 20)]
    unknown += [make_track(n) for n in range(20, 30)]
    side = sides(split(known + unknown))
    assert len({side[track.id] for track in known}) == 1
    assert {side[track.id] for track in unknown} == set(SPLITS)


def test_the_first_column_that_exists_is_the_group():
    tracks = [make_track(n, artist=f"a{n % 5}", album=f"b{n}") for n in range(50)]
    splits = split(tracks)
    artists = [{t.columns["artist"] for t in members} for members in splits.values()]
    assert sum(len(a) for a in artists) == 5
    side = sides(split(tracks, group_columns=("label", "album")))
    spread = {side[track.id] for track in tracks if track.columns["artist"] == "a0"}
    assert len(spread) > 1  # albums are the groups now


def test_without_a_group_column_tracks_are_drawn():
    splits = split([make_track(n) for n in range(10)])
    assert {name: len(members) for name, members in splits.items()} == {
        "train": 7,
        "validation": 1,
        "test": 2,
    }


def test_too_few_groups_are_refused():
    with raises("split-too-few-groups", "2 values of 'artist'", "need 3", "data.group_columns"):
        split([make_track(n, artist=f"a{n % 2}") for n in range(10)])
    with raises("split-too-few-groups", "2 tracks"):
        split([make_track(n) for n in range(2)])


def test_a_split_of_the_data_is_kept():
    names = ["train", "test", "validation", "train", "test"]
    tracks = [make_track(n, split=name, artist="one") for n, name in enumerate(names)]
    splits = split(tracks)
    assert [sides(splits)[track.id] for track in tracks] == names
    assert [t.id for t in splits["train"]] == ["0.mp3", "3.mp3"]  # in the order of the manifest


def test_an_empty_split_of_the_data_is_refused():
    tracks = [make_track(n, split=name) for n, name in enumerate(["train", "train", "test"])]
    with raises("split-empty", "validation", "'train': 2", "'test': 1"):
        split(tracks)


# -- groups that are no text ----------------------------------------------------------------------

VALUES = {
    "numbers from 0": [0, 1, 2, 3],
    "floats from 0, as of a table with gaps": [0.0, 1.0, 2.0, 3.0],
    "booleans and text": [False, True, "a", "b"],
    "0 alone fills the column": [0, None, None, None],
    "text and numbers that are the same": ["0", 1, "1", 0, 2, "3"],
    "one name in two Unicode forms": ["Bjo\u0308rk", "Bj\u00f6rk", "a", "b"],
    "spaces around": ["a ", " a", "b", "c"],
    "several artists": [["a", "b"], "b", "c", "d"],
    "several artists, over others": [["a", "b"], ["b", "c"], ["c", "d"], "e", "f"],
    "several artists in a CSV": ["a; b", "b", "c", "d"],
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("seed", range(4))
def test_groups_of_any_value_are_on_one_side(case, seed):
    values = VALUES[case]
    tracks = [make_track(n, artist=values[n % len(values)]) for n in range(40)]
    splits = split(tracks, seed=seed, validation=0.25, test=0.25)
    sides: dict[str, set[str]] = {}
    for name, members in splits.items():
        for track in members:
            for text in as_texts(track.columns["artist"]):
                sides.setdefault(text, set()).add(name)
    assert sides
    assert all(len(names) == 1 for names in sides.values()), sides


@pytest.mark.parametrize("value", [None, "", " ", float("nan"), [], [None], ";"])
def test_what_is_missing_is_no_group(value):
    tracks = [make_track(n, artist=value) for n in range(30)]
    assert all(split(tracks).values())  # one group would be too few
    named = [make_track(n, artist=value, album="one") for n in range(30)]
    with raises("split-too-few-groups", "'album'"):
        split(named)


def test_a_group_column_is_found_in_capitals():
    tracks = [make_track(n, Artist="one") for n in range(30)]
    with raises("split-too-few-groups", "1 values of 'artist'"):
        split(tracks)


def test_groups_that_cannot_be_read_are_listed():
    tracks = [make_track(n, artist=[{"name": "a"}, "b"][n % 2]) for n in range(4)]
    with raises("split-bad-groups", "(2):", "m.csv:0:", "'artist'", "data.group_columns"):
        split(tracks)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=20, max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_joined_groups_do_not_depend_on_the_order(rows, order):
    tracks = [make_track(n, artist=values) for n, values in enumerate(rows)]
    try:
        first = sides(split(tracks))
    except UserError:
        return
    order.shuffle(tracks)
    assert sides(split(tracks)) == first
    of_artist: dict[int, set[str]] = {}
    for n, values in enumerate(rows):
        for value in values:
            of_artist.setdefault(value, set()).add(first[f"{n}.mp3"])
    assert all(len(names) == 1 for names in of_artist.values())
