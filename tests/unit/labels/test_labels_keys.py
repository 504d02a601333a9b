"""The 24 keys: names, spellings and transposition."""

import gzip
import json
from pathlib import Path

import mir_eval
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.keys import KEYS, PITCH_CLASSES, key_parts, parse_key, transpose_key

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
keys = st.sampled_from(KEYS)
semitones = st.integers(-100, 100)
quick = settings(deadline=None)


def test_keys_are_ordered_by_pitch_class_then_mode() -> None:
    assert len(set(KEYS)) == 24
    assert KEYS[0] == "C major"
    assert KEYS[9 + 12] == "A minor"
    assert [key_parts(key) for key in KEYS] == [(i % 12, i >= 12) for i in range(24)]


def test_mir_eval_reads_every_name_as_the_same_key() -> None:
    for index, key in enumerate(KEYS):
        mir_eval.key.validate_key(key)
        assert mir_eval.key.split_key_string(key) == (index % 12, ("major", "minor")[index >= 12])


@quick
@given(keys, semitones, semitones)
def test_transposing_is_additive_and_periodic_in_the_octave(key: str, a: int, b: int) -> None:
    assert transpose_key(transpose_key(key, a), b) == transpose_key(key, a + b)
    assert transpose_key(key, 12) == transpose_key(key, 0) == key
    assert transpose_key(transpose_key(key, a), -a) == key


@quick
@given(keys, semitones)
def test_transposing_moves_the_tonic_and_keeps_the_mode(key: str, shift: int) -> None:
    pitch_class, is_minor = key_parts(key)
    assert key_parts(transpose_key(key, shift)) == ((pitch_class + shift) % 12, is_minor)


@quick
@given(
    st.sampled_from(sorted(LETTERS)),
    st.booleans(),
    st.sampled_from([("", 0), ("#", 1), ("♯", 1), ("b", -1), ("♭", -1)]),
    st.sampled_from(["", " ", ":", "\t", ": ", " : "]),
    st.sampled_from(["major", "maj", "Major", "MAJ", "M", "minor", "min", "Minor", "MIN", "m"]),
    st.sampled_from(["", " ", "\n"]),
)
def test_every_spelling_is_read(
    letter: str, lower: bool, accidental: tuple[str, int], between: str, mode: str, end: str
) -> None:
    text = (letter.lower() if lower else letter) + accidental[0] + between + mode + end
    is_minor = mode == "m" or mode.lower().startswith("min")
    assert key_parts(parse_key(text)) == ((LETTERS[letter] + accidental[1]) % 12, is_minor)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Bb major", "A# major"),
        ("A#min", "A# minor"),
        ("F#:min", "F# minor"),
        ("c minor", "C minor"),
        ("Db maj", "C# major"),
        ("E\tminor", "E minor"),
        ("b minor", "B minor"),
        ("bb minor", "A# minor"),
        ("bbm", "A# minor"),
        ("Cb major", "B major"),
        ("B#:maj", "C major"),
        ("C:minor", "C minor"),
        ("B major ", "B major"),
    ],
)
def test_spellings_of_data_sets(text: str, key: str) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("C dorian", "'dorian'"),
        ("A:mixolydian", "'mixolydian'"),
        ("G other", "'other'"),
        ("C harmonic minor", "'harmonic minor'"),
        ("A minor / C major", "more than one"),
        ("A minor C major", "more than one"),
        ("A minor, C major", "more than one"),
        ("G minor/major", "more than one"),
        ("E / B / A minor", "more than one"),
        ("A/E major", "more than one"),
        ("A-A# minor", "more than one"),
        ("Bb", "'Bb major' or 'Bb minor'"),
        ("a", "'a major' or 'a minor'"),
        ("unknown", "no key"),
        ("atonal", "no key"),
        ("-", "no key"),
        ("", "no key"),
        ("X", "no key"),
        ("H minor", "no key"),
        ("B- major", "no key"),
        ("C## major", "no key"),
        ("Cmaj7", "no key"),
    ],
)
def test_what_is_no_key_is_refused_with_a_reason(text: str, reason: str) -> None:
    with fails(ValueError, f"'{text}'", 24, "'C major'", "'B minor'") as caught:
        parse_key(text)
    assert reason in str(caught.value).partition(". ")[0]


def test_transposing_no_key_is_refused() -> None:
    with fails(ValueError, "'C dorian'", "'dorian'"):
        transpose_key("C dorian", 1)


@quick
@given(st.text(max_size=12))
def test_any_text_is_a_key_or_a_value_error(text: str) -> None:
    try:
        assert parse_key(text) in KEYS
    except ValueError:
        assert text.strip() not in KEYS


def test_keys_of_the_quickstart_are_read_as_they_are() -> None:
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    names = [json.loads(line)["key"] for line in lines]
    assert len(names) == 280
    assert [parse_key(name) for name in names] == names


def test_keys_of_giantsteps_agree_in_both_of_their_spellings(shared_dir: Path) -> None:
    path = shared_dir / "splits" / "giantsteps_clips.json.gz"
    clips = json.loads(gzip.decompress(path.read_bytes()))
    seen = set()
    for clip in clips.values():
        key = parse_key(clip["y"])
        assert parse_key(clip["extra"]["key"].split("\t")[0]) == key
        seen.add(key)
    assert len(clips) == 7035
    assert seen == set(KEYS)
    assert {key.split()[0] for key in seen} == set(PITCH_CLASSES)
