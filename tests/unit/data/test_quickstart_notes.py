"""The single notes that ship, read file by file, and what the script plans and renders."""

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile as sf

from m2v_finetune.data.quickstart import QUICKSTARTS
from m2v_finetune.data.sources import load_tracks

pytestmark = pytest.mark.exhaustive


NAMES = [
    "quickstart",
    "quickstart-melody",
    "quickstart-notes",
    "quickstart-stems",
    "quickstart-structure",
    "quickstart-voices",
]
FOLDER = QUICKSTARTS["quickstart-notes"].parent
COUNTS = {"train": 296, "validation": 56, "test": 88}
SOUNDFONTS = {
    "train": "FluidR3_GM",
    "validation": "FluidR3_GM",
    "test": "MuseScore_General",
}
FAMILIES = {"brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string"}
PITCHES = set(range(40, 77))
SAMPLE_RATE_HZ = 24_000


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    text = (FOLDER / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def audio(rows: list[dict]) -> dict[str, np.ndarray]:
    """All notes, decoded."""
    return {row["id"]: sf.read(FOLDER / row["path"])[0] for row in rows}


@pytest.fixture(scope="module")
def composer(repository: Path) -> Iterator[ModuleType]:
    """The script, imported, with `scripts/` on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "scripts"))
        yield importlib.import_module("compose_quickstart")


def pitch_of(note: np.ndarray) -> float:
    """MIDI pitch of the period of a note between 0.1 and 0.6 s, by autocorrelation.

    Of the periods that fit nearly as well as the best, the shortest is taken, which is the
    fundamental's.
    """
    excerpt = note[SAMPLE_RATE_HZ // 10 : SAMPLE_RATE_HZ * 6 // 10]
    length = len(excerpt)
    power = np.abs(np.fft.rfft(excerpt, 2 * length)) ** 2
    products = np.fft.irfft(power)[:length] / np.arange(length, 0, -1)
    lags = np.arange(SAMPLE_RATE_HZ // 1000, SAMPLE_RATE_HZ // 60)
    here, before, after = products[lags], products[lags - 1], products[lags + 1]
    peaks = (here >= before) & (here > after) & (here > 0.9 * here.max())
    first = int(np.argmax(peaks))
    shift = 0.5 * (before - after)[first] / (before - 2 * here + after)[first]
    return float(69 + 12 * np.log2(SAMPLE_RATE_HZ / (lags[first] + shift) / 440))


def test_every_split_has_its_notes_families_and_font(rows: list[dict]) -> None:
    assert Counter(row["split"] for row in rows) == COUNTS
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    for row in rows:
        assert set(row) == {
            "id",
            "path",
            "split",
            "instrument",
            "pitch",
            "velocity",
            "program",
            "soundfont",
        }
        assert row["soundfont"] == SOUNDFONTS[row["split"]]
        assert row["path"] == f"audio/{row['id']}.opus"
    for split, count in COUNTS.items():
        members = [row for row in rows if row["split"] == split]
        families = Counter(row["instrument"] for row in members)
        assert set(families) == FAMILIES
        assert set(families.values()) == {count // len(FAMILIES)}
        pitches = Counter(row["pitch"] for row in members)
        assert set(pitches) == PITCHES
        assert max(pitches.values()) - min(pitches.values()) <= 1


def test_every_family_plays_every_pitch_in_train(rows: list[dict]) -> None:
    played = {(row["instrument"], row["pitch"]) for row in rows if row["split"] == "train"}
    assert played == {(family, pitch) for family in FAMILIES for pitch in PITCHES}


@pytest.mark.parametrize("column", ["program", "velocity"])
def test_no_program_and_no_velocity_is_in_two_splits(rows: list[dict], column: str) -> None:
    values = [{row[column] for row in rows if row["split"] == split} for split in COUNTS]
    assert sum(map(len, values)) == len(set.union(*values))
    assert min(map(len, values)) >= 2


def test_a_program_belongs_to_one_family(rows: list[dict]) -> None:
    families = {row["program"]: row["instrument"] for row in rows}
    assert all(families[row["program"]] == row["instrument"] for row in rows)
    assert len(families) == 6 * len(FAMILIES)


def test_the_folder_is_small_and_holds_only_what_the_manifest_names(rows: list[dict]) -> None:
    found = {path for path in FOLDER.rglob("*") if path.is_file()}
    named = {FOLDER / row["path"] for row in rows}
    assert found == named | {FOLDER / "manifest.jsonl", FOLDER / "dataset.json"}
    assert sum(path.stat().st_size for path in found) < 1_700_000


def test_every_note_is_mono_at_24_khz_and_1_s(
    rows: list[dict], audio: dict[str, np.ndarray]
) -> None:
    for row in rows:
        info = sf.info(FOLDER / row["path"])
        assert (info.format, info.subtype, info.channels) == ("OGG", "OPUS", 1)
        assert info.samplerate == SAMPLE_RATE_HZ
        assert audio[row["id"]].shape == (SAMPLE_RATE_HZ,)


def test_every_note_sounds_from_the_start_and_none_clips(audio: dict[str, np.ndarray]) -> None:
    assert len(audio) == sum(COUNTS.values())
    for name, note in audio.items():
        assert 0.03 < np.abs(note).max() < 1.0, name
        assert np.sqrt(np.mean(note[: SAMPLE_RATE_HZ // 4] ** 2)) > 0.003, name


def test_notes_sound_at_their_pitch(rows: list[dict], audio: dict[str, np.ndarray]) -> None:
    """Organs are left out: their stops sound octaves below and above the key."""
    errors = [
        pitch_of(audio[row["id"]]) - row["pitch"] for row in rows if row["instrument"] != "organ"
    ]
    assert len(errors) == sum(COUNTS.values()) * 7 // 8
    # All but two of 385 when written; those two are heard an octave high.
    assert np.mean(np.abs(errors) < 0.5) > 0.98
    assert abs(np.median(errors)) < 0.1


def test_louder_velocities_are_louder(rows: list[dict], audio: dict[str, np.ndarray]) -> None:
    train = [row for row in rows if row["split"] == "train"]
    levels = {
        velocity: np.mean(
            [np.sqrt(np.mean(audio[r["id"]] ** 2)) for r in train if r["velocity"] == velocity]
        )
        for velocity in (55, 80, 105, 127)
    }
    assert sorted(levels, key=levels.__getitem__) == [55, 80, 105, 127]
    assert levels[127] > 3 * levels[55]


def test_the_script_plans_what_ships_to_the_byte(composer: ModuleType, tmp_path: Path) -> None:
    rows = [composer.note_row(p, SOUNDFONTS[p.split]) for p in composer.plan_notes(composer.SEED)]
    composer.write_manifest(tmp_path, "quickstart-notes", rows)
    for name in ("manifest.jsonl", "dataset.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_rendering_again_gives_the_shipped_notes(
    composer: ModuleType, audio: dict[str, np.ndarray]
) -> None:
    soundfont = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    if shutil.which("fluidsynth") is None or not soundfont.is_file():
        pytest.skip("needs fluidsynth and fluid-soundfont-gm")
    plans = [
        plan
        for plan in composer.plan_notes(composer.SEED)
        if (plan.split, plan.instrument) == ("validation", "flute")
    ]
    rendered = composer.render_notes(plans, soundfont, "fluidsynth")
    assert len(rendered) == 7
    for name, note in rendered.items():
        agreement = np.dot(note, audio[name]) / np.linalg.norm(note) / np.linalg.norm(audio[name])
        # The encoder loses detail, and neither moves a note nor changes its level.
        assert agreement > 0.9
        assert 0.9 < np.linalg.norm(audio[name]) / np.linalg.norm(note) < 1.1


def test_a_sound_that_is_there_is_not_written_again(composer: ModuleType, tmp_path: Path) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    path = tmp_path / "audio" / "tone.opus"
    composer.write_sound(path, tone)
    first = path.read_bytes()
    composer.write_sound(path, tone)
    assert path.read_bytes() == first
    composer.write_sound(path, tone[::-1])
    assert path.read_bytes() != first
    with pytest.raises(SystemExit, match=r"tone\.opus.* 1\.50"):
        composer.write_sound(path, 3 * tone)


def test_what_is_no_longer_part_of_the_data_is_removed(
    composer: ModuleType, tmp_path: Path
) -> None:
    kept, stale = tmp_path / "stems" / "a" / "bass.ogg", tmp_path / "stems" / "b" / "bass.ogg"
    for path in (kept, stale):
        path.parent.mkdir(parents=True)
        path.touch()
    composer.remove_others((tmp_path / "stems",), {kept})
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "stems", kept.parent, kept]


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_a_data_source_by_its_name(name: str) -> None:
    tracks, info = load_tracks(name, label_column="tags")
    assert set(QUICKSTARTS) == set(NAMES)
    assert info.name == f"m2v-{name}".removesuffix("-stems")
    assert info.licence.startswith("CC0-1.0")
    assert {track.split for track in tracks} == {"train", "validation", "test"}
    assert all(track.path.is_file() for track in tracks)
