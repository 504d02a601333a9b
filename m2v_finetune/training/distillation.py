"""Distillation: a student learns the outputs of a trained teacher, on tracks with or without labels."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, fields, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Array, Augment, TrainingWindows, Window, load_waveform
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel, read_description
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.training.run import Run
from m2v_finetune.training.start_record import require_same_model

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of the student's outputs and of the waveforms that they are computed from."""
OF_STUDENT = ("label_column", "target_columns", "threshold_precision", "ignore_unknown_labels")
"""Settings of the section ``task`` that a student may have of its own."""


def check_teacher_settings(config: RecipeConfig) -> None:
    """Raise `UserError` where there is no such teacher, it has no audio, or a setting has no effect."""
    source = config.training.teacher
    if source is None:
        return
    saved, _ = read_description(source)
    if "num_hidden_layers" not in saved.backbone.settings:
        raise UserError(
            f"The teacher {source} reads vectors that were computed elsewhere. Choose one that reads audio.",
            code="teacher-vectors",
        )
    task_config = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
    changed = [
        name
        for name, value in asdict(task_config).items()
        if name not in OF_STUDENT and value != getattr(type(task_config)(), name)
    ]
    if changed:
        raise UserError(
            f"{', '.join(f'task.{name}' for name in changed)} has no effect: labels and outputs are those of "
            f"the teacher {source}. Remove it.",
            code="teacher-task-setting",
        )


def load_teacher(config: RecipeConfig, task_class: type[Task], run: Run) -> TaskModel | None:
    """Return the teacher on the device of the run, in evaluation mode; None if there is none.

    Args:
        config: All settings.
        task_class: Class of the student's task.
        run: The run; a resumed one must have the same teacher.

    Raises:
        UserError: There is no such model, it is of another task or of one whose outputs cannot be learned,
            or it has changed since the run started.
    """
    source = config.training.teacher
    if source is None:
        return None
    teacher = TaskModel.from_pretrained(source)
    if teacher.task.name != task_class.name:
        raise UserError(
            f"The teacher {source} is a model for {teacher.task.name}, not for {task_class.name}. Train "
            f"{teacher.task.name}, or choose another teacher.",
            code="teacher-other-task",
        )
    _num_binary(teacher.task)
    require_same_model(teacher, source, run)
    teacher.requires_grad_(False)
    return teacher.to(run.accelerator.device).eval()


def student_task(teacher: TaskModel, config: RecipeConfig) -> Task:
    """Return the teacher's task with the student's columns, not calibrated."""
    task_config = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
    own = {"label_column": task_config.label_column, "calibration": None, "thresholds": ()}
    task: Any = teacher.task
    has = {one.name for one in fields(task)}
    return cast(Task, replace(task, **{name: value for name, value in own.items() if name in has}))


def require_same_frames(student: TaskModel, teacher: TaskModel, source: str) -> None:
    """Raise `UserError` if teacher and student cannot read the same windows."""
    own, other = student.backbone, teacher.backbone
    is_other = own.sample_rate != other.sample_rate
    if is_other or (student.task.on_frames and own.frame_grid != other.frame_grid):
        raise UserError(
            f"The backbone {own.source} has another {'sample rate' if is_other else 'frame rate'} than that "
            f"of the teacher {source}, {other.source}. Choose a backbone.source of the same.",
            code="teacher-other-rate",
        )


def carry_licence(student: TaskModel, teacher: TaskModel) -> None:
    """Give the student's backbone an unknown licence, with a warning, if the teacher's is another one."""
    own, other = student.backbone, teacher.backbone
    assert isinstance(own, Backbone)
    assert isinstance(other, Backbone)
    if own.licence != other.licence:
        logger.warning(
            "The student's backbone is under %s, the teacher under %s. The licence of the student is "
            "unknown: find out what both allow.",
            own.licence or "an unknown licence",
            other.licence or "an unknown licence",
        )
        own.licence = ""


def with_waveforms_as_targets(windows: TrainingWindows) -> TrainingWindows:
    """Return the same windows, whose targets are their waveforms: the input of the teacher."""
    return replace(windows, example=_waveform_twice)


def teacher_loss(
    teacher: TaskModel, *, temperature: float, autocast: Callable[[], AbstractContextManager[Any]]
) -> Loss:
    """Return the loss of a student's outputs against those of a teacher for the same waveforms.

    Args:
        teacher: Teacher, in evaluation mode.
        temperature: As in `distillation_loss`.
        autocast: Context of the teacher's forward pass.
    """

    def loss(outputs: Tensor, waveforms: Tensor) -> Tensor:
        with torch.no_grad(), autocast():
            targets = teacher(waveforms).float()
        return distillation_loss(teacher.task, outputs, targets, temperature=temperature)

    return loss


def distillation_loss(
    task: Task, outputs: Tensor, teacher_outputs: Tensor, *, temperature: float
) -> Tensor:
    """Return the mean loss of a student's logits against a teacher's.

    Classes: the Kullback-Leibler divergence of both distributions at the temperature, times its square, so
    that gradients do not depend on it. Tags, and other outputs with probabilities of their own: binary
    cross-entropy with the teacher's probabilities. Numbers: the squared error.

    Args:
        task: Meaning of the outputs.
        outputs: Logits of the student, (batch, outputs) or (batch, frames, outputs).
        teacher_outputs: Logits of the teacher, of the same shape.
        temperature: Divisor of the logits of classes, above 0.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """
    count = _num_binary(task)
    if count is None:
        return F.mse_loss(outputs, teacher_outputs)
    loss = outputs.new_zeros(())
    if count > 0:
        probabilities = teacher_outputs[..., :count].sigmoid()
        loss = loss + F.binary_cross_entropy_with_logits(outputs[..., :count], probabilities)
    if count < outputs.shape[-1]:
        own, other = (
            (one[..., count:] / temperature).log_softmax(dim=-1)
            for one in (outputs, teacher_outputs)
        )
        divergence = F.kl_div(own, other, log_target=True, reduction="none").sum(dim=-1)
        loss = loss + temperature**2 * divergence.mean()
    return loss


def _num_binary(task: Task) -> int | None:
    """Return the number of first outputs with probabilities of their own; None for numbers."""
    if isinstance(task, FrameTask):
        return task.num_outputs if task.num_binary is None else task.num_binary
    if isinstance(task, ClipTask) and task.problem_type is not None:
        counts: dict[str, int | None] = {
            "multi_label_classification": task.num_outputs,
            "single_label_classification": 0,
            "regression": None,
        }
        return counts[task.problem_type]
    raise UserError(
        f"A student cannot learn the outputs of a model for {task.name}: they are no labels and no numbers.",
        code="teacher-unsupported-task",
    )


def _waveform_twice(
    checked: CheckedTrack, window: Window, augment: Augment | None
) -> tuple[Array, ...]:
    samples, _ = load_waveform(checked, window, augment)
    return samples, samples
