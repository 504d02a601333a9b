"""Hashes of labels: equal for labels that teach the same, whatever their file."""

import pytest
from support.clip_tracks import make_track

from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.labelled import label_hash
from m2v_finetune.tasks.tagging import Tagging

TAGS = Tagging(labels=("pop", "rock"), label_column="tags")
GENRE = Genre(labels=("1980", "jazz"), label_column="tags")
NUMBERS = Emotion(labels=("arousal", "valence"), means=(0.1, 0.2), stds=(1.0, 2.0))


@pytest.mark.parametrize(
    ("task", "same", "others"),
    [
        (TAGS, [["rock", "pop"], "pop; rock", "rock;rock;pop"], [["rock"], ["pop"], []]),
        (GENRE, ["1980", 1980, ["1980 "]], ["jazz"]),
    ],
)
def test_labels_in_other_words_are_the_same(task, same, others):
    def hashed(cell):
        return label_hash(task, make_track({"tags": cell}))

    assert len(set(map(hashed, same))) == 1
    assert None not in map(hashed, same)
    assert len({hashed(same[0]), *map(hashed, others)}) == 1 + len(others)


def test_numbers_are_compared_as_numbers():
    def hashed(arousal):
        return label_hash(NUMBERS, make_track({"arousal": arousal, "valence": "1"}))

    assert hashed("0.50") == hashed(0.5) == hashed("5e-1")
    assert hashed(0.5) != hashed(0.6)


def test_annotations_are_compared_by_their_content(tmp_path):
    paths = [tmp_path / name for name in ("a.beats", "b.beats", "c.beats")]
    for path, text in zip(paths, ("0.5\t1\n", "0.5\t1\n", "0.6\t1\n"), strict=True):
        path.write_text(text)
    task = BeatTracking(label_column="beats")
    one, same, other = (label_hash(task, make_track({"beats": str(path)})) for path in paths)
    assert one == same != other
    assert None not in (one, other)
    assert label_hash(task, make_track({"beats": str(tmp_path / "none.beats")})) is None


def test_a_task_of_another_kind_has_none():
    assert label_hash(object(), make_track({})) is None
