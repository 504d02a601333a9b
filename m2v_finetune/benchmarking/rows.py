"""Rows of the benchmark's table: tasks, their data sets, windows, and the reported numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2v_finetune.tasks import Task
from m2v_finetune.tasks.beats import BeatsConfig, BeatTracking
from m2v_finetune.tasks.chords import ChordRecognition, ChordsConfig
from m2v_finetune.tasks.emotion import Emotion, EmotionConfig
from m2v_finetune.tasks.genre import Genre, GenreConfig
from m2v_finetune.tasks.instrument import Instrument, InstrumentConfig
from m2v_finetune.tasks.key import Key, KeyConfig
from m2v_finetune.tasks.pitch import Pitch, PitchConfig
from m2v_finetune.tasks.separation import Separation, SeparationConfig
from m2v_finetune.tasks.singer import Singer, SingerConfig
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.tasks.technique import Technique, TechniqueConfig
from m2v_finetune.tasks.transcription import Transcription, TranscriptionConfig

BATCH_SIZE = 64
PAPERS = "MERT, arXiv 2306.00107; MARBLE, arXiv 2306.10548"
MODELS = ("Jukebox-5B", "data2vec-music", "MERT-v1-95M", "MERT-v1-330M")
NO_NUMBERS = (None, None, None, None)
ONE_FOLD = "One fold of eight is the test."
OWN_SPLIT = "The published probes score chunks of 3 s, by another split."


@dataclass(frozen=True, kw_only=True)
class Row:
    """Task on a data set.

    Attributes:
        task: Class of the task.
        settings: Section ``task`` of a recipe's settings.
        data_set: Name of the data set in `m2v data prepare`, and of its folder.
        manifest: Name of the manifest in that folder.
        reported: Published values for `MODELS` by metric, in per cent; None where there is none.
        archive: Name of the data set in jukemir's archives, if different.
        window_seconds: Length of a window.
        hop_seconds: Hop between windows in evaluation; the window if None.
        windows_per_track: Number of random windows of a track in an epoch.
        per_device_batch_size: Batch size, which fits a GPU of 11 GB.
        epochs: Maximum number of epochs.
        patience: Number of epochs without a better validation metric, after which training ends.
        note: Reason why published values are not comparable.
    """

    task: type[Task]
    settings: Any
    data_set: str
    manifest: str = "manifest.jsonl"
    reported: Mapping[str, tuple[float | None, ...]]
    archive: str | None = None
    window_seconds: float = 5.0
    hop_seconds: float | None = None
    windows_per_track: int = 1
    per_device_batch_size: int = BATCH_SIZE
    epochs: int = 100
    patience: int = 10
    note: str = ""

    @property
    def name(self) -> str:
        """Name of the row and of its folder, such as ``tagging-mtg-jamendo-genre``."""
        stem = self.manifest.removesuffix(".jsonl")
        parts = [self.task.name, self.data_set]
        return "-".join([*parts, stem] if stem not in ("manifest", self.task.name) else parts)


def _jamendo(tag_set: str, roc_auc: Sequence[float], average_precision: Sequence[float]) -> Row:
    return Row(
        task=Tagging,
        settings=TaggingConfig(),
        data_set="mtg-jamendo",
        manifest=f"{tag_set}.jsonl",
        reported={"roc_auc": (None, *roc_auc), "average_precision": (None, *average_precision)},
        window_seconds=30.0,
        per_device_batch_size=16,
    )


def _beats(
    data_set: str,
    windows_per_track: int,
    reported: tuple[float | None, ...] = NO_NUMBERS,
    note: str = "",
) -> Row:
    return Row(
        task=BeatTracking,
        settings=BeatsConfig(),
        data_set=data_set,
        reported={
            "f_measure": reported,
            "downbeat_f_measure": NO_NUMBERS,
            "tempo_accuracy_1": NO_NUMBERS,
        },
        window_seconds=10.0,
        hop_seconds=5.0,
        windows_per_track=windows_per_track,
        per_device_batch_size=32,
        note=note,
    )


def _chords(data_set: str) -> Row:
    return Row(
        task=ChordRecognition,
        settings=ChordsConfig(),
        data_set=data_set,
        reported={"majmin": NO_NUMBERS, "root": NO_NUMBERS},
        window_seconds=10.0,
        hop_seconds=5.0,
        windows_per_track=8,
        per_device_batch_size=32,
    )


# Windows, epochs and batches are those of configs/<task>/<data set>-probe.yaml. Reported numbers are those
# of frozen probes, quoted from `PAPERS`; some are known second hand.
TABLE = (
    Row(
        task=Tagging,
        settings=TaggingConfig(),
        data_set="magnatagatune",
        reported={
            "roc_auc": (91.5, 90.0, 91.0, 91.3),
            "average_precision": (41.4, 36.2, 39.3, 40.2),
        },
    ),
    _jamendo("instrument", (76.1, 77.5, 78.1), (19.2, 19.4, 19.8)),
    _jamendo("moodtheme", (76.7, 76.4, 76.5), (14.3, 13.4, 14.0)),
    _jamendo("genre", (87.1, 87.1, 86.7), (18.8, 18.8, 18.6)),
    _jamendo("top50tags", (83.0, 83.0, 83.4), (29.2, 28.9, 29.9)),
    Row(
        task=Genre,
        settings=GenreConfig(),
        data_set="gtzan",
        archive="gtzan_ff",
        reported={"accuracy": (79.7, 74.1, 78.6, 79.3)},
        window_seconds=30.0,
        per_device_batch_size=16,
    ),
    Row(
        task=Key,
        settings=KeyConfig(),
        data_set="giantsteps",
        archive="giantsteps_clips",
        reported={"mirex_score": (66.7, 50.6, 63.5, 65.6), "accuracy": NO_NUMBERS},
        window_seconds=30.0,
        per_device_batch_size=16,
    ),
    Row(
        task=Emotion,
        settings=EmotionConfig(),
        data_set="emomusic",
        reported={"r2_valence": (61.7, 52.1, 60.0, 61.2), "r2_arousal": (72.1, 71.0, 76.4, 74.7)},
    ),
    Row(
        task=Instrument,
        settings=InstrumentConfig(),
        data_set="nsynth",
        reported={"accuracy": (70.4, 69.4, 70.7, 72.6)},
        window_seconds=4.0,
        epochs=50,
    ),
    Row(
        task=Pitch,
        settings=PitchConfig(),
        data_set="nsynth",
        reported={"accuracy": (91.6, 93.1, 92.6, 94.4)},
        window_seconds=4.0,
        epochs=50,
    ),
    Row(
        task=Singer,
        settings=SingerConfig(),
        data_set="vocalset",
        manifest="singer.jsonl",
        reported={"accuracy": (82.6, 81.4, 83.7, 87.1)},
        window_seconds=3.0,
        note=OWN_SPLIT,
    ),
    Row(
        task=Technique,
        settings=TechniqueConfig(),
        data_set="vocalset",
        manifest="technique.jsonl",
        reported={"accuracy": (76.7, 71.1, 74.2, 76.9)},
        window_seconds=3.0,
        note=OWN_SPLIT,
    ),
    _beats("gtzan-rhythm", 2, (None, 68.2, 88.3, 87.9)),
    _beats("ballroom", 2, note=ONE_FOLD),
    _beats("hainsworth", 4, note=ONE_FOLD),
    _beats("smc", 3, note=ONE_FOLD),
    _chords("isophonics"),
    _chords("billboard"),
    Row(
        task=Transcription,
        settings=TranscriptionConfig(),
        data_set="maestro",
        reported={"note_f1": NO_NUMBERS, "frame_f1": NO_NUMBERS},
        hop_seconds=2.5,
        windows_per_track=32,
        epochs=30,
        patience=5,
    ),
    Row(
        task=Separation,
        settings=SeparationConfig(),
        data_set="musdb18",
        reported={"sdr": NO_NUMBERS},
        hop_seconds=2.5,
        windows_per_track=32,
    ),
)
METRICS_IN_DB = ("sdr",)
