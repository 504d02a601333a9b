"""Folders named by label or split: links, names of splits, and that nothing is passed over in silence."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

import datasets.data_files
import pytest
from support.messages import raises

from m2v_finetune.data.manifest import SPLIT_WORDS
from m2v_finetune.data.sources import load_tracks


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path, label_column: str | None = "tags") -> dict[str, tuple[str | None, str]]:
    """Split and label of each track."""
    tracks, _ = load_tracks(str(folder), label_column=label_column)
    assert all(track.path.is_file() for track in tracks)
    return {
        track.id: (track.split, track.columns[label_column][0] if label_column else "")
        for track in tracks
    }


def refuses(folder: Path, code: str, *values: object, label_column: str | None = "tags") -> None:
    with raises(code, *values):
        load_tracks(str(folder), label_column=label_column)


# -- links ----------------------------------------------------------------------------------------


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Two classes of two tracks each, and a third one on another drive."""
    touch(tmp_path, "music/jazz/1.wav", "music/jazz/2.wav", "music/pop/1.wav", "music/pop/2.wav")
    touch(tmp_path, "drive/rock/1.wav", "drive/rock/album/2.wav")
    return tmp_path / "music"


LINKED = {
    "a label": ("rock", "drive/rock", {"rock/1.wav", "rock/album/2.wav"}),
    "an album": ("jazz/album", "drive/rock/album", {"jazz/album/2.wav"}),
    "a file": ("pop/3.wav", "drive/rock/1.wav", {"pop/3.wav"}),
    "a link to a link": ("rock", "other", {"rock/1.wav", "rock/album/2.wav"}),
}


@pytest.mark.parametrize("case", LINKED)
def test_links_to_another_drive_are_followed(music, case):
    name, target, new = LINKED[case]
    (music.parent / "other").symlink_to(music.parent / "drive" / "rock")
    (music / name).symlink_to(music.parent / target)
    tracks = found(music)
    assert set(tracks) == {"jazz/1.wav", "jazz/2.wav", "pop/1.wav", "pop/2.wav", *new}
    assert all(label == track.split("/")[0] for track, (_, label) in tracks.items())
    assert set(found(music, None)) == set(tracks)


def test_a_source_that_is_a_link_itself(music):
    link = music.parent / "link"
    link.symlink_to(music)
    assert len(found(link)) == 4


LOOPS = {
    "to the folder": ("jazz/all", "."),
    "to its label": ("jazz/again", "jazz"),
    "to what is above the folder": ("jazz/up", ".."),
    "to itself": ("jazz/self", "jazz/self"),
}


@pytest.mark.parametrize("case", LOOPS)
def test_loops_of_links_end_and_are_named(music, case, caplog):
    shutil.rmtree(music.parent / "drive")
    name, target = LOOPS[case]
    (music / name).symlink_to(music / target)
    assert len(found(music)) == 4
    assert str(music) in caplog.text
    assert name in caplog.text


def test_two_links_that_lead_to_each_other(music, caplog):
    (music / "jazz" / "x").symlink_to(music / "jazz" / "y")
    (music / "jazz" / "y").symlink_to(music / "jazz" / "x")
    assert len(found(music)) == 4
    assert "jazz/x" in caplog.text
    assert "jazz/y" in caplog.text


@pytest.mark.parametrize("name", ["rock", "jazz/album", "Dr. Dre"])
def test_a_link_to_nothing_is_named(music, name, caplog):
    (music / name).symlink_to("/mnt/drive that is not there")
    assert len(found(music)) == 4
    reason = os.strerror(errno.ENOENT)
    assert re.search(f"{name}.* /mnt/drive that is not there .*{reason}", caplog.text)


def test_a_link_to_no_audio_is_a_track_for_the_check_to_name(music):
    (music / "jazz" / "3.wav").symlink_to("/mnt/none.wav")
    tracks, _ = load_tracks(str(music), label_column="tags")
    assert "jazz/3.wav" in {track.id for track in tracks}


SECOND_NAMES = {  # of the same files, with the label or split that the first name has
    "a folder": ("jazz/best", "jazz/album"),
    "a file": ("jazz/3.wav", "jazz/1.wav"),
    "a file beside the labels": ("loose.wav", "jazz/1.wav"),
}


@pytest.mark.parametrize("case", SECOND_NAMES)
def test_a_file_of_two_names_is_read_once(music, case, caplog):
    touch(music, "jazz/album/4.wav")
    name, target = SECOND_NAMES[case]
    (music / name).symlink_to(music / target)
    tracks = found(music)
    assert set(tracks) == {"jazz/1.wav", "jazz/2.wav", "jazz/album/4.wav", "pop/1.wav", "pop/2.wav"}
    [record] = caplog.records
    assert f"{music}: 1 " in record.getMessage()


CONFLICTS = {
    "labels": ("swing", "jazz", ["swing/1.wav", "jazz/1.wav", "(2)"]),
    "a file": ("pop/jazzy.wav", "jazz/2.wav", ["pop/jazzy.wav", "jazz/2.wav", "(1)"]),
    "a folder": ("pop/all jazz", "jazz", ["pop/all jazz/1.wav", "jazz/1.wav", "(2)"]),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_file_of_two_labels_is_refused(music, case):
    name, target, parts = CONFLICTS[case]
    (music / name).symlink_to(music / target)
    refuses(music, "folder-conflicting-links", *parts)


def test_hard_links_are_names_of_one_file(music, caplog):
    (music / "jazz" / "again.wav").hardlink_to(music / "jazz" / "1.wav")
    assert sorted(found(music)) == ["jazz/1.wav", "jazz/2.wav", "pop/1.wav", "pop/2.wav"]
    [record] = caplog.records
    assert "jazz/1.wav" in record.getMessage()
    (music / "pop" / "hard.wav").hardlink_to(music / "jazz" / "2.wav")
    refuses(music, "folder-conflicting-links", "pop/hard.wav", "jazz/2.wav", "(1)")


@pytest.mark.parametrize(
    "folds", [("fold1", "fold2"), ("Fold 10", "Fold 2"), ("split_1", "split_2")]
)
def test_folds_are_no_labels(tmp_path, folds):
    for fold in folds:
        touch(tmp_path, f"{fold}/jazz/{fold}a.wav", f"{fold}/rock/{fold}b.wav")
    refuses(tmp_path, "folder-folds", *folds, "jazz, rock")
    touch(tmp_path, "readme.wav")  # beside the folders
    refuses(tmp_path, "folder-folds", *folds, "jazz, rock")
    assert len(found(tmp_path, label_column=None)) == 5


@pytest.mark.parametrize(
    ("paths", "num_notes"),
    [
        (
            [
                "Entrenamiento/jazz/1.wav",
                "Entrenamiento/rock/2.wav",
                "Prueba/jazz/3.wav",
                "Prueba/rock/4.wav",
            ],
            1,
        ),
        (["jazz/cd1/1.wav", "jazz/cd2/2.wav", "rock/cd1/3.wav"], 0),
        (["jazz/cd1/1.wav", "rock/cd1/2.wav"], 0),
        (["part1/jazz/1.wav", "part1/rock/2.wav", "part2/pop/3.wav"], 0),
        (
            [
                "jazz/1.wav",
                "jazz/live/a.wav",
                "jazz/studio/b.wav",
                "rock/live/2.wav",
                "rock/studio/2.wav",
            ],
            0,
        ),
    ],
)
def test_folders_that_hold_the_same_names_are_labels_and_named(tmp_path, caplog, paths, num_notes):
    touch(tmp_path, *paths)
    tracks = found(tmp_path)
    assert len(tracks) == len(paths)
    assert len(caplog.records) == num_notes
    if num_notes:
        assert "Entrenamiento, Prueba" in caplog.records[0].getMessage()
        assert "jazz, rock" in caplog.records[0].getMessage()


def test_a_file_of_two_splits_is_refused(tmp_path):
    touch(tmp_path, "train/jazz/1.wav", "train/jazz/2.wav", "validation/jazz/3.wav")
    (tmp_path / "test" / "jazz").mkdir(parents=True)
    (tmp_path / "test" / "jazz" / "4.wav").symlink_to(tmp_path / "train" / "jazz" / "1.wav")
    for label_column in ("tags", None):
        values = ("train/jazz/1.wav", "test/jazz/4.wav")
        refuses(tmp_path, "folder-conflicting-links", *values, label_column=label_column)


def test_links_of_links_do_not_multiply(tmp_path):
    """Thirty folders with two links each to the next one: a thousand million paths, one file."""
    for n in range(30):
        (tmp_path / "jazz" / str(n)).mkdir(parents=True)
        for name in ("a", "b"):
            (tmp_path / "jazz" / str(n) / name).symlink_to(tmp_path / "jazz" / str(n + 1))
    touch(tmp_path, "jazz/30/1.wav", "pop/2.wav")
    assert set(found(tmp_path)) == {"jazz/30/1.wav", "pop/2.wav"}


# -- what is not read -----------------------------------------------------------------------------


def test_what_is_not_read_is_counted_and_named(music, caplog):
    touch(music, "loose.wav", "jazz/1.mid", "jazz/2.mid", "jazz/3.MID", "pop/x.txt", "pop/cover")
    touch(
        music, "blues/song.kar", ".hidden/a.wav", "jazz/.cover.jpg", "pop/._1.wav", "dataset.json"
    )
    (music / "dataset.json").write_text('{"name": "mine"}')
    assert len(found(music)) == 4
    others, loose, empty = sorted(
        (record.getMessage().partition(f"{music}: ")[2] for record in caplog.records), reverse=True
    )
    assert re.match(r"6 .* 4 .*: \.mid \(3\), ", others)
    assert "(1)" in others
    assert re.match("1 .*: loose.wav", min(loose, empty))
    assert re.match("1 .*: blues", max(loose, empty))
    caplog.clear()
    assert len(found(music, None)) == 5
    assert "loose" not in caplog.text


def test_many_loose_files_are_counted(music, caplog):
    touch(music, *(f"{n}.wav" for n in range(8)))
    assert len(found(music)) == 4
    [record] = caplog.records
    assert re.search(r": 8 .*: 0\.wav, 1\.wav, 2\.wav, 3\.wav, 4\.wav\b.* 3 ", record.getMessage())


def test_without_problems_nothing_is_logged(music, caplog):
    assert len(found(music)) == 4
    assert not caplog.records


def test_what_is_not_read_is_in_the_message_where_nothing_is(tmp_path):
    touch(tmp_path, "jazz/1.mid", "a.wav")
    refuses(tmp_path, "folder-no-audio", ".mid (1)", ": a.wav")


@pytest.mark.parametrize(
    ("files", "split"),
    [
        (("train/0.wav", "valid/1.wav", "testing/2.wav"), "testing"),
        (("jazz_train/0.wav", "jazz_test/1.wav", "rock_train/2.wav"), "jazz_test"),
        (("Test/a.wav", "Train/b.wav"), "Test"),
    ],
)
def test_audio_directly_in_folders_of_splits_is_explained(tmp_path, files, split):
    touch(tmp_path, *files)
    refuses(tmp_path, "folder-no-audio", "names of splits", f"{split}/jazz/song.mp3")


def as_nobody(call) -> str:
    """Return the text that a call gives in a process of a user with no rights."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, call().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.skipif(os.getuid() != 0, reason="root alone may act as another user")
def test_a_folder_that_cannot_be_entered_is_named(caplog):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own is closed to others
    try:
        folder.chmod(0o755)
        touch(folder, "jazz/1.wav", "pop/1.wav", "pop/inner/2.wav", "lost+found/x.wav")
        for name in ("jazz", "pop/inner", "lost+found"):
            (folder / name).chmod(0o700)
        text = as_nobody(lambda: f"{sorted(found(folder))}\n{caplog.text}")
    finally:
        shutil.rmtree(folder)
    assert text.startswith("['pop/1.wav']\n")
    reason = os.strerror(errno.EACCES)
    assert f": jazz ({reason})" in text
    assert f": pop/inner ({reason})" in text
    assert "lost+found" not in text


# -- splits ---------------------------------------------------------------------------------------


def test_the_words_for_splits_are_those_of_the_hub():
    words = {
        word: str(split)
        for split, words in datasets.data_files.SPLIT_KEYWORDS.items()
        for word in words
    }
    assert words == SPLIT_WORDS
    assert set(" -._0123456789") == set(datasets.data_files.NON_WORDS_CHARS) | set("0123456789")


@pytest.mark.parametrize("word", SPLIT_WORDS)
@pytest.mark.parametrize(
    "write", [str, str.upper, str.capitalize, "{}_set".format, "my {} 1".format]
)
def test_names_of_splits(tmp_path, word, write):
    others = [w for w in ("train", "validation", "test") if w != SPLIT_WORDS[word]]
    touch(tmp_path, f"{write(word)}/jazz/1.wav", *(f"{w}/jazz/2.wav" for w in others))
    assert found(tmp_path) == {
        f"{write(word)}/jazz/1.wav": (SPLIT_WORDS[word], "jazz"),
        **{f"{w}/jazz/2.wav": (w, "jazz") for w in others},
    }
    assert {split for split, _ in found(tmp_path, None).values()} == {"train", "validation", "test"}


SPLITS_BESIDE_OTHERS = [
    ["train/1.wav", "test/1.wav", "unlabelled/1.wav"],
    ["train/jazz/1.wav", "test/jazz/1.wav", "extra/jazz/1.wav"],
    ["test/1.wav", "jazz/1.wav"],
    ["Testing/1.wav", "jazz/1.wav", "pop/1.wav"],
    ["train_set/1.wav", "test_set/1.wav", "unlabelled/1.wav"],
    ["eval/1.wav", "jazz/1.wav"],
    ["testset/1.wav", "jazz/1.wav"],
    ["trainData/1.wav", "unlabelled/1.wav"],
    ["train-data/1.wav", "val-data/1.wav", "other/1.wav"],
]


@pytest.mark.parametrize("above", ["a", "a/b", "my music/wav"])
@pytest.mark.parametrize("label_column", ["tags", None])
def test_splits_beside_others_are_refused_below_single_folders(tmp_path, above, label_column):
    names = [f"{above}/{name}/jazz/1.wav" for name in ("train", "test", "unlabelled")]
    touch(tmp_path, *names)
    values = ("test, train", "unlabelled")
    refuses(tmp_path, "folder-mixed-splits", *values, label_column=label_column)


@pytest.mark.parametrize("names", SPLITS_BESIDE_OTHERS)
@pytest.mark.parametrize("label_column", ["tags", None])
def test_splits_beside_others_are_refused_and_explained(tmp_path, names, label_column):
    touch(tmp_path, *names)
    values = [name.split("/")[0] for name in names]
    refuses(tmp_path, "folder-mixed-splits", *values, label_column=label_column)


LABELS = [
    ["steam train horn/1.wav", "bus/1.wav"],  # one name with such a word in it is a label
    ["test tone/1.wav", "test signal/1.wav"],
    ["trainer/1.wav", "latest/1.wav", "develop/1.wav"],
    ["jazz/test/1.wav", "jazz/2.wav", "rock/1.wav"],  # an album of that name
    ["pop/Dev/1.wav", "pop/Ana/1.wav", "rock/1.wav"],
]


@pytest.mark.parametrize("names", LABELS)
def test_labels_that_sound_like_splits_are_labels(tmp_path, names):
    touch(tmp_path, *names)
    assert found(tmp_path) == {name: (None, name.split("/")[0]) for name in names}


def test_a_label_below_the_splits_may_have_any_name(tmp_path):
    names = [
        f"{split}/{label}/1.wav" for split in ("train", "dev", "eval") for label in ("test", "val")
    ]
    touch(tmp_path, *names)
    assert {label for _, label in found(tmp_path).values()} == {"test", "val"}
    assert {split for split, _ in found(tmp_path).values()} == {"train", "validation", "test"}


def test_one_folder_below_labels_with_the_name_of_a_split_is_named(tmp_path, caplog):
    touch(tmp_path, "pop/Dev/1.wav", "pop/Ana/1.wav", "rock/1.wav")
    found(tmp_path)
    assert "pop/Dev" in caplog.text


BELOW = {
    "beside each other": ["jazz/train/1.wav", "jazz/test/2.wav", "pop/3.wav"],
    "beside a stranger": ["jazz/train/1.wav", "jazz/test/2.wav", "jazz/other/3.wav", "pop/4.wav"],
    "beside audio": ["jazz/1.wav", "jazz/test/2.wav", "pop/3.wav", "pop/test/4.wav"],
    "one below each label": ["jazz/train/1.wav", "pop/test/2.wav"],
    "one beside strangers": ["jazz/a/1.wav", "jazz/test/2.wav", "pop/a/3.wav", "pop/test/4.wav"],
    "deeper": ["jazz/ana/train/1.wav", "jazz/ana/test/2.wav", "pop/3.wav"],
    "below folds": ["a/train/jazz/1.wav", "a/test/jazz/2.wav", "b/train/jazz/3.wav"],
    "sets": ["jazz/trainset/1.wav", "jazz/testData/2.wav", "pop/3.wav"],
    "below the labels of splits": [
        *("train/jazz/train/1.wav", "train/jazz/test/2.wav", "train/pop/3.wav"),
        *("val/jazz/4.wav", "test/pop/5.wav"),
    ],
}


@pytest.mark.parametrize("case", BELOW)
def test_splits_below_labels_are_refused(tmp_path, case):
    touch(tmp_path, *BELOW[case])
    refuses(tmp_path, "folder-splits-below-labels")


@pytest.mark.parametrize("case", ["beside each other", "beside a stranger", "deeper", "sets"])
def test_splits_at_any_depth_of_a_library_are_refused(tmp_path, case):
    touch(tmp_path, *BELOW[case])
    refuses(tmp_path, "folder-splits-below-labels", label_column=None)


WITHIN_SPLITS = [
    ["train/train/jazz/1.wav", "train/val/rock/2.wav", "test/test/jazz/3.wav"],
    ["train/train_audio/jazz/1.wav", "test/test_audio/jazz/2.wav"],
]


@pytest.mark.parametrize("names", WITHIN_SPLITS)
def test_splits_within_splits_are_refused(tmp_path, names):
    touch(tmp_path, *names)
    refuses(tmp_path, "folder-splits-below-splits")


def test_labels_below_splits_that_mix_names_of_splits_and_others_are_refused(tmp_path):
    touch(tmp_path, "train/train/1.wav", "train/val/2.wav", "test/jazz/3.wav")
    refuses(tmp_path, "folder-mixed-splits", "train, val", "jazz")


SINGLE_FOLDERS = {  # folders that hold all the others, above splits, above labels, and between them
    "two above splits": ("a/b/{split}/{label}/{n}.wav", True),
    "three above splits": ("a/b/c/{split}/{label}/{n}.wav", True),
    "one above labels": ("music/{label}/{n}.wav", False),
    "two above labels": ("my/music/{label}/{n}.wav", False),
    "below splits": ("{split}/audio/{label}/{n}.wav", True),
    "above and below splits": ("data/{split}/audio/wav/{label}/{n}.wav", True),
    "sets": ("{split}set/{label}/{n}.wav", True),
    "data": ("{split}Data/{label}/{n}.wav", True),
    "data in upper case": ("{split}_DATA/{label}/{n}.wav", True),
    "data sets": ("{split}ing-dataset-1/{label}/{n}.wav", True),
    "albums": ("a/{split}/{label}/album {n}/1.wav", True),
}


@pytest.mark.parametrize("case", SINGLE_FOLDERS)
def test_the_level_of_labels_is_found(tmp_path, case):
    pattern, has_splits = SINGLE_FOLDERS[case]
    words = {"train": "train", "validation": "valid", "test": "test"}
    expected = {}
    for split, word in words.items():
        for label in ("jazz", "rock"):
            name = pattern.format(split=word, label=label, n=f"{split} {label}")
            name = name.replace("validing", "val")
            expected[name] = (split if has_splits else None, label)
    touch(tmp_path, *expected)
    assert found(tmp_path) == expected
    if has_splits:
        assert {split for split, _ in found(tmp_path, None).values()} == set(words)


def test_one_split_alone_is_a_split(tmp_path):
    touch(tmp_path, "music/train/jazz/1.wav", "music/train/rock/2.wav")
    assert found(tmp_path) == {
        "music/train/jazz/1.wav": ("train", "jazz"),
        "music/train/rock/2.wav": ("train", "rock"),
    }


def test_a_folder_that_holds_audio_and_folders_names_the_label(tmp_path):
    touch(tmp_path, "music/1.wav", "music/a/2.wav", "music/b/3.wav")
    assert {label for _, label in found(tmp_path).values()} == {"music"}


def test_a_folder_above_the_splits_means_nothing(tmp_path):
    touch(tmp_path, "data/train/jazz/1.wav", "data/valid/jazz/2.wav", "data/testing/pop/3.wav")
    assert found(tmp_path) == {
        "data/train/jazz/1.wav": ("train", "jazz"),
        "data/valid/jazz/2.wav": ("validation", "jazz"),
        "data/testing/pop/3.wav": ("test", "pop"),
    }


# -- strange names --------------------------------------------------------------------------------

STRANGE = [
    b"caf\xe9",
    b"new\nline",
    b"-dash",
    "🎵".encode(),
    b" space ",
    b"a;b",
    b"100%",
    b"back\\slash",
    b'"quoted"',
    b"$HOME",
    b"CON",
]


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names_of_files_and_folders(tmp_path, name):
    text = os.fsdecode(name)
    touch(tmp_path, f"plain/{text}.wav", f"{text}/{text}.wav")
    tracks, _ = load_tracks(str(tmp_path), label_column="tags")
    assert len(tracks) == 2
    for track in tracks:
        assert track.path.is_file()
        track.id.encode()  # any file and terminal takes it
        track.origin.encode()
        track.columns["tags"][0].encode()


def test_a_source_whose_name_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcsik"))
    touch(folder, "jazz/1.wav")
    (track,), info = load_tracks(str(folder), label_column="tags")
    assert info.name == "m\\udcfcsik"
    track.origin.encode()
    (folder / "m.csv").write_text("path\njazz/1.wav\n")
    (track,), _ = load_tracks(str(folder / "m.csv"), label_column="tags")
    assert track.path.is_file()
