"""Tasks, one module each: labels, head, loss, track aggregation, metrics and predictions."""

from importlib.metadata import entry_points

from m2v_finetune.errors import UserError
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.chords import ChordRecognition
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.instrument import Instrument
from m2v_finetune.tasks.key import Key
from m2v_finetune.tasks.melody import MelodyExtraction
from m2v_finetune.tasks.pitch import Pitch
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.singer import Singer
from m2v_finetune.tasks.structure import StructureAnalysis
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.tasks.task import Prediction, Task
from m2v_finetune.tasks.technique import Technique
from m2v_finetune.tasks.transcription import Transcription

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Tagging,
        Genre,
        Key,
        Emotion,
        Instrument,
        Pitch,
        Singer,
        Technique,
        BeatTracking,
        ChordRecognition,
        StructureAnalysis,
        MelodyExtraction,
        Transcription,
        Separation,
    )
}
"""Tasks of the package by name, in the order of the documentation."""

ENTRY_POINTS = "m2v_finetune.tasks"


def register_task(task_class: type[Task]) -> type[Task]:
    """Add a task of one's own to `TASKS`, so that its models can be loaded; also a decorator.

    A class that is defined again, as in a notebook, takes the place of the earlier one.

    An installed package need not call it: the entry point ``m2v_finetune.tasks`` of its pyproject.toml names
    its tasks (docs/own-task.md).

    Raises:
        UserError: Another task has the name, or it is no class with a name.
    """
    if not (isinstance(task_class, type) and isinstance(getattr(task_class, "name", None), str)):
        raise UserError(
            f"{task_class!r} is no task: a task is a class with a `name` (docs/own-task.md).",
            code="task-not-a-class",
        )
    known = TASKS.get(task_class.name, task_class)
    if (known.__module__, known.__qualname__) != (task_class.__module__, task_class.__qualname__):
        raise UserError(
            f"There is a task '{task_class.name}' already: {known.__module__}.{known.__name__}. Give yours "
            "another name.",
            code="task-exists",
        )
    TASKS[task_class.name] = task_class
    return task_class


def find_task(name: str) -> type[Task]:
    """Return the task of a name: one of `TASKS`, or one that an installed package has as an entry point.

    Raises:
        UserError: There is no such task.
    """
    if name not in TASKS:
        for entry_point in entry_points(group=ENTRY_POINTS, name=name):
            register_task(entry_point.load())
    if name not in TASKS:
        raise UserError(
            f"There is no task '{name}'. Choose one of: {', '.join(TASKS)}. A task of your own is known "
            "where register_task was called, or where its package is installed (docs/own-task.md).",
            code="task-unknown",
        )
    return TASKS[name]


__all__ = ["TASKS", "Prediction", "Task", "find_task", "register_task"]
