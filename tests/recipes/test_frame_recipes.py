"""Recipes whose answer is one for each frame or sample, in this process: from tracks to what is written.

Each is trained for an epoch on a few clips that ship. Then the model that it saved has to say the same
as the run wrote, through `TaskModel`, `m2v predict` and `m2v evaluate`.
"""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from support.matrix import slow
from support.messages import names, raises
from support.runs import read_metrics, reset_accelerate

from m2v_finetune.audio.decode import inspect_audio, read_audio
from m2v_finetune.cli import main
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.beats import format_beats, read_beats
from m2v_finetune.labels.chords import read_lab, write_lab
from m2v_finetune.labels.notes import Notes, read_midi, write_midi
from m2v_finetune.model import TaskModel, score_windows
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.frames import join_windows

# What a task's files are called, and its picture.
FORMATS = {
    "beats": ("beats", ".beats", "beats.png"),
    "chords": ("lab", ".lab", "chords.png"),
    "transcription": ("midi", ".mid", "piano_roll.png"),
    "separation": ("wav", "", "separation.png"),
}
STEMS = ["drums", "bass", "chords", "melody"]
SETTINGS = {
    "beats": ["--head.kind", "linear"],
    "chords": ["--head.kind", "linear", "--tuning.method", "lora"],
    # Fast learning: what nobody has told that most pitches are silent finds thousands of notes.
    "transcription": [
        *("--head.kind", "linear", "--optimizer.learning_rate", "0.05"),
        *("--data.windows_per_track", "12"),
    ],
    "separation": [
        *("--head.hidden_size", "16", "--task.sample_rate", "12000", "--task.num_channels", "1"),
        *("--task.stems", json.dumps(STEMS)),
    ],
}
SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3


class Run(NamedTuple):
    """A recipe that ran."""

    task: str
    folder: Path
    manifest: Path
    results: dict[str, Any]

    @property
    def songs(self) -> list[Path]:
        """The test tracks."""
        rows = [json.loads(line) for line in self.manifest.read_text().splitlines()]
        return [Path(row["path"]) for row in rows if row["split"] == "test"]


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory) -> Path:
    """Clips with stems, and so with every annotation; one of the test is shorter than a window."""
    folder = tmp_path_factory.mktemp("few")
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "stems" in row][: len(SPLITS)]
    for row, split in zip(rows, SPLITS, strict=True):
        row["split"] = split
        for column in ("path", "beats", "chords", "notes", "stems"):
            row[column] = str(QUICKSTART_DIR / row[column])
    short = rows[-1]
    shutil.copytree(short["stems"], folder / "short")
    samples, rate = soundfile.read(short["path"])
    soundfile.write(folder / "short.wav", samples[: round(0.7 * rate)], rate)
    for stem in sorted((folder / "short").iterdir()):
        samples, _ = soundfile.read(stem)
        stem.unlink()
        soundfile.write(stem.with_suffix(".wav"), samples[: round(0.7 * rate)], rate)
    rows[-1] = short | {"path": "short.wav", "stems": "short", **cut_annotations(short, folder)}
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def cut_annotations(row, folder, *, seconds=0.7) -> dict[str, str]:
    """Write what the annotations of a clip say of its begin; return the names of the files."""
    beats = read_beats(Path(row["beats"]))
    is_early = beats.times_seconds < seconds
    text = format_beats(beats.times_seconds[is_early], beats.positions[is_early])
    (folder / "short.beats").write_text(text)
    chords = [s for s in read_lab(Path(row["chords"])) if s.start_seconds < seconds]
    write_lab(folder / "short.lab", [*chords[:-1], replace(chords[-1], end_seconds=seconds)])
    notes = read_midi(Path(row["notes"]), sustain=True)
    # A pitch once: one channel cannot strike it twice at a time, as two parts of the clip do.
    early = np.unique(
        np.where(notes.onsets_seconds < seconds, notes.pitches, -1), return_index=True
    )
    early = early[1][early[0] >= 0]
    cut = Notes(
        onsets_seconds=notes.onsets_seconds[early],
        offsets_seconds=notes.offsets_seconds[early].clip(max=seconds),
        pitches=notes.pitches[early],
        velocities=notes.velocities[early],
    )
    write_midi(folder / "short.mid", cut)
    return {"beats": "short.beats", "chords": "short.lab", "notes": "short.mid"}


@pytest.fixture(
    scope="module", params=["beats", *slow(*(name for name in FORMATS if name != "beats"))]
)
def run(request, few_clips, repository, tmp_path_factory) -> Run:
    """A recipe, as its script runs it, on a few clips."""
    name = request.param
    reset_accelerate()
    folder = tmp_path_factory.mktemp(name) / "run"
    config = read_config(
        name,
        [
            *("--data.source", str(few_clips), "--data.window_seconds", "1.0"),
            *("--data.num_workers", "0", "--backbone.source", "random-small"),
            *("--training.epochs", "1", "--data.windows_per_track", "1"),
            *("--training.per_device_batch_size", "2"),
            *("--run.output_dir", str(folder)),
            *SETTINGS[name],
        ],
    )
    results = train_task(config, TASKS[name]).results
    return Run(name, folder, few_clips, dict(results))


@pytest.fixture
def m2v(capsys):
    """Run the command line; return its exit code, what it printed, and its errors."""

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return (int(ended.value.code or 0), *capsys.readouterr())

    return command


def rendered(model, path, kind="json"):
    return model.predict(path).render(kind, path=path, top=3, timeline=True, is_first=True)


def test_the_run_folder_holds_what_is_promised(run):
    task = TASKS[run.task]
    results = json.loads((run.folder / "results.json").read_text())
    assert (results["task"], results["num_tracks"]) == (run.task, 3)
    assert set(results["metric_names"]) == set(results["metrics"])
    assert results["selection_metric"] == task.selection_metric
    assert results["validation"].keys() == results["metrics"].keys()
    for entry in results["metrics"].values():
        assert set(entry) - {"chance"} == {"value", "low", "high"}
    picture = FORMATS[run.task][2]
    for name in (picture, "layer_weights.png", "training.png"):
        for location in (run.folder / "plots", run.folder / "model" / "plots"):
            assert (location / name).read_bytes().startswith(b"\x89PNG"), name
    logged = read_metrics(run.folder)
    losses = [line["loss"] for line in logged if "loss" in line]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_predictions_have_a_line_for_each_track(run):
    with (run.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert len({row["id"] for row in rows}) == 3
    metrics = json.loads((run.folder / "results.json").read_text())["metrics"]
    # The mean over tracks, or the median, is what the results say.
    name = {"chords": "root", "separation": "sdr_bass"}.get(
        run.task, TASKS[run.task].selection_metric
    )
    values = np.array([float(row[name]) for row in rows])
    value = np.nanmedian(values) if run.task == "separation" else np.nanmean(values)
    if run.task == "chords":
        value = np.average(values, weights=[float(row["root_seconds"]) for row in rows])
    assert metrics[name]["value"] == pytest.approx(value, abs=1e-5)


def test_the_card_carries_licence_metrics_and_pictures(run):
    card = ModelCard.load(run.folder / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == TASKS[run.task].pipeline_tag
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    results = json.loads((run.folder / "results.json").read_text())
    known = {k: e["value"] for k, e in results["metrics"].items() if e["value"] is not None}
    assert known
    for name, value in known.items():
        assert shown[name] == pytest.approx(value, abs=1e-3), name
    assert f"plots/{FORMATS[run.task][2]}" in card.text
    # The worst tracks have pictures in the report, not in the model.
    assert (run.folder / "plots" / "track-1" / FORMATS[run.task][2]).is_file()
    assert not (run.folder / "model" / "plots" / "track-1").exists()
    pictures = list((run.folder / "plots").rglob("*.png"))
    report = (run.folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png") == len(pictures)
    assert "model.predict" in card.text
    assert TASKS[run.task].usage_example in card.text
    assert str(run.folder) not in card.content


def test_evaluate_gives_the_metrics_of_the_run(run, m2v):
    code, out, err = m2v("evaluate", run.folder / "model", run.manifest)
    assert code == 0, err
    measured = json.loads(out)
    results = json.loads((run.folder / "results.json").read_text())
    assert measured["num_tracks"] == 3
    assert measured["metrics"].keys() == results["metrics"].keys()
    for name, entry in results["metrics"].items():
        for key in ("value", "low", "high"):
            value = entry[key]
            assert measured["metrics"][name][key] == pytest.approx(value, abs=1e-6), (name, key)


def test_a_saved_model_predicts_the_same(run, tmp_path):
    model = TaskModel.from_pretrained(run.folder / "model")
    model.save_pretrained(tmp_path / "again")
    again = TaskModel.from_pretrained(tmp_path / "again")
    assert again.task == model.task
    model.save_pretrained(tmp_path / "whole", weights="all")
    merged = TaskModel.from_pretrained(tmp_path / "whole")
    for song in (run.manifest.parent / run.songs[-1], run.songs[0]):
        outputs = rendered(model, song)
        assert rendered(again, song) == outputs
        if run.task == "separation":
            of_merged = merged.predict(song).arrays()
            for stem, samples in model.predict(song).arrays().items():
                np.testing.assert_allclose(of_merged[stem], samples, atol=1e-4)


def test_predict_writes_the_fields_own_formats(run, m2v, tmp_path):
    kind, suffix, _ = FORMATS[run.task]
    song, short = run.songs[0], run.manifest.parent / run.songs[-1]
    command = ["predict", run.folder / "model", song, short, "--format", kind, "--output"]
    code, out, err = m2v(*command, tmp_path / "out")
    assert code == 0, err
    locations = [tmp_path / "out" / f"{path.stem}{suffix}" for path in (song, short)]
    assert out.split() == [str(location) for location in locations]
    assert sorted((tmp_path / "out").iterdir()) == sorted(locations)
    model = TaskModel.from_pretrained(run.folder / "model")
    for path, location in zip((song, short), locations, strict=True):
        check_written(
            run.task, location, model.predict(path), seconds=soundfile.info(path).duration
        )

    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    code, out, err = m2v(*command, tmp_path / "out")
    assert (code, out) == (2, "")
    assert str(tmp_path / "out") in err
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    code, _, err = m2v("predict", run.folder / "model", song, "--format", kind)
    assert code == 2
    assert names(err, "--output")
    code, _, err = m2v("predict", run.folder / "model", song, "--format", "csv")
    assert code == 2
    assert names(err, "csv", run.task)


def check_written(task, location, prediction, *, seconds):
    """A written file holds the prediction, and nothing lies behind the end of the track."""
    if task == "beats":
        beats = read_beats(location)
        np.testing.assert_allclose(beats.times_seconds, prediction.times_seconds, atol=1e-6)
        assert (beats.times_seconds < seconds).all()
    elif task == "chords":
        segments = read_lab(location)
        assert [s.label for s in segments] == [s.label for s in prediction.segments]
        assert segments[-1].end_seconds == pytest.approx(seconds, abs=1e-6)
    elif task == "transcription":
        notes = read_midi(location, sustain=True)
        assert sorted(notes.pitches) == sorted(prediction.pitches)
        assert (notes.onsets_seconds < seconds).all()
    else:
        arrays = prediction.arrays()
        assert {path.name for path in location.iterdir()} == {f"{stem}.wav" for stem in STEMS}
        for stem in STEMS:
            samples, rate = soundfile.read(location / f"{stem}.wav", dtype="float32")
            assert rate == 12000
            assert len(samples) == round(seconds * 12000)
            np.testing.assert_allclose(samples, arrays[stem][0], atol=1e-6)


def test_predict_prints_text_and_json(run, m2v):
    song, short = run.songs[0], run.manifest.parent / run.songs[-1]
    code, out, err = m2v("predict", run.folder / "model", song, short)
    assert code == 0, err
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        str(song),
        str(short),
    ]
    code, out, err = m2v("predict", run.folder / "model", song, short, "--format", "json")
    assert code == 0, err
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(song), str(short)]


def test_a_file_shorter_than_a_window_is_as_if_silence_followed(run, tmp_path):
    """What is heard is the file and silence, and what lies in the silence is no part of the answer."""
    model = TaskModel.from_pretrained(run.folder / "model")
    is_separation = run.task == "separation"
    # At the rate that is read, so that no resampler meets the end of the file.
    rate = 12000 if is_separation else model.backbone.sample_rate
    part = read_audio(run.songs[0], sample_rate=rate)[: round(0.6 * rate)]
    outputs = []
    for name, content in (("short", part), ("padded", np.pad(part, (0, rate - len(part))))):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, content, rate, subtype="FLOAT")
        if is_separation:
            arrays = model.predict(path).arrays()
            outputs.append(np.stack([arrays[stem][0] for stem in STEMS], axis=-1))
        else:
            outputs.append(frames_of(model, path))
    short, padded = outputs
    # Of 0.6 s, 29 frames of 25 ms, 20 ms apart, lie wholly in it.
    assert len(short) == (7200 if is_separation else 29)
    assert len(padded) == (12000 if is_separation else 49)
    np.testing.assert_allclose(short, padded[: len(short)], atol=1e-5)


def frames_of(model, path):
    """The scores of a track's frames, before they are decoded."""
    track = Track(id="", path=path, split=None, columns={}, origin="", folder=path.parent)
    checked = CheckedTrack(track=track, audio=inspect_audio(path))
    rows = score_windows(model, model.track_windows([checked]), batch_size=4)
    _, scores = join_windows(checked, ((window, one) for _, window, one in rows))
    return scores


def test_bad_annotations_stop_a_run_before_it_starts(run, few_clips, repository, tmp_path):
    """With the line, and without a run folder."""
    column = {"beats": "beats", "chords": "chords", "transcription": "notes", "separation": "stems"}
    rows = [json.loads(line) for line in few_clips.read_text().splitlines()]
    for row in rows:
        row["path"] = str(few_clips.parent / row["path"])
    rows[1][column[run.task]] = "gone"
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = read_config(
        run.task,
        [
            *("--data.source", str(tmp_path / "manifest.jsonl")),
            *("--backbone.source", "random-small", "--run.output_dir", str(tmp_path / "run")),
            *SETTINGS[run.task],
        ],
    )
    reset_accelerate()
    code = "stems-unusable" if run.task == "separation" else "labels-unusable"
    with raises(code, "manifest.jsonl:2: "):
        train_task(config, TASKS[run.task])
    assert not (tmp_path / "run").exists()
