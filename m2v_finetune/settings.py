"""Settings of a run from a command line, by the name of its task; nothing that trains is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.config import PretrainingConfig
from m2v_finetune.errors import UserError
from m2v_finetune.parsing import parse_recipe, recipe_config
from m2v_finetune.shipped import quickstart_file
from m2v_finetune.tasks import TASKS, find_task

PRETRAIN = "pretrain"


def read_command(words: Sequence[str], *, recipe: str | Path | None = None) -> tuple[str, Any]:
    """Return the name of the task, and its settings.

    Args:
        words: Name of the task, then settings.
        recipe: File of the recipe; settings beside it, of the same name, are read first.

    Raises:
        UserError: There is no task, or no such task, or a setting cannot be used.
    """
    if not words or words[0].startswith("-"):
        raise UserError(
            f"No task was given. The first argument is a task: {', '.join(TASKS)}, or {PRETRAIN}. Settings "
            "follow, as in: m2v train tagging --data.source songs.csv",
            code="task-missing",
        )
    return words[0], read_config(words[0], words[1:], recipe=recipe)


def config_class(task: str) -> type[Any]:
    """Return the class of the settings of a task, or of ``pretrain``.

    Raises:
        UserError: There is no such task.
    """
    if task == PRETRAIN:
        return PretrainingConfig
    return recipe_config(find_task(task))


def require_task(name: str, *, command: str) -> type[Any]:
    """Return the class of a task for a command that is not for pre-training.

    Raises:
        UserError: There is no such task.
    """
    if name == PRETRAIN:
        raise UserError(
            f"`m2v {command}` is for tasks with labels: {', '.join(TASKS)}. Pre-training has none.",
            code="task-missing",
        )
    return find_task(name)


def read_config(task: str, argv: Sequence[str], *, recipe: str | Path | None = None) -> Any:
    """Read the settings of a task from a command line; without data, those of its quickstart.

    Args:
        task: Name of a task, such as ``tagging``, or ``pretrain``.
        argv: Settings, as ``--section.key value`` and ``--config FILE``.
        recipe: File of the recipe; settings beside it, of the same name, are read first.

    Raises:
        UserError: There is no such task, or a setting cannot be used.
    """
    quickstart = quickstart_file(task)
    runs_quickstart = f"Without --config and --data.source, `m2v train {task}` runs the quickstart."
    return parse_recipe(
        config_class(task),
        argv,
        description=f"Settings of {task}." if quickstart is None else runs_quickstart,
        quickstart=quickstart,
        recipe=recipe,
        prog=None if recipe else f"m2v train {task}",
    )
