"""What augmentation may do to the labels of each clip task, as a table, and on sound.

Pitch is shifted in audio of a known key or note; what is heard afterwards is what the label says.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.clip_tracks import make_track
from support.frames import GRID
from support.messages import names, raises

from m2v_finetune.audio.augmentation import TRANSFORMS, Effect, build_augmentation
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.labels.keys import KEYS
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.instrument import Instrument
from m2v_finetune.tasks.key import Key
from m2v_finetune.tasks.pitch import Pitch
from m2v_finetune.tasks.singer import Singer
from m2v_finetune.tasks.technique import Technique

SAMPLE_RATE = 16000

CLASSES = {"labels": ("a", "b"), "label_column": "label"}
TASKS = {
    "genre": Genre(**CLASSES),
    "instrument": Instrument(**CLASSES),
    "singer": Singer(**CLASSES),
    "technique": Technique(**CLASSES),
    "emotion": Emotion(labels=("arousal",), means=(0.0,), stds=(1.0,)),
    "key": Key(labels=KEYS, label_column="key"),
    "pitch": Pitch(labels=tuple(map(str, range(48, 73))), label_column="pitch"),
}
# What a task does about each effect.
TABLE = """
             PITCH    TIME     SILENCE  LEVEL    TIMBRE   NOISE
genre        allowed  allowed  allowed  allowed  allowed  allowed
instrument   refused  refused  allowed  allowed  refused  allowed
singer       refused  allowed  allowed  allowed  refused  allowed
technique    allowed  refused  allowed  refused  refused  allowed
emotion      refused  refused  allowed  refused  allowed  allowed
key          moved    allowed  allowed  allowed  allowed  allowed
pitch        moved    allowed  allowed  allowed  allowed  allowed
"""
# So these transforms are refused.
OF_TIMBRE = {
    *("low_pass", "high_pass", "band_pass", "band_stop", "peaking", "low_shelf", "high_shelf"),
    *("seven_band_parametric_eq", "clipping_distortion", "tanh_distortion", "impulse_response"),
    "pitch_shift",  # formants move with the pitch
}
OF_LEVEL = {"gain", "gain_transition", "impulse_response"}
OF_TIME = {"shift", "time_stretch"}
REFUSED = {
    "genre": set(),
    "instrument": OF_TIMBRE | OF_TIME,
    "singer": OF_TIMBRE,
    "technique": OF_TIMBRE | OF_TIME | OF_LEVEL,
    "emotion": {"pitch_shift"} | OF_TIME | OF_LEVEL,
    "key": set(),
    "pitch": set(),
}


def build(task, *transforms):
    """As a recipe does."""
    return build_augmentation(
        transforms,
        sample_rate=SAMPLE_RATE,
        allowed_effects=task.allowed_effects(),
        transformed_effects=task.transformed_effects(),
        task=task.name,
    )


# -- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_what_each_effect_does_to_the_labels(name):
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    assert header == [effect.name for effect in Effect]
    assert [row[0] for row in rows] == list(TASKS)
    [expected] = [row[1:] for row in rows if row[0] == name]
    task = TASKS[name]
    allowed, transformed = task.allowed_effects(), task.transformed_effects()
    assert not allowed & transformed
    assert [
        "allowed" if effect in allowed else "moved" if effect in transformed else "refused"
        for effect in Effect
    ] == expected


REFUSALS = [(task, transform) for task in TASKS for transform in sorted(REFUSED[task])]


@pytest.mark.parametrize(("name", "transform"), REFUSALS)
def test_what_labels_cannot_follow_is_refused(name, transform):
    task = TASKS[name]
    with raises("transform-changes-labels") as raised:
        build(task, {"name": "polarity_inversion"}, {"name": transform})
    message = str(raised.value)
    assert f"augmentation: {transform} " in message
    assert names(message, f"'{name}'")
    survives = task.allowed_effects() | task.transformed_effects()
    for effect in Effect:
        is_reason = effect in TRANSFORMS[transform][1] - survives
        assert (effect.value in message.partition("which the labels")[0]) == is_reason
    legal = message.rpartition("Legal for this task: ")[2].rstrip(".").split(", ")
    assert set(legal) == set(TRANSFORMS) - REFUSED[name]


@pytest.mark.parametrize("name", TASKS)
def test_the_rest_is_allowed(name):
    cheap = {"polarity_inversion", "gain", "gaussian_snr", "time_mask", "low_pass", "shift"}
    transforms = sorted((cheap | {"pitch_shift"}) - REFUSED[name])
    assert build(TASKS[name], *({"name": transform} for transform in transforms)) is not None


# -- sound ----------------------------------------------------------------------------------------


def harmonics(midi: float, *, seconds: float = 3.0) -> np.ndarray:
    """A note whose fundamental is its strongest partial."""
    frequency = 440 * 2 ** ((midi - 69) / 12)
    phase = 2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return sum(np.sin(number * phase) / number**2 for number in range(1, 4))


def tonic_chord(key: int) -> np.ndarray:
    """The triad on the tonic of a key, loudest on the tonic, between MIDI 60 and 79."""
    is_minor, tonic = divmod(key, 12)
    notes = [(0, 0.5), (3 if is_minor else 4, 0.3), (7, 0.2)]
    return sum(weight * harmonics(60 + tonic + interval) for interval, weight in notes)


def spectrum(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MIDI pitches of the bins of a spectrum, and its magnitudes."""
    magnitudes = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=2**18))[1:]
    frequencies = np.fft.rfftfreq(2**18, 1 / SAMPLE_RATE)[1:]
    return 69 + 12 * np.log2(frequencies / 440), magnitudes


def strongest_pitch(samples: np.ndarray) -> float:
    pitches, magnitudes = spectrum(samples)
    return float(pitches[magnitudes.argmax()])


def strength_at(samples: np.ndarray, pitch: float) -> float:
    """The magnitude within a third of a semitone."""
    pitches, magnitudes = spectrum(samples)
    return float(magnitudes[np.abs(pitches - pitch) < 1 / 3].max())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Writes music to a file and returns it as a track that was checked."""
    folder = tmp_path_factory.mktemp("audio")

    def write(samples: np.ndarray, **columns: object) -> CheckedTrack:
        path = folder / "_".join(str(cell) for cell in columns.values())
        path = path.with_suffix(".wav")
        soundfile.write(path, 0.3 * samples, SAMPLE_RATE, subtype="FLOAT")
        track = replace(make_track(columns), path=path)
        return CheckedTrack(track=track, audio=inspect_audio(path))

    return write


WINDOW = Window(start_sample=8000, num_samples=2 * SAMPLE_RATE, grid=GRID)


def shifted_example(task, checked, semitones: int):
    """The example of a window without augmentation, and that with a shift of pitch."""
    shift = {"name": "pitch_shift", "p": 1.0}
    augmentation = build(task, shift | {"min_semitones": semitones, "max_semitones": semitones})
    augment = partial(augmentation, generator=np.random.default_rng(0))
    return task.example(checked, WINDOW, None), task.example(checked, WINDOW, augment)


CENTS_30 = 0.3


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@example(key=12, semitones=-3)
@given(key=st.integers(0, 23), semitones=st.integers(-7, 7).filter(bool))
def test_a_shift_of_pitch_moves_the_sound_and_the_key_alike(record, key, semitones):
    task = TASKS["key"]
    checked = record(tonic_chord(key), key=KEYS[key])
    (before, label), (after, transformed) = shifted_example(task, checked, semitones)
    assert after.shape == before.shape
    assert label == key
    assert transformed == key // 12 * 12 + (key + semitones) % 12
    tonic = strongest_pitch(after)
    assert tonic == pytest.approx(strongest_pitch(before) + semitones, abs=CENTS_30)
    # The label says what is heard: that tonic, with that third over it.
    is_minor, tonic_class = divmod(int(transformed), 12)
    assert (tonic - tonic_class + 6) % 12 == pytest.approx(6, abs=CENTS_30)
    # Its octave counts too, as a shift now and then cancels one partial of a note (C minor, 3 down).
    thirds = [
        strength_at(after, tonic + interval) + strength_at(after, tonic + interval + 12)
        for interval in (4, 3)
    ]
    assert int(np.argmax(thirds)) == is_minor
    assert max(thirds) > 3 * min(thirds)


def test_each_of_the_24_keys_sounds_as_its_label(record):
    for key in range(24):
        samples, label = TASKS["key"].example(record(tonic_chord(key), key=KEYS[key]), WINDOW, None)
        assert label == key
        assert (strongest_pitch(samples) - label % 12 + 6) % 12 == pytest.approx(6, abs=0.05)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(pitch=st.integers(48, 72), to=st.integers(48, 72))
def test_a_shift_of_pitch_moves_the_note_and_its_label_alike(record, pitch, to):
    task = TASKS["pitch"]
    checked = record(harmonics(pitch), pitch=pitch)
    (before, label), (after, transformed) = shifted_example(task, checked, to - pitch)
    assert (task.labels[int(label)], task.labels[int(transformed)]) == (str(pitch), str(to))
    assert strongest_pitch(before) == pytest.approx(pitch, abs=0.05)
    assert strongest_pitch(after) == pytest.approx(to, abs=CENTS_30)


@pytest.mark.parametrize(("pitch", "semitones"), [(72, 1), (70, 5), (48, -1)])
def test_a_note_that_would_leave_the_classes_stays_as_it_is(record, pitch, semitones):
    task = TASKS["pitch"]
    checked = record(harmonics(pitch), pitch=pitch)
    (before, label), (after, transformed) = shifted_example(task, checked, semitones)
    np.testing.assert_array_equal(after, before)
    assert label == transformed == pitch - 48


@pytest.mark.parametrize("name", ["genre", "singer", "key", "pitch"])
def test_an_effect_that_is_allowed_changes_the_sound_and_not_the_label(record, name):
    task = TASKS[name]
    cells = {"label": "b", "key": "C minor", "pitch": 60}
    checked = record(harmonics(60), **cells)
    augmentation = build(task, {"name": "time_stretch", "p": 1.0, "min_rate": 1.2})
    augment = partial(augmentation, generator=np.random.default_rng(0))
    before, label = task.example(checked, WINDOW, None)
    after, transformed = task.example(checked, WINDOW, augment)
    assert not np.array_equal(before, after)
    assert label == transformed == {"key": 12, "pitch": 12}.get(name, 1)
