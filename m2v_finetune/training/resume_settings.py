"""Settings that may change when a run resumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.parsing import flat_settings

Settings = Mapping[str, Mapping[str, Any]]
"""Settings by section, as in config.yaml."""
# They affect neither the data nor earlier steps.
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
# They may change if their product does not: a total batch does not depend on its division.
SPLIT = ("per_device_batch_size", "gradient_accumulation_steps")
SOURCE = "data.source"
"""Setting that may change if it has the same tracks as at the start of the run."""
PRECISION = "training.mixed_precision"
"""Setting that may change if the precision stays: ``bf16`` on a machine where ``auto`` would be another."""
OF_RESUME = ("run.output_dir", "run.resume")
"""Settings of each resume itself."""


@dataclass(frozen=True)
class TotalBatch:
    """Total batch of a step and its division."""

    windows: int
    accumulated: int
    processes: int

    @classmethod
    def of(cls, settings: Settings, *, num_processes: int) -> "TotalBatch":
        """Return the total batch of settings.

        Raises:
            ValueError: The settings have no valid numbers.
        """
        training = settings.get("training", {})
        windows, accumulated = (require_count(training.get(name)) for name in SPLIT)
        return cls(windows, accumulated, num_processes)

    @property
    def size(self) -> int:
        """Number of windows of a step."""
        return self.windows * self.accumulated * self.processes

    def __str__(self) -> str:
        return (
            f"{self.windows} windows x {self.accumulated} accumulated x {self.processes} processes "
            f"= {self.size}"
        )


@dataclass(frozen=True)
class Change:
    """Setting whose value differs from that at the start of the run."""

    name: str
    initial: Any
    current: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.initial!r}, now {self.current!r}"


def require_count(value: Any) -> int:
    """Return a number if it is at least 1.

    Raises:
        ValueError: The value is not such a number.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a number of batches or processes")
    return value


def allowed_changes(
    initial: Settings,
    current: Settings,
    *,
    initial_batch: TotalBatch,
    batch: TotalBatch,
    is_same_precision: bool,
    may_source_change: bool,
    config_file: Path,
) -> list[Change]:
    """Compare the settings of a resumed run with those at its start.

    Args:
        initial: Settings at the start.
        current: Settings now.
        initial_batch: Total batch at the start.
        batch: Total batch now.
        is_same_precision: Whether the run computes in the precision of its start, by whatever setting.
        may_source_change: Whether the current source is known to have the same tracks.
        config_file: File with the initial settings, in the run folder.

    Returns:
        Changed settings, without those of the resume itself.

    Raises:
        UserError: Settings or the total batch differ that a resume may not change.
    """
    before = flat_settings(dict(initial))
    changes = [
        Change(name, before.get(name), value)
        for name, value in flat_settings(dict(current)).items()
        if before.get(name) != value
    ]
    is_same_total = batch.size == initial_batch.size
    may_change = {*MAY_CHANGE, *(f"training.{name}" for name in SPLIT if is_same_total)}
    if is_same_precision:
        may_change.add(PRECISION)
    if may_source_change:
        may_change.add(SOURCE)
    allowed = [one for one in changes if one.name in may_change or one.name.startswith("publish.")]
    problems = [str(one) for one in changes if one not in allowed]
    if not is_same_total:
        problems.append(_other_total(initial_batch, batch))
    if problems:
        raise _other_settings(problems, config_file)
    return [one for one in allowed if one.name not in OF_RESUME]


def _other_total(initial: TotalBatch, now: TotalBatch) -> str:
    message = f"The total batch was {initial}, now {now}"
    windows, rest = divmod(initial.size, now.accumulated * now.processes)
    return message if rest else f"{message}; --training.per_device_batch_size {windows} restores it"


def _other_settings(problems: Sequence[str], config_file: Path) -> UserError:
    return UserError(
        problem_list(
            f"The run in {config_file.parent} started with other settings",
            problems,
            f"Resume with its own, by --config {config_file}. Settings that may change: publish and "
            f"{', '.join(MAY_CHANGE)}; and {' and '.join(f'training.{name}' for name in SPLIT)}, "
            f"if their product with the number of processes does not; and {PRECISION}, if the precision "
            "stays. If a folder was moved, a link with its old name (ln -s NEW OLD) lets the run resume with "
            "its own settings.",
        ),
        code="run-settings-changed",
    )
