"""Damaged files of every kind that comes from outside: each ends in a result or in a `UserError`.

Inputs are valid files changed by a seeded generator: bytes flipped, cut, doubled, and pieces of syntax
put in. ``M2V_FUZZ_INPUTS=10000`` tries that many of each kind; an input that fails is kept beside the
test's own files, and named with its seed.
"""

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.audio.decode import AudioInfo, inspect_audio, read_audio, read_excerpt
from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import DataConfig, RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import read_dataset_info
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.data.saved_tracks import load_checked, resampled_ids, save_checked
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.errors import UserError
from m2v_finetune.labels.beats import read_beats
from m2v_finetune.labels.chords import read_lab
from m2v_finetune.labels.keys import parse_key
from m2v_finetune.labels.melody import read_melody
from m2v_finetune.labels.notes import read_midi
from m2v_finetune.labels.sections import read_sections
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.tasks.key import Key, KeyConfig
from m2v_finetune.training.checkpoint_files import (
    BEST_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    find_checkpoint,
)
from m2v_finetune.training.run_folder import RunFolder

NUM_INPUTS = int(os.environ.get("M2V_FUZZ_INPUTS", "0"))
LIMIT_SECONDS = 20
TOKENS = [
    *(
        b"\x00",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"nan",
        b"-1",
        b"1e999",
        b"null",
        b"[]",
        b"{}",
    ),
    *(
        b'"',
        b"'",
        b",",
        b"\n",
        b"\r\n",
        b"\t",
        b":",
        b"&a",
        b"*a",
        b"!!python/name:os.system",
        b"- ",
    ),
    *(b"../../", b"/etc/passwd", "é".encode(), b"\xe9", b"9" * 400, b"[" * 2000, b"%s", b"true"),
]


def changed(content: bytes, rng: random.Random) -> bytes:
    """Return a file with one to six changes, more of them near its begin, where headers are."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        size = len(data)
        location = min(size, int(rng.choice([64, 512, size + 1]) * rng.random()))
        match rng.randrange(7):
            case 0:
                data[location : location + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[location:]
            case 2:
                del data[location : location + rng.randint(1, 40)]
            case 3:
                data[location:location] = rng.choice(TOKENS)
            case 4:
                data[location : location + 4] = rng.randbytes(4)
            case 5:
                data[location:location] = data[location : location + rng.randint(1, 200)]
            case _:
                data[location : location + 1] = (
                    bytes([(data[location] ^ (1 << rng.randrange(8)))])
                    if (location < size)
                    else b""
                )
    return bytes(data)


class HangError(Exception):
    """It took too long."""


@contextlib.contextmanager
def limited_time():
    def ring(number, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def audio_bytes(kind: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(12_000) / 7)
    soundfile.write(buffer, np.stack([wave, wave], axis=1), 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def read_sound(path: Path) -> None:
    audio = inspect_audio(path)
    assert audio.num_frames > 0
    length = audio.num_samples(16_000)
    samples = read_excerpt(path, sample_rate=16_000, start_sample=0, num_samples=min(length, 4_000))
    assert np.isfinite(samples).all()


def read_keys(path: Path) -> None:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # which the task turns into its list of problems
            parse_key(text)


def read_settings(path: Path) -> None:
    parse_recipe(RecipeConfig, [f"--config={path}"], description="", quickstart=path)


def manifest_bytes(kind: str) -> bytes:
    rows = [
        {"path": f"a{i}.wav", "split": "train", "key": "C:maj", "tags": "x;y", "id": str(i)}
        for i in range(3)
    ]
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]).encode()


def read_tracks(path: Path) -> None:
    tracks, _ = load_tracks(str(path), label_column="key")
    Key.from_tracks(KeyConfig(), {"train": tracks, "validation": tracks, "test": tracks})


def annotation(suffix: str) -> bytes:
    return (QUICKSTART_DIR / "annotations" / f"test-000.{suffix}").read_bytes()


SETTINGS = b"""\
data:
  source: songs.csv
  window_seconds: 5
training: {epochs: 3, trackers: [wandb]}
augmentation:
  transforms:
  - {name: gain, p: 0.5}
optimizer:
  learning_rate: 3e-4
"""

KINDS = {
    "manifest.csv": (lambda: manifest_bytes("csv"), read_tracks, 150),
    "manifest.jsonl": (lambda: manifest_bytes("jsonl"), read_tracks, 150),
    "dataset.json": (
        lambda: b'{"name": "a", "title": "A", "licence": "CC0-1.0"}',
        lambda path: read_dataset_info(path.parent, name="x"),
        150,
    ),
    "settings.yaml": (lambda: SETTINGS, read_settings, 25),
    "labels.beats": (lambda: annotation("beats"), read_beats, 150),
    "labels.lab": (lambda: annotation("lab"), read_lab, 60),
    "labels.txt": (lambda: b"0.0\tSilence\n0.5\tverse 1\n9.25\tEnd\n", read_sections, 60),
    "labels.csv": (lambda: b"0.0,0.0\n0.05,220.0\n0.1,-221.5\n", read_melody, 60),
    "labels.mid": (lambda: annotation("mid"), lambda path: read_midi(path, sustain=True), 60),
    "labels.key": (lambda: b"C:maj\nA minor\nF# major\nBb:min\n", read_keys, 150),
    "sound.wav": (lambda: audio_bytes("WAV", "PCM_16"), read_sound, 150),
    "sound.flac": (lambda: audio_bytes("FLAC"), read_sound, 150),
    "sound.ogg": (lambda: audio_bytes("OGG", "VORBIS"), read_sound, 60),
    "sound.opus": (lambda: audio_bytes("OGG", "OPUS"), read_sound, 60),
    "sound.mp3": (lambda: audio_bytes("MP3"), read_sound, 60),
    "sound.aiff": (lambda: audio_bytes("AIFF"), read_sound, 60),
}


def fuzz(name, content, read, count, folder, record_property):
    faulthandler.enable()
    outcomes = {"results": 0, "messages": 0}
    path = folder / name
    for seed in range(count):
        path.write_bytes(changed(content, random.Random(f"{name}-{seed}")))
        try:
            with limited_time():
                read(path)
            outcomes["results"] += 1
        except UserError as error:
            outcomes["messages"] += bool(str(error))
        except BaseException as error:
            error.add_note(f"seed {seed} of {name}: {path}, {path.read_bytes()[:300]!r}")
            raise
    assert sum(outcomes.values()) == count
    assert outcomes["messages"] > 0 or name == "labels.key"
    record_property(f"fuzzed {name}", f"{count} inputs, {outcomes}")


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_ends_in_a_result_or_a_message(name, tmp_path, record_property):
    make, read, count = KINDS[name]
    content = make()
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name)  # what was not damaged is read
    fuzz(name, content, read, NUM_INPUTS or count, tmp_path, record_property)


def test_what_is_no_file_ends_in_a_message(tmp_path, record_property):
    """A pipe without a writer, a device without an end, a folder, each in place of audio."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    paths = sorted(tmp_path.iterdir())
    for path in paths:
        code = "audio-unreadable" if path.name == "loop.wav" else "audio-not-a-file"
        for read in (read_sound, lambda p: read_audio(p, sample_rate=16_000)):
            with raises(code, path), limited_time():
                read(path)
    record_property("fuzzed what is no file", f"{len(paths)} inputs")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_damaged_checkpoints_end_in_a_result_or_a_message(name, tmp_path, record_property):
    from m2v_finetune.backbones import checkpoints

    for path in (Path(checkpoints.__file__).parent / "random_small").iterdir():
        if path.suffix in (".json", ".safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / name).read_bytes()
    # Of weights the header is damaged, not the megabytes behind it.
    head, tail = (
        (content[:4000], content[4000:]) if name.endswith("safetensors") else (content, b"")
    )

    def read(path):
        damaged = path.read_bytes()
        path.write_bytes(damaged + tail)
        load_backbone(str(tmp_path))

    fuzz(name, head, read, NUM_INPUTS or 40, tmp_path, record_property)


def test_damaged_models_end_in_a_result_or_a_message(tmp_path, record_property):
    from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
    from m2v_finetune.model import TaskModel

    model = TaskModel.build(
        task=_key_task(tmp_path),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="lora"),
        window_seconds=1.0,
    )
    model.save_pretrained(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    fuzz(
        "config.json",
        config.read_bytes(),
        lambda path: TaskModel.from_pretrained(path.parent),
        NUM_INPUTS or 40,
        tmp_path / "model",
        lambda name, value: record_property("fuzzed config.json of a model", value),
    )


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "tracks.json", "manifest.json"]
)
def test_damaged_files_of_a_run_end_in_a_result_or_a_message(name, tmp_path, record_property):
    """What a run that goes on reads of its folder, before the states themselves."""
    config = RecipeConfig(data=DataConfig(source="songs.csv"))
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    checkpoint = folder.checkpoints / "epoch-00001-step-00000004"
    checkpoint.mkdir()
    files = {}
    for part in (STATE_FILE, BEST_FILE):
        (checkpoint / part).write_bytes(part.encode())
        digest = hashlib.sha256(part.encode()).hexdigest()
        files[part] = {"bytes": len(part), "sha256": digest}
    (checkpoint / MANIFEST_FILE).write_text(json.dumps({"files": files}))
    (tmp_path / "manifest.jsonl").write_bytes(manifest_bytes("jsonl"))
    tracks, _ = load_tracks(str(tmp_path / "manifest.jsonl"), label_column="key")
    known = folder.path / "tracks.json"
    info = AudioInfo(sample_rate=16_000, num_frames=80_000, num_channels=2)
    save_checked(known, {"train": [CheckedTrack(track=track, audio=info) for track in tracks]})

    def read(path):
        folder.create(config)
        load_checked(known, {"train": tracks})
        resampled_ids(known)
        find_checkpoint(folder.checkpoints)

    path = (checkpoint if name == MANIFEST_FILE else folder.path) / name
    content = path.read_bytes()
    read(path)  # what was not damaged is read
    fuzz(name, content, read, NUM_INPUTS or 100, path.parent, record_property)


def _key_task(folder):
    path = folder / "manifest.jsonl"
    path.write_bytes(manifest_bytes("jsonl"))
    tracks, _ = load_tracks(str(path), label_column="key")
    return Key.from_tracks(KeyConfig(), {"train": tracks, "validation": tracks, "test": tracks})
