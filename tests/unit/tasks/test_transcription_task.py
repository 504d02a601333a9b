"""The transcription task: annotations, rolls that move in time and pitch, notes of perfect windows."""

import json
import math
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from support.frame_tracks import (
    GRIDS,
    augment,
    centres,
    checked_track,
    make_track,
    silent_track,
    windows_of,
    with_scores,
)
from support.messages import names, raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError
from m2v_finetune.labels.notes import Notes, read_midi, write_midi
from m2v_finetune.tasks.transcription import (
    Transcription,
    TranscriptionConfig,
    TranscriptionPrediction,
)

TASK = Transcription(label_column="notes", sustain=True)


def notes_of(rows):
    """Notes from (onset, offset, pitch)."""
    onsets, offsets, pitches = (np.array(column) for column in zip(*rows, strict=True))
    return Notes(
        onsets_seconds=onsets.astype(float),
        offsets_seconds=offsets.astype(float),
        pitches=pitches.astype(np.int64),
        velocities=np.full(len(rows), 64, dtype=np.int64),
    )


def midi(folder, rows, *, name="song.mid"):
    write_midi(folder / name, notes_of(rows))
    return name


# -- annotations ----------------------------------------------------------------------------------


def test_every_bad_annotation_is_listed_with_file_and_place(tmp_path):
    midi(tmp_path, [(0.5, 1.0, 60), (1.0, 1.5, 20), (2.0, 2.5, 109)], name="a.mid")
    midi(tmp_path, [(0.5, 1.0, 60)], name="good.mid")
    (tmp_path / "b.mid").write_bytes(b"no MIDI at all")
    track = mido.MidiTrack(
        [
            mido.Message("note_on", note=50, velocity=9, time=480),
            mido.Message("note_off", note=50, time=0),
        ]
    )
    mido.MidiFile(type=0, ticks_per_beat=480, tracks=[track]).save(tmp_path / "c.mid")
    named = ["a.mid", "good.mid", "b.mid", "c.mid", "gone.mid", None]
    tracks = [
        make_track(tmp_path, name=f"{n}.wav", origin=f"songs.csv:{n + 2}", notes=notes)
        for n, notes in enumerate(named)
    ]
    with pytest.raises(UserError) as raised:
        Transcription.from_tracks(TranscriptionConfig(), {"train": tracks[:2], "test": tracks[2:]})
    message = str(raised.value)
    assert names(message, "(6)")
    for problem in (
        f"{tmp_path}/a.mid: track 1, event 5 (1.000 s): the note of pitch 20 is outside the range",
        f"{tmp_path}/a.mid: track 1, event 7 (2.000 s): the note of pitch 109 is outside the range",
        f"{tmp_path}/b.mid: no standard MIDI file",
        f"{tmp_path}/c.mid: track 1, event 1 (0.500 s): the note of pitch 50 lasts no time",
        f"songs.csv:6: there is no file {tmp_path}/gone.mid",
        "songs.csv:7: no path in the column 'notes', but None",
    ):
        assert problem in message, (problem, message)
    assert "good.mid" not in message
    TASK.check_labels([tracks[1]])


@pytest.mark.parametrize("sustain", [True, False])
def test_settings_survive_and_state_whether_the_pedal_holds(sustain, tmp_path):
    task = Transcription(label_column="played", sustain=sustain, onset_threshold=0.25)
    saved = json.loads(json.dumps(task.to_dict()))
    assert Transcription.from_dict(saved) == task
    assert saved == {
        "name": "transcription",
        "label_column": "played",
        "sustain": sustain,
        "onset_threshold": 0.25,
        "frame_threshold": 0.5,
    }
    messages = [
        mido.Message("control_change", control=64, value=127, time=0),
        mido.Message("note_on", note=60, velocity=9, time=480),
        mido.Message("note_off", note=60, time=480),
        mido.Message("control_change", control=64, value=0, time=960),
    ]
    song = mido.MidiFile(type=0, ticks_per_beat=480, tracks=[mido.MidiTrack(messages)])
    song.save(tmp_path / "pedal.mid")
    track = make_track(tmp_path, played="pedal.mid")
    made = Transcription.from_tracks(
        TranscriptionConfig(label_column="played", sustain=sustain, onset_threshold=0.25),
        {"train": [track]},
    )
    assert made == task
    assert task.annotation(track).offsets_seconds.tolist() == [2.0 if sustain else 1.0]


# -- targets --------------------------------------------------------------------------------------

PLAYED = [
    (0.1, 0.6, 60),
    (0.6, 1.7, 60),  # struck again as it ends
    (0.35, 3.2, 21),
    (1.013, 1.016, 108),  # shorter than a frame
    (1.9, 2.4, 64),
    (2.1, 6.0, 67),
]


def expected_rolls(rows, times, *, semitones=0):
    """The definition, note by note; ``times`` are evenly spaced."""
    onsets, frames = np.zeros((2, len(times), 88), dtype=np.float32)
    stride = times[1] - times[0]
    around = times[0] + stride * np.arange(-1000, len(times) + 1000)
    for onset, offset, pitch in rows:
        key = pitch + semitones - 21
        if not 0 <= key < 88:
            continue
        first = int(np.abs(around - onset).argmin()) - 1000
        for frame in range(len(times)):
            if frame == first:
                onsets[frame, key] = frames[frame, key] = 1
            elif frame > first and times[frame] < offset:
                frames[frame, key] = 1
    return np.concatenate([onsets, frames], axis=-1)


@pytest.mark.parametrize("start_sample", [0, 12_345, 48_000])
@pytest.mark.parametrize("rate", sorted(GRIDS))
@pytest.mark.parametrize("semitones", [0, 5, -12])
def test_rolls_are_exact_at_the_centres_of_frames(rate, start_sample, semitones, tmp_path):
    # Ticks of a MIDI file are 1/1920 s: what is read is what is compared.
    track = make_track(tmp_path, notes=midi(tmp_path, PLAYED))
    read = TASK.annotation(track)
    rows = list(zip(read.onsets_seconds, read.offsets_seconds, read.pitches.tolist(), strict=True))
    assert len(rows) == len(PLAYED)
    grid = GRIDS[rate]
    window = Window(start_sample=start_sample, num_samples=3 * grid.sample_rate, grid=grid)
    targets = TASK.frame_targets(
        track, window.start_seconds + window.frame_times_seconds, semitones=semitones
    )
    np.testing.assert_array_equal(
        targets, expected_rolls(rows, centres(window), semitones=semitones)
    )
    assert targets.dtype == np.float32


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_windows_that_overlap_agree(rate, tmp_path):
    track = make_track(tmp_path, notes=midi(tmp_path, PLAYED))
    grid = GRIDS[rate]

    def targets(first, seconds):
        num_samples = seconds * grid.sample_rate
        window = Window(start_sample=320 * first, num_samples=num_samples, grid=grid)
        return TASK.frame_targets(
            track, window.start_seconds + window.frame_times_seconds, semitones=0
        )

    whole = targets(0, 7)
    assert whole[:, :88].sum() == len(PLAYED)
    for first in (1, 30, 111):
        part = targets(first, 3)
        np.testing.assert_array_equal(part, whole[first : first + len(part)])


def test_the_loss_is_what_one_computes_by_hand():
    logits = torch.zeros(1, 1, 176)
    targets = torch.zeros(1, 1, 176)
    logits[0, 0, 0], targets[0, 0, 0] = 2.0, 1.0
    logits[0, 0, 100] = -1.0
    expected = 174 * math.log(2) + 4 * math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))
    assert TASK.loss(logits, targets).item() == pytest.approx(expected / 176, rel=1e-6)
    assert TASK.activate(logits)[0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-2)))


# -- augmentation ---------------------------------------------------------------------------------

MELODY = [
    (0.3 + 0.6 * n, 0.75 + 0.6 * n, p) for n, p in enumerate([60, 67, 64, 72, 55, 62, 69, 57])
]


@pytest.fixture(scope="module")
def melody(tmp_path_factory):
    """A track of 6 s on which sines play one note after the other."""
    folder = tmp_path_factory.mktemp("melody")
    time = np.arange(6 * 16000) / 16000
    samples = np.zeros(len(time))
    for onset, offset, pitch in MELODY:
        sounds = (time >= onset) & (time < offset)
        samples[sounds] = 0.4 * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time[sounds])
    return checked_track(folder, samples, notes=midi(folder, MELODY))


def pitch_of(samples, time):
    """The loudest pitch around a time; None for silence."""
    part = samples[round((time - 0.06) * 16000) : round((time + 0.06) * 16000)]
    if np.sqrt(np.mean(part**2)) < 0.02:
        return None
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 17))
    hertz = np.argmax(spectrum) * 16000 / (1 << 17)
    return round(69 + 12 * math.log2(hertz / 440))


AUGMENTATIONS = {
    "still": [],
    "up": [{"name": "pitch_shift", "min_semitones": 4, "max_semitones": 4}],
    "down": [{"name": "pitch_shift", "min_semitones": -3.4, "max_semitones": -2.6}],
    "later": [{"name": "shift", "min_shift": 0.1, "max_shift": 0.1, "rollover": False}],
    "slower": [{"name": "time_stretch", "min_rate": 0.8, "max_rate": 0.8}],
}
AUGMENTATIONS["all"] = [*AUGMENTATIONS["down"], *AUGMENTATIONS["slower"], *AUGMENTATIONS["later"]]


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_notes_move_with_the_audio(name, melody):
    window = Window(start_sample=3_333, num_samples=5 * 16000, grid=GRIDS[50])
    apply = augment(TASK, *AUGMENTATIONS[name])[0] if AUGMENTATIONS[name] else None
    samples, targets = TASK.example(melody, window, apply)
    frames = targets[:, 88:]
    times = window.frame_times_seconds
    changes = times[1:][(np.diff(frames, axis=0) != 0).any(axis=1)]
    away = [
        frame
        for frame, t in enumerate(times)
        if np.abs(np.append(changes, [0, 5]) - t).min() > 0.08
    ]
    learned = [int(frames[f].argmax()) + 21 if frames[f].any() else None for f in away]
    assert [pitch_of(samples, times[f]) for f in away] == learned
    assert len(set(learned) - {None}) >= 5
    # Each note is struck where it begins to sound.
    for frame, key in np.argwhere(targets[:, :88]):
        assert frames[frame, key] == 1
        assert frame == 0 or frames[frame - 1, key] == 0


def test_the_onset_of_a_note_moves_exactly(melody):
    window = Window(start_sample=0, num_samples=5 * 16000, grid=GRIDS[50])
    label_transform = LabelTransform(
        semitones=2.0, rate=1.25, offset_seconds=0.4, source_end_seconds=5.0
    )
    _, targets = TASK.example(melody, window, lambda samples: (samples, label_transform))
    times = window.frame_times_seconds
    found = {(times[f], key + 21) for f, key in np.argwhere(targets[:, :88])}
    assert len(found) == 8
    read = TASK.annotation(melody.track)
    for onset, pitch in zip(read.onsets_seconds, read.pitches + 2, strict=True):
        moved = onset / 1.25 + 0.4
        [time] = [time for time, other in found if other == pitch]
        assert abs(time - moved) <= 0.01, pitch


def test_notes_that_leave_the_keyboard_are_in_neither_roll(tmp_path):
    track = make_track(tmp_path, notes=midi(tmp_path, [(0.1, 0.5, 108), (0.1, 0.5, 107)]))
    targets = TASK.frame_targets(track, GRIDS[50].times(49), semitones=1)
    assert np.flatnonzero(targets.any(axis=0)).tolist() == [87, 88 + 87]


def test_what_cannot_be_followed_is_refused():
    assert TASK.transformed_effects() == {Effect.PITCH, Effect.TIME}
    assert set(Effect) - TASK.allowed_effects() - TASK.transformed_effects() == {Effect.SILENCE}
    for bad, code in (
        ({"name": "time_mask"}, "transform-changes-labels"),
        ({"name": "shift"}, "transform-rollover"),
        ({"name": "time_stretch", "method": "librosa_phase_vocoder"}, "transform-method-inexact"),
    ):
        with raises(code):
            augment(TASK, bad)


# -- from windows to a track ----------------------------------------------------------------------


def piece(seconds, *, seed=0):
    """Notes of 88 pitches of 60 ms and more, some struck again at once, chords among them."""
    rng = np.random.default_rng(seed)
    rows = []
    for pitch in range(21, 109):
        onset = rng.uniform(0.05, 4.0)
        while onset < seconds - 0.5:
            length = rng.uniform(0.06, 0.9)
            rows.append((onset, min(onset + length, seconds - 0.05), pitch))
            onset += length + rng.choice([0.0, 0.0, rng.uniform(0.1, 3.0)])
            onset = max(onset, rows[-1][0] + 0.08)
    return [(round(on * 1920) / 1920, round(off * 1920) / 1920, pitch) for on, off, pitch in rows]


def perfect(rows):
    """Certainty at the frame of each onset and while a note sounds, by its exact times."""

    def score(times):
        onsets, frames = np.zeros((2, len(times), 88))
        half = (times[1] - times[0]) / 2
        for onset, offset, pitch in rows:
            onsets[np.abs(times - onset) <= half, pitch - 21] = 1
            frames[(times >= onset) & (times < offset), pitch - 21] = 1
        return np.concatenate([onsets, frames], axis=-1)

    return score


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_known_notes_are_found_from_perfect_windows(rate, tmp_path):
    rows = piece(13.377)
    assert len(rows) > 500
    track = silent_track(tmp_path, 13.377, notes=midi(tmp_path, rows))
    assert len(TASK.annotation(track.track)) == len(rows)
    windows = windows_of(track, GRIDS[rate])
    prediction = TASK.predict(track, with_scores(windows, perfect(rows)))
    evaluated = TASK.evaluate_track(track, prediction)
    for name in ("note_f1", "note_precision", "note_recall", "note_with_offset_f1"):
        assert evaluated[name] == 1.0, name
    assert evaluated["frame_f1"] > 0.97
    assert (np.diff(prediction.onsets_seconds) >= 0).all()


def test_the_notes_of_the_targets_are_found_again(tmp_path):
    """What is learned, once learned, gives the notes."""
    rows = piece(8.0, seed=1)
    track = silent_track(tmp_path, 8.0, notes=midi(tmp_path, rows))
    windows = windows_of(track, GRIDS[50])
    scored_windows = (
        (
            window,
            TASK.frame_targets(
                track.track, window.start_seconds + window.frame_times_seconds, semitones=0
            ),
        )
        for window in windows
    )
    evaluated = TASK.evaluate_track(track, TASK.predict(track, scored_windows))
    assert evaluated["note_f1"] == evaluated["note_with_offset_f1"] == 1.0


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_a_note_of_40_ms_is_found_wherever_frames_lie(rate, tmp_path):
    rows = [(0.5 + 0.1 * n + 0.0007 * n, 0.54 + 0.1 * n + 0.0007 * n, 30 + n) for n in range(40)]
    track = silent_track(tmp_path, 5.0, notes=midi(tmp_path, rows))
    prediction = TASK.predict(track, with_scores(windows_of(track, GRIDS[rate]), perfect(rows)))
    assert TASK.evaluate_track(track, prediction)["note_f1"] == 1.0


def test_a_file_shorter_than_a_window_and_one_of_a_frame(tmp_path):
    rows = [(0.2, 0.8, 60), (1.0, 1.4, 62), (2.0, 3.0, 64)]
    track = silent_track(tmp_path, 1.5, notes="unused")
    [window] = windows_of(track, GRIDS[50])
    prediction = TASK.predict(track, with_scores([window], perfect(rows)))
    assert prediction.pitches.tolist() == [60, 62]
    assert (prediction.offsets_seconds < 1.5).all()

    tiny = silent_track(tmp_path, 0.03, name="tiny.wav", notes=midi(tmp_path, [(0.0, 0.02, 60)]))
    [window] = windows_of(tiny, GRIDS[50])
    nothing = TASK.predict(tiny, with_scores([window], perfect([(0.0, 1.0, 60)])))
    assert len(nothing.pitches) == 0
    assert TASK.evaluate_track(tiny, nothing)["note_f1"] == 0.0


# -- judging --------------------------------------------------------------------------------------


def prediction_of(rows):
    onsets, offsets, pitches = (np.array(column) for column in zip(*rows, strict=True))
    return TranscriptionPrediction(
        onsets_seconds=onsets.astype(float),
        offsets_seconds=offsets.astype(float),
        pitches=pitches.astype(np.intp),
    )


def test_notes_are_evaluated_by_their_own_times(tmp_path):
    reference = [(0.5, 1.5, 60), (1.0, 2.0, 64), (2.0, 3.0, 67), (3.0, 3.5, 72)]
    track = silent_track(tmp_path, 4.0, notes=midi(tmp_path, reference))
    found = [(0.54, 1.5, 60), (1.0, 1.4, 64), (2.06, 3.0, 67), (3.0, 3.5, 71), (3.6, 3.9, 50)]
    evaluated = TASK.evaluate_track(track, prediction_of(found))
    # 60 and 64 begin in time; of these 60 also ends in time. 67 is late, 71 is another pitch.
    assert evaluated["note_precision"] == pytest.approx(2 / 5)
    assert evaluated["note_recall"] == pytest.approx(2 / 4)
    assert evaluated["note_f1"] == pytest.approx(2 * 2 / 9)
    assert evaluated["note_with_offset_f1"] == pytest.approx(2 * 1 / 9)
    # Instants of 10 ms: 96 + 40 + 94 right, 350 true, 96 + 40 + 94 + 50 + 30 found.
    assert evaluated["frame_f1"] == pytest.approx(2 * 230 / (350 + 310), abs=0.01)


def test_a_report_has_the_values_with_intervals(tmp_path):
    evaluated = [
        dict.fromkeys(TASK.metric_names, value) | {"frame_recall": 0.1} for value in (0.2, 0.7)
    ]
    evaluated.append(dict.fromkeys(TASK.metric_names, math.nan))
    values = TASK.compute_metrics(evaluated)
    assert values == pytest.approx(dict.fromkeys(TASK.metric_names, 0.45), rel=1e-12)
    report = TASK.summarize(evaluated, seed=0)
    assert set(report["metrics"]) == set(values)
    for name, value in values.items():
        assert report["metrics"][name]["value"] == pytest.approx(value, rel=1e-12)
        assert report["num_scored_tracks"][name] == 2
    assert TASK.selection_metric in values
    assert "100 instants a second" in report["about_metrics"]
    assert TASK.prediction_row(evaluated[0]) == evaluated[0]


# -- what a prediction is written as --------------------------------------------------------------

FOUND = [(0.5, 1.0, 60), (0.7502, 2.0, 21), (1.0, 1.25, 60)]


def render(kind, *, timeline=False):
    return prediction_of(FOUND).render(
        kind, path=Path("a/b.mp3"), top=3, timeline=timeline, is_first=True
    )


def test_text_and_json_of_notes():
    assert render("text") == "a/b.mp3\n  3 notes\n"
    assert render("text", timeline=True).splitlines()[2:] == [
        "     0.500 -    1.000 s  60",
        "     0.750 -    2.000 s  21",
        "     1.000 -    1.250 s  60",
    ]
    content = json.loads(render("json"))
    assert content["path"] == "a/b.mp3"
    assert content["notes"][1] == {"onset_seconds": 0.75, "offset_seconds": 2.0, "pitch": 21}
    assert len(content["notes"]) == 3
    assert render("json").count("\n") == 1


def test_a_midi_file_reads_back(tmp_path):
    assert TASK.formats == {"text": None, "json": None, "midi": ".mid"}
    prediction_of(FOUND).write("midi", tmp_path / "out.mid")
    read = read_midi(tmp_path / "out.mid", sustain=True)
    assert read.pitches.tolist() == [60, 21, 60]
    np.testing.assert_allclose(read.onsets_seconds, [0.5, 0.7502, 1.0], atol=0.5 / 1920)
    np.testing.assert_allclose(read.offsets_seconds, [1.0, 2.0, 1.25], atol=0.5 / 1920)


def test_a_picture_is_drawn(melody, tmp_path):
    def predict(checked):
        return TASK.predict(checked, with_scores(windows_of(checked, GRIDS[50]), perfect(MELODY)))

    captions = TASK.plot(tmp_path, results={}, evaluated=[], tracks=[melody], predict=predict)
    assert {path.name for path in tmp_path.iterdir()} == set(captions) == {"piano_roll.png"}


def test_the_head_has_two_logits_for_each_pitch():
    head = TASK.build_head(HeadConfig(kind="linear"), hidden_size=4, grid=GRIDS[50])
    assert head(torch.randn(2, 7, 4)).shape == (2, 7, 176)
