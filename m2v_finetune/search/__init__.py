"""Search of settings by Optuna: `space` has what is searched, `study` the trials, `summary` the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.errors import UserError


def search_settings(
    task: str,
    words: Sequence[str],
    over: Sequence[str],
    *,
    output: Path,
    num_trials: int,
    command: str,
) -> Mapping[str, Any]:
    """Search settings of a task on the validation split; the test split is not evaluated.

    The same call resumes. Several processes that make it share the trials.

    Args:
        task: Name of the task.
        words: Settings of each trial, as ``--section.key=value`` and ``--config FILE``.
        over: What is searched, as ``section.key=log(1e-5,1e-2)`` or ``section.key=one,another``.
        output: Folder of the search.
        num_trials: Number of trials, with those that are there.
        command: Command that resumes, for messages.

    Returns:
        Content of search.json.

    Raises:
        UserError: Optuna is not installed, or a setting cannot be searched, or no trial was completed.
        Stopped: A signal arrived; the same command resumes.
    """
    try:
        from m2v_finetune.search.study import run_search
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError(
            f"`m2v search` needs Optuna ({error}). Install it with `pip install 'm2v-finetune[search]'`.",
            code="search-not-installed",
        ) from error
    return run_search(task, words, over, output=output, num_trials=num_trials, command=command)
