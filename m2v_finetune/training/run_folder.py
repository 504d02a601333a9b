"""Run folder: settings, environment, metrics and results of a run (docs/output-files.md)."""

import hashlib
import json
import logging
import os
import shlex
import sys
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from m2v_finetune.config import AnyRecipeConfig
from m2v_finetune.errors import UserError
from m2v_finetune.files import (
    append_json,
    expand_home,
    lock,
    parse_json,
    write_atomically,
    write_json,
)
from m2v_finetune.parsing import OBJECTIVE, save_config, to_dict
from m2v_finetune.training.environment import describe_environment, launcher
from m2v_finetune.training.resume_settings import TotalBatch, allowed_changes, require_count

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""Name of the lock file of the process that trains in the run folder."""


class RunFolder:
    """Files of a run.

    Attributes:
        path: Path of the folder.
        config: Resolved settings; passed as ``--config`` they repeat the run.
        environment: Versions and machine.
        metrics: Log with one line for each logged step or epoch.
        results: Metrics of the test split with intervals.
        predictions: Table with one line for each track of the test split.
        test_tracks: Targets and scores of each track of the test split (`training.track_results`).
        report: Page with all results, for a browser.
        resumes: Log with one line for each resume: versions, machine, and changed settings.
        checkpoints: Checkpoints to resume from, and the best.
        tracks: Tracks at the start of the run (`data.saved_tracks`).
        start: Facts about the model, backbone and files that the run starts from (`start_record`).
        clusters: Clusters of a run of masked prediction.
        model: Model folder for `TaskModel.from_pretrained` and the Hub.
        plots: Plots.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.predictions = path / "predictions.csv"
        self.test_tracks = path / "test_tracks.jsonl"
        self.report = path / "report.html"
        self.resumes = path / "resumes.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tracks = path / "tracks.json"
        self.start = path / "start.json"
        self.clusters = path / "clusters.safetensors"
        self.model = path / "model"
        self.plots = path / "plots"
        self._changed: dict[str, Any] = {}  # settings, by name, that changed on resume
        self._is_locked = False

    @property
    def is_a_run(self) -> bool:
        """Whether the folder is a run created by `create`."""
        return self.checkpoints.is_dir() and self.config.is_file()

    @property
    def is_half_made(self) -> bool:
        """Whether the folder is that of an interrupted `create`."""
        made = {self.checkpoints, self.environment, self.path / LOCK_FILE}
        left = [path for path in self.path.iterdir() if path not in made and path.suffix != ".part"]
        return not left and self.checkpoints.is_dir() and not any(self.checkpoints.iterdir())

    def tracker_id(self) -> str:
        """Return a name of the run for trackers, which does not change on resume or with the folder."""
        return hashlib.sha256(self.environment.read_bytes()).hexdigest()[:16]

    def is_moved(self, source: str) -> bool:
        """Return whether the run started with another ``data.source``."""
        if not self.is_a_run or not self.tracks.is_file():
            return False
        try:
            return bool(self._initial_settings()["data"]["source"] != source)
        except (ValueError, KeyError):
            return False  # the settings are invalid, which `create` reports

    def lock(self) -> None:
        """Lock the existing folder against other runs, until this process ends.

        Raises:
            UserError: Another run has the lock.
        """
        if self._is_locked:
            return
        try:
            lock(self.path / LOCK_FILE)
        except BlockingIOError as error:
            raise UserError(
                f"Another run is active in {self.path}: {error.strerror}. Two would overwrite each other's "
                "checkpoints. Wait for it, or stop it; or choose another folder with --run.output_dir.",
                code="run-already-active",
            ) from error
        self._is_locked = True

    def create(
        self,
        config: AnyRecipeConfig,
        *,
        num_processes: int = 1,
        num_threads: int = 1,
        precision: str = "no",
    ) -> None:
        """Create the folder and write settings and environment; a resumed run keeps its own.

        Args:
            config: All settings.
            num_processes: Number of processes that train.
            num_threads: Number of intra-op threads of each.
            precision: Mixed precision of the training.

        Raises:
            UserError: The folder cannot be created, or has a run with other settings.
        """
        if self.is_a_run:
            self._resume(
                config,
                num_processes=num_processes,
                num_threads=num_threads,
                precision=precision,
            )
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock()
            environment = describe_environment(
                num_processes=num_processes, num_threads=num_threads, precision=precision
            )
            write_json(self.environment, environment)
            # Last, as it makes the folder a run.
            write_atomically(self.config, lambda unfinished: save_config(config, unfinished))
        except OSError as error:
            raise UserError(
                f"The run folder {self.path} cannot be created ({error}). Choose another by "
                "--run.output_dir.",
                code="run-folder-not-writable",
            ) from error

    def _resume(
        self, config: AnyRecipeConfig, *, num_processes: int, num_threads: int, precision: str
    ) -> None:
        """Compare settings, processes and precision with those at the start, and record the resume.

        Raises:
            UserError: The files of the run are invalid, or settings differ that a resume may not change.
        """
        try:
            environment = parse_json(self.environment.read_bytes())
            initial_processes = require_count(environment["num_processes"])
            initial_threads = require_count(environment["num_threads"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.environment} is missing or invalid, so the run cannot resume ({error!r}).",
                code="run-environment-unreadable",
            ) from error
        try:
            initial = self._initial_settings()
            initial_batch = TotalBatch.of(initial, num_processes=initial_processes)
        except ValueError as error:
            raise UserError(
                f"{self.config} is invalid, so the run cannot resume ({error}).",
                code="run-config-unreadable",
            ) from error
        current = to_dict(config)
        initial_precision = environment.get("mixed_precision")
        changes = allowed_changes(
            initial,
            current,
            initial_batch=initial_batch,
            batch=TotalBatch.of(current, num_processes=num_processes),
            is_same_precision=precision == initial_precision,
            # The recipe has compared the tracks with those of the new source.
            may_source_change=self.tracks.is_file(),
            config_file=self.config,
        )
        for change in changes:
            logger.info("Resuming with another setting: %s.", change)
        if num_threads != initial_threads:
            logger.info(
                "The run started with %d threads and resumes with %d: results differ in rounding from those "
                "of an uninterrupted run. OMP_NUM_THREADS sets the number.",
                initial_threads,
                num_threads,
            )
        if initial_precision is not None and precision != initial_precision:
            logger.warning(
                "The run started in the precision %s and resumes in %s, as this machine has another "
                "processor: it differs from an uninterrupted run. --training.mixed_precision %s keeps the "
                "first.",
                initial_precision,
                precision,
                initial_precision,
            )
        self._changed = {change.name: change.current for change in changes}
        line = {
            **describe_environment(
                num_processes=num_processes, num_threads=num_threads, precision=precision
            ),
            "changed": {change.name: [change.initial, change.current] for change in changes},
        }
        append_json(self.resumes, line)

    def _initial_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings at the start of the run.

        Raises:
            ValueError: The file is invalid.
        """
        try:
            settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(error) from error
        if not isinstance(settings, dict) or not all(
            isinstance(section, dict) for name, section in settings.items() if name != OBJECTIVE
        ):
            raise ValueError("it has no settings")
        return settings

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        append_json(self.metrics, line)

    def resume_command(self) -> str:
        """Return the command that resumes this run with its current settings."""
        options = {
            "config": self.config,
            "run.output_dir": self.path,
            "run.resume": "auto",
            **{name: _as_option(value) for name, value in self._changed.items()},
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return f"{launcher()} {shlex.join([*_program(), *words])}"

    def resume_advice(self) -> str:
        """Return the message for a run that was stopped outside of a step."""
        if not self.is_a_run:
            return "Stopped before the run started. Nothing was written."
        return f"Stopped. Saved files are complete. Resume with:\n  {self.resume_command()}"

    def flush_metrics(self) -> int:
        """Flush metrics.jsonl to the disk, and return its length."""
        if not self.metrics.exists():
            return 0
        with self.metrics.open("rb") as file:
            os.fsync(file.fileno())
        return self.metrics.stat().st_size

    def cut_metrics(self, num_bytes: int) -> None:
        """Remove the log after a checkpoint; warn if lines before it are missing."""
        found = self.metrics.stat().st_size if self.metrics.exists() else 0
        if found > num_bytes:
            os.truncate(self.metrics, num_bytes)
        elif found < num_bytes:
            logger.warning(
                "%s has lost lines: it has %d bytes, and had %d when the checkpoint was written. The run "
                "continues, and its plot of training will have a gap.",
                self.metrics,
                found,
                num_bytes,
            )


def _program() -> list[str]:
    """Return the words of this process's command before its settings, such as ``m2v train genre``."""
    spec = sys.modules["__main__"].__spec__  # of python -m
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return [*program, *takewhile(lambda word: not word.startswith("-"), sys.argv[1:])]


def choose_folder(output_dir: str | None, *, task: str, resume: str) -> RunFolder:
    """Return the folder of a run to start or to resume.

    Args:
        output_dir: Folder of the settings, or None for a new one under ``runs/``.
        task: Prefix of the name of a new folder.
        resume: Setting ``never`` or ``auto``.

    Raises:
        UserError: The folder is not empty, and not to be resumed.
    """
    if output_dir is None:
        if resume == "auto":
            raise UserError(
                "run.resume is 'auto', so run.output_dir must name the run to resume.",
                code="resume-without-folder",
            )
        return RunFolder(Path("runs") / f"{task}-{datetime.now():%Y%m%d-%H%M%S}")
    path = expand_home(output_dir)
    folder = RunFolder(path)
    try:
        is_file = path.exists() and not path.is_dir()
        is_used = path.is_dir() and any(path.iterdir())
        is_a_run = folder.is_a_run
    except (OSError, ValueError) as error:
        raise UserError(
            f"run.output_dir {output_dir} cannot be used ({error}).", code="run-folder-not-readable"
        ) from error
    if is_file:
        raise UserError(
            f"run.output_dir {path} is a file. Name a folder.", code="run-folder-is-file"
        )
    if is_used and resume == "never":
        raise UserError(
            f"The run folder {path} is not empty, and nothing in it is overwritten. Choose another with "
            "--run.output_dir, or resume its run with --run.resume auto.",
            code="run-folder-not-empty",
        )
    if is_used and not is_a_run and not folder.is_half_made:
        raise UserError(
            f"The folder {path} has no run to resume (no config.yaml and checkpoints/), and nothing in "
            "it is overwritten. Choose another with --run.output_dir.",
            code="run-folder-no-run",
        )
    return folder


def read_resumes(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the lines of resumes.jsonl; none for a run that was never resumed."""
    if not folder.resumes.exists():
        return []
    return [json.loads(line) for line in folder.resumes.read_text(encoding="utf-8").splitlines()]


def _as_option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
