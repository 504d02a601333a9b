"""Makes labelled sets of real sound from Debian packages: notes, drum strokes, songs, stems, albums.

    apt-get install musescore-general-soundfont-lossless freepats hydrogen-drumkits nexuiz-music \
        fretsonfire-songs-muldjord fretsonfire-songs-sectoid planetblupi-music-ogg warzone2100-music \
        wesnoth-1.16-music
    python benchmarks/real_sound.py runs/real-sound

or, without installing the music, from a folder into which the packages were unpacked (`dpkg-deb -x`),
with `--root`. Each set is a folder with manifest.jsonl and audio (FLAC, 16 kHz, mono). No piece and no
sound font is among those that the small backbone is pre-trained on (scripts/pretraining_recordings.py), and
no audio ships.

- notes: single notes, each one recording of a sampled instrument. Instrument and pitch are the General MIDI
  program of the preset and the root key. Split by library, instrument and pitch.
- notes-by-library: the same; those of freepats are for testing.
- drums: single strokes. The label is in the name of the file. Split by kit.
- songs: excerpts of 16 s of recorded songs. Beats are those of notes.mid, by which the game plays. Split by
  song.
- stems: excerpts of 4 s of the guitar, or of all else. Split by song.
- albums: excerpts of 8 s of pieces; the label is the game that the piece is from. Split by piece.
"""

import argparse
import io
import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mido
import numpy as np
import soundfile as sf
import soxr
from sampled_notes import Recording, read_patches, read_soundfont, without_doubles

RATE_HZ = 16_000
NOTE_SECONDS = 1.0
SHORTEST_NOTE_SECONDS = 0.15
NOTE_PITCHES = range(36, 85)
NOTES_PER_FAMILY = 80
SONG_SECONDS, STEM_SECONDS, ALBUM_SECONDS = 16.0, 4.0, 8.0
SILENCE_RMS = 0.003
# General MIDI programs (0 to 127) of each family of instruments.
FAMILIES = {
    "piano": (0, 1, 2),
    "mallet": (8, 9, 10, 11, 12, 13, 14),
    "organ": (16, 17, 18, 19, 20, 21, 22, 23),
    "acoustic guitar": (24, 25),
    "electric guitar": (26, 27, 28, 29, 30),
    "bass": (32, 33, 34, 35, 36, 37),
    "strings": (40, 41, 42, 43, 44, 48),
    "plucked": (15, 45, 46),
    "voice": (52, 53),
    "brass": (56, 57, 58, 59, 60, 61),
    "reed": (64, 65, 66, 67, 68, 69, 70, 71),
    "flute": (72, 73, 74, 75, 76, 77, 79),
}
STROKES = {
    "kick": r"kick|bassdrum|^bd|^kd",
    "snare": r"snare|^sn\d*_|^sd_",
    "hat": r"hat|^hh|_hh|ohh|chh",
    "tom": r"tom(?!b)|^t\d_|^ft_|^tm\d*_",
    "cymbal": r"crash|ride|splash|china|cymbal|^rd|^rc_|^cc_|^cr\d*_",
}
NO_STROKE = r"rim|stick|click|cross|bell|choke|foot|empty"
DRUM_SPLITS = {
    "The Black Pearl 1.0": "test",
    "ElectricEmpireKit": "test",
    "Millo_MultiLayered3": "test",
    "ColomboAcousticDrumkit": "validation",
}
SONG_SPLITS = {
    "armygeddon": "train",
    "internal_degeneration": "train",
    "Escape from chaosland": "train",
    "Feelings": "train",
}
ALBUMS = {
    "wesnoth": "usr/share/games/wesnoth/1.16/data/core/music/*.ogg",
    "planetblupi": "usr/share/planetblupi/music/*.ogg",
    "warzone2100": "usr/share/games/warzone2100/music/albums/[lo]*/*.opus",
    "fretsonfire-muldjord": "usr/share/games/fretsonfire/data/songs/muldjord/*/song.ogg",
    "fretsonfire-sectoid": "usr/share/games/fretsonfire/data/songs/sectoid/*/song.ogg",
}
NEXUIZ = "usr/share/games/nexuiz/data/music.pk3"
EXCERPTS_PER_PIECE = 4

Row = dict[str, Any]


def drawn_split(name: str, *, train: float, validation: float) -> str:
    """Return the split that a name falls into, always the same."""
    share = zlib.crc32(name.encode()) / 2**32
    return "train" if share < train else "validation" if share < train + validation else "test"


def read_mono(file: Path | io.BytesIO) -> np.ndarray:
    """Return a file as mono at `RATE_HZ`: float32, (samples,)."""
    samples, rate_hz = sf.read(file, dtype="float32", always_2d=True)
    mono: np.ndarray = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)
    return mono


def is_silent(samples: np.ndarray) -> bool:
    """Return whether there is no sound to evaluate on."""
    return len(samples) == 0 or float(np.sqrt(np.mean(samples**2))) < SILENCE_RMS


def write_set(folder: Path, examples: Iterable[tuple[Row, np.ndarray]]) -> list[Row]:
    """Write audio and manifest of a set, and return its rows."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for row, samples in examples:
        path = folder / "audio" / f"{row['id']}.flac"
        peak = float(np.abs(samples).max())
        sf.write(path, samples * min(1.0, 0.95 / peak), RATE_HZ, subtype="PCM_16", format="FLAC")
        rows.append({**row, "path": f"audio/{path.name}"})
    write_manifest(folder, rows)
    return rows


def write_manifest(folder: Path, rows: list[Row]) -> None:
    """Write the manifest of a set."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    print(f"{folder.name}: {dict(Counter(row['split'] for row in rows))}", flush=True)


def notes(root: Path) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield the single notes: of each family those of lowest checksum, so that no program prevails."""
    libraries = {
        "MuseScore_General": read_soundfont(
            root / "usr/share/sounds/sf2/MuseScore_General_Full.sf2"
        ),
        "freepats": read_patches(root / "usr/share/midi/freepats/Tone_000"),
    }
    families = {program: name for name, members in FAMILIES.items() for program in members}
    found: dict[str, list[tuple[str, str, Recording]]] = defaultdict(list)
    for library, recordings in libraries.items():
        for recording in without_doubles(recordings):
            is_long = len(recording.samples) > SHORTEST_NOTE_SECONDS * recording.rate_hz
            is_in_range = recording.pitch in NOTE_PITCHES and recording.program in families
            if is_long and is_in_range and not is_silent(recording.samples):
                key = f"{library} {recording.program} {recording.name}"
                found[families[recording.program]].append((key, library, recording))
    index = 0
    for family, members in found.items():
        members.sort(key=lambda member: zlib.crc32(member[0].encode()))
        for _, library, recording in members[:NOTES_PER_FAMILY]:
            group = f"{library} {recording.program} {recording.pitch}"
            held = soxr.resample(recording.held(NOTE_SECONDS), recording.rate_hz, RATE_HZ)
            row = {
                "id": f"note-{index:04d}",
                "split": drawn_split(group, train=0.55, validation=0.15),
                "instrument": family,
                "pitch": recording.pitch,
                "program": recording.program,
                "library": library,
                "recording": recording.name,
            }
            index += 1
            yield row, np.pad(held, (0, max(0, round(NOTE_SECONDS * RATE_HZ) - len(held))))


def with_known_pitches(rows: list[Row]) -> list[Row]:
    """Return the rows whose pitch has a training note."""
    known = {row["pitch"] for row in rows if row["split"] == "train"}
    return [row for row in rows if row["pitch"] in known]


def by_library(rows: list[Row]) -> list[Row]:
    """Return the notes with other splits: those of freepats for testing."""
    other = []
    for row in rows:
        split = "validation" if row["split"] == "validation" else "train"
        split = "test" if row["library"] == "freepats" else split
        other.append({**row, "split": split, "path": f"../notes/{row['path']}"})
    return with_known_pitches(other)


def drums(root: Path) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield the drum strokes of kits whose files are named after the drum."""
    index = 0
    for path in sorted((root / "usr/share/hydrogen/data/drumkits").glob("*/*")):
        name = path.stem.lower()
        kinds = [kind for kind, pattern in STROKES.items() if re.search(pattern, name)]
        is_sound = path.suffix.lower() in (".flac", ".wav", ".aiff", ".aif", ".ogg")
        if not is_sound or len(kinds) != 1 or re.search(NO_STROKE, name):
            continue
        samples = read_mono(path)[: round(NOTE_SECONDS * RATE_HZ)]
        if is_silent(samples):
            continue
        kit = path.parent.name
        row = {
            "id": f"stroke-{index:04d}",
            "split": DRUM_SPLITS.get(kit, "train"),
            "instrument": kinds[0],
            "kit": kit,
            "file": path.name,
        }
        index += 1
        yield row, np.pad(samples, (0, round(NOTE_SECONDS * RATE_HZ) - len(samples)))


def song_folders(root: Path) -> list[Path]:
    """Return the folders of the songs."""
    return sorted(
        path.parent for path in (root / "usr/share/games/fretsonfire/data/songs").rglob("notes.mid")
    )


def excerpts(samples: np.ndarray, seconds: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield first sample and excerpt, one after the other, without the silent ones."""
    length = round(seconds * RATE_HZ)
    for start in range(0, len(samples) - length + 1, length):
        if not is_silent(samples[start : start + length]):
            yield start, samples[start : start + length]


def songs(root: Path, annotations: Path) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield excerpts of the songs, and write their beats: those of the game's clock."""
    annotations.mkdir(parents=True, exist_ok=True)
    for folder in song_folders(root):
        tempi = {
            message.tempo
            for track in mido.MidiFile(folder / "notes.mid").tracks
            for message in track
            if message.type == "set_tempo"
        }
        assert len(tempi) == 1, f"{folder.name} has several tempi"
        beat_seconds = tempi.pop() / 1e6
        stems = [read_mono(folder / name) for name in ("song.ogg", "guitar.ogg")]
        length = min(map(len, stems))
        mixture = stems[0][:length] + stems[1][:length]
        for index, (start, excerpt) in enumerate(excerpts(mixture, SONG_SECONDS)):
            start_seconds = start / RATE_HZ
            times = np.arange(0, length / RATE_HZ, beat_seconds) - start_seconds
            times = times[(times >= 0) & (times < SONG_SECONDS)]
            identifier = f"{folder.parent.name}-{folder.name}-{index:02d}".replace(" ", "_")
            text = "".join(f"{time:.4f}\n" for time in times)
            (annotations / f"{identifier}.beats").write_text(text, encoding="utf-8")
            row = {
                "id": identifier,
                "split": SONG_SPLITS.get(folder.name, "test"),
                "beats": f"annotations/{identifier}.beats",
                "song": folder.name,
                "tempo_bpm": round(60 / beat_seconds, 2),
            }
            yield row, excerpt


def stems(root: Path) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield excerpts of the guitars and of the rest of the songs."""
    for folder in song_folders(root):
        for file, stem in (("guitar.ogg", "guitar"), ("song.ogg", "no guitar")):
            samples = read_mono(folder / file)
            for index, (_, excerpt) in enumerate(list(excerpts(samples, STEM_SECONDS))[::3]):
                name = f"{folder.parent.name}-{folder.name}-{stem}-{index:02d}".replace(" ", "_")
                row = {"id": name, "split": SONG_SPLITS.get(folder.name, "test")}
                yield {**row, "instrument": stem, "song": folder.name}, excerpt


def albums(root: Path) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield excerpts of the pieces of some games."""
    pieces: list[tuple[str, str, Path | io.BytesIO]] = []
    for album, pattern in ALBUMS.items():
        for path in sorted(root.glob(pattern)):
            piece = path.parent.name if album.startswith("fretsonfire") else path.stem
            pieces.append((album, piece, path))
    with zipfile.ZipFile(root / NEXUIZ) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".ogg"):
                pieces.append(("nexuiz", Path(name).stem, io.BytesIO(archive.read(name))))
    order: Counter[str] = Counter()
    for album, piece, file in sorted(pieces, key=lambda one: zlib.crc32(one[1].encode())):
        found = list(excerpts(read_mono(file), ALBUM_SECONDS))
        if len(found) < EXCERPTS_PER_PIECE:
            continue
        # Of five pieces of an album two are for testing, one for validation.
        split = ("train", "test", "train", "validation", "test")[order[album] % 5]
        order[album] += 1
        chosen = np.linspace(0, len(found) - 1, EXCERPTS_PER_PIECE + 2).round().astype(int)[1:-1]
        for index, number in enumerate(chosen):
            identifier = f"{album}-{piece}-{index}".replace(" ", "_")
            yield (
                {"id": identifier, "split": split, "genre": album, "piece": piece},
                found[number][1],
            )


def main() -> None:
    """Write all sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder")
    parser.add_argument("--root", type=Path, default=Path("/"), help="of the packages' files")
    arguments = parser.parse_args()
    root, output = arguments.root, arguments.output
    rows = write_set(output / "notes", notes(root))
    write_manifest(output / "notes", with_known_pitches(rows))
    write_manifest(output / "notes-by-library", by_library(rows))
    write_set(output / "drums", drums(root))
    write_set(output / "songs", songs(root, output / "songs" / "annotations"))
    write_set(output / "stems", stems(root))
    write_set(output / "albums", albums(root))


if __name__ == "__main__":
    main()
