"""Run folder: settings, environment, metrics and results of a run (docs/data-formats.md)."""

import hashlib
import json
import logging
import math
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import yaml

from m2v_finetune.config import AnyRecipeConfig
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home, lock, parse_json, write_atomically
from m2v_finetune.parsing import save_config, to_dict

logger = logging.getLogger(__name__)

# Settings that may change on resume: they affect neither the data nor earlier steps.
MAY_CHANGE = (
    "run.output_dir",
    "run.resume",
    "run.memory",
    "run.checkpoint_every_steps",
    "run.keep_checkpoints",
    "cache.folder",
    "data.num_workers",
    "data.on_bad_track",
    "data.max_bad_fraction",
    "data.timeout_seconds",
    "training.epochs",
    "training.early_stopping_patience",
    "training.eval_batch_size",
    "training.on_nonfinite",
    "training.log_every_steps",
    "training.trackers",
)
# Settings that may change if their product does not: a total batch does not depend on its division.
SPLIT = ("per_device_batch_size", "gradient_accumulation_steps")
TOTAL = "The total batch"
SOURCE = "data.source"
"""Setting that may change if it has the same tracks as at the start of the run."""
LOCK_FILE = ".lock"
"""Name of the lock file of the process that trains in the run folder."""
PACKAGES = (
    "m2v-finetune",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "soundfile",
    "soxr",
)


class RunFolder:
    """Files of a run.

    Attributes:
        path: Path of the folder.
        config: Resolved settings; passed as ``--config`` they repeat the run.
        environment: Versions and machine.
        metrics: Log with one line for each logged step or epoch.
        results: Metrics of the test split with intervals.
        predictions: Table with one line for each track of the test split.
        resumes: Log with one line for each resume: versions, machine, and changed settings.
        checkpoints: Checkpoints to resume from, and the best.
        tracks: Tracks at the start of the run (`data.kept`).
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
        self.resumes = path / "resumes.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tracks = path / "tracks.json"
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
            initial = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            return bool(initial["data"]["source"] != source)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError):
            return False  # it is invalid, which `create` reports

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

    def create(self, config: AnyRecipeConfig, *, num_processes: int = 1) -> None:
        """Create the folder and write settings and environment; a resumed run keeps its own.

        Args:
            config: All settings.
            num_processes: Number of processes that train.

        Raises:
            UserError: The folder cannot be created, or has a run with other settings.
        """
        if self.is_a_run:
            self._check_same(config, num_processes=num_processes)
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.lock()
            write_json(self.environment, describe_environment(num_processes=num_processes))
            # Last, as it makes the folder a run.
            write_atomically(self.config, lambda unfinished: save_config(config, unfinished))
        except OSError as error:
            raise UserError(
                f"The run folder {self.path} cannot be created ({error}). Choose another by "
                "--run.output_dir.",
                code="run-folder-not-writable",
            ) from error

    def _check_same(self, config: AnyRecipeConfig, *, num_processes: int) -> None:
        """Raise `UserError` if settings or processes differ that a resume may not change."""
        try:
            processes_then = _count(parse_json(self.environment.read_bytes())["num_processes"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{self.environment} is missing or invalid, so the run cannot resume ({error!r}).",
                code="run-environment-unreadable",
            ) from error
        try:
            initial = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            if not isinstance(initial, dict) or not all(
                isinstance(x, dict) for x in initial.values()
            ):
                raise ValueError("it has no settings")
            then_batch = _batch(initial, processes_then)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.config} is invalid, so the run cannot resume ({error}).",
                code="run-config-unreadable",
            ) from error
        now = to_dict(config)
        changed = {
            f"{section}.{key}": (before, value)
            for section, values in now.items()
            for key, value in values.items()
            if (before := initial.get(section, {}).get(key)) != value
        }
        now_batch = _batch(now, num_processes)
        is_same_total = math.prod(then_batch) == math.prod(now_batch)
        may_change = {*MAY_CHANGE, *(f"training.{name}" for name in SPLIT if is_same_total)}
        if self.tracks.is_file():  # which the recipe has compared with the new source
            may_change.add(SOURCE)
        changes = {name: f"{name} was {a!r}, now {b!r}" for name, (a, b) in changed.items()}
        may = {name for name in changes if name in may_change or name.startswith("publish.")}
        if not is_same_total:
            changes[TOTAL] = f"{TOTAL} was {_product(then_batch)}, now {_product(now_batch)}"
            windows, left = divmod(math.prod(then_batch), now_batch[1] * num_processes)
            if not left:
                changes[TOTAL] += f"; --training.per_device_batch_size {windows} restores it"
        if changes.keys() - may:
            raise UserError(
                problem_list(
                    f"The run in {self.path} started with other settings",
                    [line for name, line in changes.items() if name not in may],
                    f"Resume with its own, by --config {self.config}. Settings that may change: publish and "
                    f"{', '.join(MAY_CHANGE)}; and {' and '.join(f'training.{name}' for name in SPLIT)}, "
                    "if their product with the number of processes does not. If a folder was moved, "
                    "a link with its old name (ln -s NEW OLD) lets the run resume with its own settings.",
                ),
                code="run-settings-changed",
            )
        may -= {"run.output_dir", "run.resume"}
        self._changed = {name: value for name, (_, value) in changed.items() if name in may}
        for name in self._changed:
            logger.info("Resuming with another setting: %s.", changes[name])
        line = {
            **describe_environment(num_processes=num_processes),
            "changed": {name: list(changed[name]) for name in self._changed},
        }
        with self.resumes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def resume_command(self) -> str:
        """Return the command that resumes this run with its current settings."""
        options = {
            "config": self.config,
            "run.output_dir": self.path,
            "run.resume": "auto",
            **{name: _as_option(value) for name, value in self._changed.items()},
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return f"{_launcher()} {shlex.join([*_program(), *words])}"

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


def _launcher() -> str:
    """Return the launcher that starts a script in the current number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return "accelerate launch --num_processes 1"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    device = "ACCELERATE_USE_CPU=true " if os.environ.get("ACCELERATE_USE_CPU") else ""
    if here == processes:
        return f"{device}torchrun --standalone --nproc_per_node {processes}"
    # On each machine; the user knows the address of the first.
    machines = f"--nnodes {processes // here} --rdzv_backend c10d --rdzv_endpoint HOST:29500"
    return f"{device}torchrun {machines} --nproc_per_node {here}"


def _batch(settings: dict[str, Any], num_processes: int) -> list[int]:
    """Return the factors of the total batch, from settings as in config.yaml."""
    training = settings.get("training", {})
    return [*(_count(training.get(name)) for name in SPLIT), num_processes]


def _count(value: Any) -> int:
    """Return a number if it is at least 1.

    Raises:
        ValueError: The value is not such a number.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a number of batches or processes")
    return value


def _product(batch: Sequence[int]) -> str:
    device, accumulated, processes = batch
    return (
        f"{device} windows x {accumulated} accumulated x {processes} processes = {math.prod(batch)}"
    )


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


def require_space(folder: Path, needed_bytes: int) -> None:
    """Check that a run's files will fit on the disk.

    Args:
        folder: Run folder, which may not exist yet.
        needed_bytes: Estimated size of all files of the run.

    Raises:
        UserError: The disk has less space.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise UserError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free; this run needs about "
            f"{needed_bytes / 1e6:,.0f} MB for checkpoints and the model. Free some, or choose another disk "
            "with --run.output_dir.",
            code="disk-space-too-small",
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    parents = (folder.resolve(), *folder.resolve().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free


def json_number(value: float) -> float | None:
    """Return a number for JSON: None if it is not finite."""
    return value if math.isfinite(value) else None


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda unfinished: _write_text(unfinished, text))


def describe_environment(*, num_processes: int = 1) -> dict[str, Any]:
    """Return versions, machine, processes and start of a run; no names of users, hosts or tokens."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "num_processes": num_processes,
        "packages": {name: version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _as_option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write_text(path: Path, text: str) -> None:
    # Bytes of a name that are not UTF-8 are escaped as in JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
