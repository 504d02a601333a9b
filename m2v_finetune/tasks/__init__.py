"""Tasks, one module each: labels, head, loss, track aggregation, metrics and predictions."""

from typing import Any

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
from m2v_finetune.tasks.task import Prediction, Task
from m2v_finetune.tasks.technique import Technique, TechniqueConfig
from m2v_finetune.tasks.transcription import Transcription, TranscriptionConfig

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        BeatTracking,
        ChordRecognition,
        Emotion,
        Genre,
        Instrument,
        Key,
        Pitch,
        Separation,
        Singer,
        Tagging,
        Technique,
        Transcription,
    )
}

TASK_SETTINGS: dict[str, type[Any]] = {
    BeatTracking.name: BeatsConfig,
    ChordRecognition.name: ChordsConfig,
    Emotion.name: EmotionConfig,
    Genre.name: GenreConfig,
    Instrument.name: InstrumentConfig,
    Key.name: KeyConfig,
    Pitch.name: PitchConfig,
    Separation.name: SeparationConfig,
    Singer.name: SingerConfig,
    Tagging.name: TaggingConfig,
    Technique.name: TechniqueConfig,
    Transcription.name: TranscriptionConfig,
}
"""The section ``task`` of each task's settings."""

__all__ = ["TASKS", "TASK_SETTINGS", "Prediction", "Task"]
