"""Predictions in the examples of docs/tasks.md, which show the output of `m2v predict`.

They are of the quickstarts' models, trained for a few epochs, for four seconds of a test clip, a note and a
voice. Those of chords and notes are the annotation of the clip; sections and melody are made up. Numbers are
rounded.
"""

from collections.abc import Callable

import numpy as np

from m2v_finetune.labels.chords import Segment
from m2v_finetune.labels.sections import Sections
from m2v_finetune.tasks import Prediction
from m2v_finetune.tasks.beats import BeatsPrediction
from m2v_finetune.tasks.chords import ChordsPrediction
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.melody import MelodyPrediction
from m2v_finetune.tasks.separation import Stems
from m2v_finetune.tasks.structure import StructurePrediction
from m2v_finetune.tasks.transcription import TranscriptionPrediction

# Options of `m2v predict` that the page shows, by task.
EXAMPLES = {
    "tagging": ("--top 3", "--top 2 --timeline", "--format json", "--format csv"),
    "genre": ("--top 3",),
    "key": ("--top 3",),
    "emotion": ("", "--format json"),
    "instrument": ("--top 3",),
    "pitch": ("--top 3",),
    "singer": ("--top 3", "--top 1 --timeline"),
    "technique": ("--top 3",),
    "beats": ("", "--format json", "--format beats --output found"),
    "chords": ("", "--format json", "--format lab --output found"),
    "structure": ("", "--format json", "--format txt --output found"),
    "melody": ("", "--format f0 --output found"),
    "transcription": ("--timeline", "--format json", "--format midi --output found"),
    "separation": ("", "--format json", "--format wav --output found"),
}


def clip(
    *windows: tuple[float, float, dict[str, float]], mean: dict[str, float], is_ranking: bool = True
) -> ClipPrediction:
    timeline = [
        WindowPrediction(start_seconds=start, end_seconds=end, scores=scores)
        for start, end, scores in windows
    ]
    return ClipPrediction(scores=mean, timeline=timeline, is_ranking=is_ranking)


def beats() -> BeatsPrediction:
    times = [
        0.012,
        0.334,
        0.689,
        1.001,
        1.347,
        1.686,
        2.011,
        2.329,
        2.632,
        3.005,
        3.316,
        3.67,
        3.947,
    ]
    return BeatsPrediction(
        times_seconds=np.array(times),
        positions=np.resize([3, 4, 1, 2], len(times)),
        tempo_bpm=185.511,
        frame_times_seconds=np.zeros(0),
        activations=np.zeros((0, 2)),
    )


def chords() -> ChordsPrediction:
    segments = [(0.0, 0.838761, "A#:maj"), (0.838761, 2.855569, "F:maj"), (2.855569, 4.0, "G:min")]
    return ChordsPrediction(
        segments=[
            Segment(start_seconds=start, end_seconds=end, label=label)
            for start, end, label in segments
        ],
        frame_times_seconds=np.zeros(0),
        probabilities=np.zeros((0, 25)),
    )


def structure() -> StructurePrediction:
    return StructurePrediction(
        sections=Sections(
            borders_seconds=np.array([0.0, 7.36, 36.81, 51.53]), labels=("intro", "verse", "chorus")
        ),
        frame_times_seconds=np.zeros(0),
        boundaries=np.zeros(0),
    )


def melody() -> MelodyPrediction:
    return MelodyPrediction(
        times_seconds=0.012469 + 0.02 * np.arange(5),
        frequencies_hz=np.array([-219.8, 220.1, 220.3, 246.7, 247.1]),
        voicing=np.zeros(0),
    )


def notes() -> TranscriptionPrediction:
    rows = np.array(
        [
            (0.0, 0.774, 53),
            (0.0, 0.779, 58),
            (0.0, 0.781, 62),
            (0.21, 0.562, 63),
            (0.591, 0.825, 65),
        ]
    )
    return TranscriptionPrediction(
        onsets_seconds=rows[:, 0], offsets_seconds=rows[:, 1], pitches=rows[:, 2].astype(int)
    )


def stems() -> Stems:
    levels_db = {"drums": -41.04, "bass": -34.7, "chords": -38.3, "melody": -35.32}
    amplitudes = 10 ** (np.array(list(levels_db.values()), dtype=np.float32) / 20)
    chunk = np.ones((4, 1, 96_000), dtype=np.float32) * amplitudes[:, None, None]
    return Stems(
        list(levels_db), sample_rate=24_000, num_samples=chunk.shape[-1], chunks=iter([chunk])
    )


TAGS = {"double bass": 0.350, "drums": 0.736, "minor": 0.468, "piano": 0.184}
VOICE = {"alto": 0.137, "baritone": 0.206, "bass": 0.172, "soprano": 0.322, "tenor": 0.163}

# By task: the file that was predicted, and what the model said of it (made anew, as stems are read once).
PREDICTIONS: dict[str, tuple[str, Callable[[], Prediction]]] = {
    "tagging": ("song.mp3", lambda: clip((0.0, 4.0, TAGS), mean=TAGS)),
    "genre": (
        "song.mp3",
        lambda: clip(
            mean={
                "ballad": 0.027,
                "bossa nova": 0.131,
                "house": 0.132,
                "march": 0.552,
                "rock": 0.110,
                "waltz": 0.048,
            }
        ),
    ),
    "key": (
        "song.mp3",
        lambda: clip(mean={"A# major": 0.125, "A minor": 0.117, "G major": 0.085}),
    ),
    "instrument": (
        "note.wav",
        lambda: clip(mean={"brass": 0.248, "reed": 0.223, "string": 0.124}),
    ),
    "pitch": ("note.wav", lambda: clip(mean={"68": 0.096, "70": 0.073, "67": 0.066})),
    "emotion": (
        "song.mp3",
        lambda: clip(mean={"arousal": 0.041, "valence": 0.140}, is_ranking=False),
    ),
    "singer": (
        "voice.wav",
        lambda: clip(
            (0.0, 2.0, {**VOICE, "alto": 0.144, "soprano": 0.301, "tenor": 0.167}),
            (1.0, 3.0, {**VOICE, "alto": 0.130, "soprano": 0.344, "tenor": 0.158}),
            mean=VOICE,
        ),
    ),
    "technique": (
        "voice.wav",
        lambda: clip(
            mean={
                "breathy": 0.272,
                "straight": 0.215,
                "trill": 0.259,
                "vibrato": 0.251,
                "vocal_fry": 0.003,
            }
        ),
    ),
    "beats": ("song.mp3", beats),
    "chords": ("song.mp3", chords),
    "structure": ("song.mp3", structure),
    "melody": ("song.mp3", melody),
    "transcription": ("song.mp3", notes),
    "separation": ("song.mp3", stems),
}
