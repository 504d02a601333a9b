"""Trials of a search: asked from Optuna, run without test evaluation, pruned, and kept in an SQLite file."""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.files import lock
from m2v_finetune.parsing import flat_settings, to_dict
from m2v_finetune.runs import train_task
from m2v_finetune.search.space import Dimension, parse_space, sampler, suggest
from m2v_finetune.search.summary import write_summary
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import Task, find_task
from m2v_finetune.training.resume_settings import MAY_CHANGE
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.starting import start_logging

logger = logging.getLogger(__name__)

DATABASE = "study.db"
FAILED = "error"
"""User attribute of a trial: why it failed."""
COMBINATIONS = ("settings-conflict", "head-unsupported-setting")
FAILURES = (*COMBINATIONS, "settings-range", "training-not-finite")
"""Codes of errors that fail one trial, whose settings do not fit together or diverge. So do those of memory;
others end the search."""
NUM_UNPRUNED = 5
"""Number of complete trials before others are pruned."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and where.

    Attributes:
        task: Class of the task.
        words: Settings of each trial, as words of a command line.
        config: The same, read.
        dimensions: Settings that are searched.
        folder: Folder of the search.
    """

    task: type[Task]
    words: Sequence[str]
    config: RecipeConfig
    dimensions: Sequence[Dimension]
    folder: Path


def run_search(
    task: str,
    words: Sequence[str],
    over: Sequence[str],
    *,
    output: Path,
    num_trials: int,
    command: str,
) -> Mapping[str, Any]:
    """Run the trials that are missing, and write the summary; see `search.search_settings`."""
    start_logging()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "`m2v search` trains each trial in one process. Start the same command several times, without "
            "accelerate launch: the processes share the trials.",
            code="search-in-processes",
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = read_config(task, words)
    if config.data.folds is not None:
        raise UserError(
            "`m2v search` compares trials on the validation split, and data.folds has one for each fold. "
            "Remove it, and use it for the best settings.",
            code="settings-conflict",
        )
    search = Search(
        task=find_task(task),
        words=words,
        config=config,
        dimensions=parse_space(over, flat_settings(to_dict(config))),
        folder=output,
    )
    _check_values(search)
    advice = f"Stopped. Finished trials are kept. Resume with the same command:\n  {command}"
    study = _open_study(search, over)
    try:
        with stop_on_signals(lambda: advice):
            while (found := _next_trial(search, study, num_trials)) is not None:
                _run_trial(search, study, *found)
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, advice) from stopped
    return write_summary(study, output, config, search.task, words, task)


def _check_values(search: Search) -> None:
    """Raise `UserError` for a value, or an end of a range, that no trial can have; nothing is written yet."""
    for dimension in search.dimensions:
        for value in dimension.values or (dimension.low, dimension.high):
            shown = int(value) if dimension.kind == "int" else value
            try:
                read_config(search.task.name, [*search.words, f"--{dimension.key}={shown}"])
            except UserError as error:
                if error.code not in COMBINATIONS:
                    raise UserError(
                        f"--over {dimension.key} cannot have {shown}: {error}",
                        code="search-space-invalid",
                    ) from error


def _open_study(search: Search, over: Sequence[str]) -> optuna.Study:
    """Create or load the study; refuse one of other settings."""
    path = search.folder / DATABASE
    # Another process may be creating the study: its files begin with "study.".
    is_foreign = search.folder.is_dir() and not all(
        one.name.startswith("study.") or path.is_file() for one in search.folder.iterdir()
    )
    if is_foreign:
        raise UserError(
            f"The folder {search.folder} has no search ({DATABASE}), and nothing in it is overwritten. "
            "Choose another with --output.",
            code="output-exists",
        )
    search.folder.mkdir(parents=True, exist_ok=True)
    with _locked(search.folder / "study.lock"):
        study = optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name="search",
            sampler=sampler(search.config.run.seed),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=NUM_UNPRUNED, n_warmup_steps=search.config.training.epochs // 4
            ),
            direction="maximize",
            load_if_exists=True,
        )
        settings = flat_settings(to_dict(search.config))
        now = {key: value for key, value in settings.items() if key not in MAY_CHANGE}
        now |= {"task": search.task.name, "--over": sorted(over)}
        now["training.epochs"] = search.config.training.epochs
        now = json.loads(json.dumps(now))
        initial = study.user_attrs.get("settings")
        if initial is None:
            study.set_user_attr("settings", now)
        elif initial != now:
            changed = [key for key in {**initial, **now} if initial.get(key) != now.get(key)]
            raise UserError(
                f"The search in {search.folder} has other settings: {', '.join(sorted(changed))}. Resume it "
                "with its own, or choose another folder with --output.",
                code="run-settings-changed",
            )
    return study


def _next_trial(
    search: Search, study: optuna.Study, num_trials: int
) -> tuple[optuna.Trial, dict[str, Any], int] | None:
    """Return a trial to run, its settings, and its lock; None if all are run, or run by other processes.

    An interrupted trial comes first: one that is running by the database, and whose lock is free.
    """
    (search.folder / "trials").mkdir(exist_ok=True)
    with _locked(search.folder / "study.lock"):
        trials = study.get_trials(deepcopy=False)
        trial = held = None
        for one in trials:
            if one.state == TrialState.RUNNING and (held := _try_lock(search, one.number)):
                trial = optuna.Trial(study, one._trial_id)
                logger.info("Trial %d was interrupted, and resumes.", one.number)
                break
        if trial is None and len(trials) >= num_trials:
            return None
        if trial is None:
            trial = study.ask()
            held = _try_lock(search, trial.number)
        assert held is not None
        base = flat_settings(to_dict(search.config))
        return trial, suggest(trial, search.dimensions, base, seed=search.config.run.seed), held


def _run_trial(
    search: Search, study: optuna.Study, trial: optuna.Trial, chosen: Mapping[str, Any], held: int
) -> None:
    """Train a trial, and record its best validation metric."""
    shown = ", ".join(f"{key} {value}" for key, value in chosen.items())
    logger.info("Trial %d: %s", trial.number, shown)
    same = _finished_trial_with(study, trial.params)
    if same is not None:
        logger.info("It has the settings of trial %d, and so its result.", same.number)
        for epoch, reported in same.intermediate_values.items():
            trial.report(reported, epoch)
        study.tell(trial, same.value if same.state == TrialState.COMPLETE else None, same.state)
        os.close(held)
        return
    folder = RunFolder(_trial_folder(search, trial.number))
    metric = search.task.selection_metric

    def report(epoch: int, values: Mapping[str, float]) -> None:
        """Report an epoch, and stop a trial that is below the median of the others."""
        if values[metric] == values[metric]:  # not nan
            trial.report(values[metric], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        config = read_config(
            search.task.name,
            [*search.words, *(f"--{key}={value}" for key, value in chosen.items())],
        )
        config = replace(
            config,
            run=replace(config.run, output_dir=str(folder.path), resume="auto"),
            publish=replace(config.publish, repo_id=None),
        )
        results = train_task(config, search.task, is_search=True, on_epoch=report).results
    except optuna.TrialPruned:
        logger.info("Trial %d was stopped: it is below the median of the others.", trial.number)
        study.tell(trial, state=TrialState.PRUNED)
    except UserError as error:
        if error.code not in FAILURES and "memory" not in error.code:
            raise
        logger.warning("Trial %d failed: %s", trial.number, error)
        trial.set_user_attr(FAILED, str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        value = results["validation"][metric]
        if value is None:
            trial.set_user_attr(FAILED, f"{metric} is not defined for the validation tracks")
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # the best settings are trained anew
    os.close(held)


def _finished_trial_with(
    study: optuna.Study, params: Mapping[str, Any]
) -> optuna.trial.FrozenTrial | None:
    """Return a finished trial with these settings, which would give the same result again; None without."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return next((one for one in finished if one.params == params), None)


def _trial_folder(search: Search, number: int) -> Path:
    return search.folder / "trials" / f"trial-{number:04d}"


def _try_lock(search: Search, number: int) -> int | None:
    """Return the lock of a trial, or None if another process has it."""
    try:
        return lock(search.folder / "trials" / f"trial-{number:04d}.lock")
    except BlockingIOError:
        return None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait for a lock file, and hold it."""
    while True:
        try:
            held = lock(path)
            break
        except BlockingIOError:
            time.sleep(0.1)
    try:
        yield
    finally:
        os.close(held)
