"""Heads that scikit-learn solves on fixed features: logistic regression, and ridge for numbers.

Each penalty is solved on the windows of the training tracks and evaluated on the validation tracks; the best
one stays, in a linear head like any other.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from m2v_finetune.data.cached_windows import CachedWindows
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.reading import training_loader
from m2v_finetune.data.workers import WorkerError, read_batches
from m2v_finetune.errors import UserError
from m2v_finetune.files import json_number
from m2v_finetune.heads import ClipHead, Standardization
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.threads import intra_op_threads
from m2v_finetune.training.faults import gather_errors
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.run_progress import FitResult
from m2v_finetune.training.standardization import TOO_LITTLE_MEMORY

if TYPE_CHECKING:
    from m2v_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

PENALTIES = (3_000.0, 1_000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""L2 penalties, the strongest first, so that it wins a tie: 1 / ``C`` and ``alpha`` of scikit-learn."""
ABSENT_LOGIT = -10_000.0
"""Logit of a class without a training track: its probability is 0."""


@dataclass(frozen=True, kw_only=True)
class WindowFeatures:
    """Input of the head for the training windows.

    Attributes:
        rows: Pooled features, (windows, size), standardised if the head does so.
        targets: Targets of the windows, (windows,) or (windows, outputs).
        weights: Weight of each window, (windows,); those of a track sum to 1.
    """

    rows: Array
    targets: Array
    weights: Array


def require_solvable(model: TaskModel) -> None:
    """Check that a head that is to be solved fits its task.

    Raises:
        UserError: The task has another kind of labels, or a loss that scikit-learn does not have.
    """
    kind, task = model.head_config.kind, model.task
    problem_type = task.problem_type if isinstance(task, ClipTask) else None
    needed = {"regression": "ridge"}.get(problem_type, "logistic") if problem_type else None
    if kind != needed:
        remedy = f"Set it to {needed}" if needed else "Set it to linear"
        raise UserError(
            f"head.kind is {kind}, which does not fit the task {task.name}: logistic is for classes and "
            f"tags, ridge for numbers. {remedy}.",
            code="head-unsupported-setting",
        )
    for name in ("focal_gamma", "label_smoothing"):
        if getattr(task, name, 0):
            raise UserError(
                f"task.{name} is {getattr(task, name)}, but head.kind {kind} has the plain loss of "
                "scikit-learn. Set it to 0, or head.kind to linear.",
                code="settings-conflict",
            )


def fit_solved_head(trainer: "Trainer[TaskModel]") -> FitResult:
    """Solve the head with each penalty, and keep the one that is best on the validation tracks.

    Nothing is saved before the end: a resumed run solves again, from the same features.

    Args:
        trainer: Trainer of the run. Its model then has a linear head.

    Raises:
        DataError: A track can no longer be read, or a worker failed.
        Stopped: A signal arrived.
    """
    start_time = time.monotonic()
    model, run, progress = trainer.model, trainer.run, trainer.progress
    task, head, names = model.task, model.head, trainer.objective.metric_names
    assert isinstance(task, ClipTask)
    kind = model.head_config.kind
    assert isinstance(head, ClipHead)
    linear = head.layers[-1]
    assert isinstance(linear, nn.Linear)
    if run.is_main_process:
        run.folder.cut_metrics(0)
    selection = trainer.objective.selection_metric
    best: tuple[Tensor, Tensor] | None = None
    best_penalty = PENALTIES[0]
    with intra_op_threads(trainer.num_threads), progress_bar(trainer.accelerator) as bar:
        features = _standardize(_read_windows(trainer), head)
        bar_task = bar.add_task(f"Solving the {kind} head", total=len(PENALTIES))
        for penalty in PENALTIES:
            solved = solve(task, features, penalty)
            with torch.no_grad():
                for parameter, array in zip((linear.weight, linear.bias), solved, strict=True):
                    parameter.copy_(torch.from_numpy(array))
                    broadcast(parameter.data)  # the same on every process, to the bit
            values = trainer.objective.evaluate(
                run,
                batch_size=trainer.training.eval_batch_size,
                num_workers=trainer.num_workers,
                bar=bar,
                interruptible=nullcontext,
            )
            is_best = progress.end_epoch(values, selection_metric=selection)
            if is_best:
                best, best_penalty = (linear.weight.clone(), linear.bias.clone()), penalty
            if run.is_main_process:
                validation = {key: json_number(value) for key, value in values.items()}
                run.folder.log({"penalty": penalty, "validation": validation})
            logger.info(
                "L2 penalty %g: validation %s%s",
                penalty,
                ", ".join(f"{names[name]} {value:.4f}" for name, value in values.items()),
                ", the best so far" if is_best else "",
            )
            bar.advance(bar_task)
    assert best is not None
    assert progress.best_epoch is not None
    with torch.no_grad():
        linear.weight.copy_(best[0])
        linear.bias.copy_(best[1])
    assert isinstance(head.layers[0], nn.Dropout)
    head.layers[0].p = 0.0
    model.head_config = replace(model.head_config, kind="linear", dropout=0.0)
    return FitResult(
        best_epoch=progress.best_epoch,
        best_values=progress.best_values,
        num_epochs=len(PENALTIES),
        num_steps=0,
        num_skipped_steps=0,
        seconds=time.monotonic() - start_time,
        solved_by=kind,
        penalty=best_penalty,
    )


def solve(task: ClipTask, features: WindowFeatures, penalty: float) -> tuple[Array, Array]:
    """Return weight (outputs, size) and bias (outputs,) of the linear head that scikit-learn finds.

    Source: `sklearn.linear_model.LogisticRegression` with ``C`` = 1 / penalty, multinomial for classes, and
    one for each tag; `sklearn.linear_model.Ridge` with ``alpha`` = penalty, on standardised numbers.

    Args:
        task: Clip task with classes, tags or numbers.
        features: Training windows.
        penalty: L2 penalty, above 0.
    """
    if task.problem_type == "regression":
        return _solve_numbers(task, features, penalty)
    if task.problem_type == "multi_label_classification":
        return _solve_tags(task, features, penalty)
    return _solve_classes(task, features, penalty)


def _solve_classes(task: ClipTask, features: WindowFeatures, penalty: float) -> tuple[Array, Array]:
    targets, weights = features.targets.astype(int), features.weights
    if class_weights := getattr(task, "class_weights", ()):
        weights = weights * np.array(class_weights)[targets]
    weight = np.zeros((task.num_outputs, features.rows.shape[1]))
    bias = np.full(task.num_outputs, ABSENT_LOGIT)
    classes, coefficients, intercepts = _logistic(features.rows, targets, weights, penalty)
    weight[classes], bias[classes] = coefficients, intercepts
    return weight, bias


def _solve_tags(task: ClipTask, features: WindowFeatures, penalty: float) -> tuple[Array, Array]:
    weight = np.zeros((task.num_outputs, features.rows.shape[1]))
    bias = np.zeros(task.num_outputs)
    pos_weights = getattr(task, "pos_weights", ())
    for number, own in enumerate(features.targets.T.astype(int)):
        weights = features.weights
        if pos_weights:
            weights = np.where(own == 1, pos_weights[number] * weights, weights)
        _, coefficients, intercepts = _logistic(features.rows, own, weights, penalty)
        if len(intercepts) == 2:
            weight[number], bias[number] = coefficients[1], intercepts[1]
        else:  # all tracks have the tag, or none: the odds of one track more of either kind
            num_tracks = features.weights.sum()
            bias[number] = np.log(num_tracks + 1) if own[0] else -np.log(num_tracks + 1)
    return weight, bias


def _solve_numbers(task: ClipTask, features: WindowFeatures, penalty: float) -> tuple[Array, Array]:
    from sklearn.linear_model import Ridge

    # The outputs of the head are standardised: `activate` scales and shifts them to the unit of the data.
    outputs = torch.eye(2, dtype=torch.float64)[:, :1].expand(
        2, task.num_outputs
    )  # ones, then zeros
    ones, zeros = task.activate(outputs).numpy()  # type: ignore[attr-defined]
    standardised = (features.targets - zeros) / (ones - zeros)
    solved = Ridge(alpha=penalty).fit(features.rows, standardised, features.weights)
    return solved.coef_.reshape(task.num_outputs, -1), np.reshape(solved.intercept_, -1)


def _logistic(
    rows: Array, classes: NDArray[np.int_], weights: Array, penalty: float
) -> tuple[NDArray[np.int_], Array, Array]:
    """Return the classes that occur, and weights and biases of their logits; of two, the first has 0."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(classes)) == 1:
        return classes[:1], np.zeros((1, rows.shape[1])), np.zeros(1)
    solved = LogisticRegression(C=1 / penalty, max_iter=1000).fit(rows, classes, weights)
    coefficients, intercepts = solved.coef_, solved.intercept_
    if len(solved.classes_) == 2:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    return solved.classes_, coefficients, intercepts


def _standardize(features: WindowFeatures, head: ClipHead) -> WindowFeatures:
    """Set mean and standard deviation of the head over the windows, if it standardises; apply them."""
    if not isinstance(head.standardization, Standardization):
        return features
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features.rows, sample_weight=features.weights)
    head.standardization.mean.copy_(torch.from_numpy(scaler.mean_))
    head.standardization.std.copy_(torch.from_numpy(scaler.scale_))
    return replace(features, rows=scaler.transform(features.rows))


def _read_windows(trainer: "Trainer[TaskModel]") -> WindowFeatures:
    """Return the features of each training window once, the same on every process.

    Raises:
        DataError: A track can no longer be read, a worker failed, or a window does not fit into memory.
    """
    model, accelerator, policy = trainer.model, trainer.accelerator, trainer.run.bad_tracks
    stored: Any = trainer.loader.dataset.windows  # type: ignore[attr-defined]
    windows = stored.windows if isinstance(stored, CachedWindows) else stored
    positions = _unique_positions(windows)
    own = range(accelerator.process_index, len(positions), accelerator.num_processes)
    size = trainer.training.eval_batch_size
    loader = training_loader(
        stored,
        [[positions[n] for n in own[start : start + size]] for start in range(0, len(own), size)],
        num_workers=trainer.num_workers,
        timeout_seconds=policy.timeout_seconds,
        is_persistent=False,
    )
    captured: list[Tensor] = []
    hook = model.head.standardization.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, inputs: captured.append(inputs[0].double().cpu())
    )

    def run_model(*inputs: Tensor) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            model(*(part.to(accelerator.device, non_blocking=True) for part in inputs))
        return captured.pop()

    model.eval()
    rows: list[Array] = []
    targets: list[Array] = []
    track_ids: list[str] = []
    bad_tracks: dict[str, str] = {}
    failure: str | UserError | None = None
    try:
        for *parts, info in read_batches(loader):
            bad_tracks |= info.bad_tracks
            if not parts:
                failure = "None of the training windows can be read."
                break
            *inputs, own_targets = parts
            rows.append(model.micro_batcher.run(run_model, inputs).numpy())
            targets.append(own_targets.double().numpy())
            track_ids += info.track_ids
    except WorkerError as error:
        failure = error
    except torch.OutOfMemoryError:
        failure = TOO_LITTLE_MEMORY
    hook.remove()
    policy.take("train", gather_errors(accelerator, failure, bad_tracks))
    # In the order of the windows, so that the sums of one process and of two are the same.
    gathered = gather_object([(list(own), rows, targets, track_ids)])
    order = np.argsort([number for numbers, *_ in gathered for number in numbers])
    ids = [name for *_, names in gathered for name in names]
    counts = Counter(ids)
    return WindowFeatures(
        rows=np.concatenate([batch for _, batches, *_ in gathered for batch in batches])[order],
        targets=np.concatenate([batch for *_, batches, _ in gathered for batch in batches])[order],
        weights=np.array([1 / counts[name] for name in ids])[order],
    )


def _unique_positions(windows: TrainingWindows) -> Sequence[tuple[int, int]]:
    """Return the position (epoch, index) of each different window: all variants, or those of an epoch."""
    unique = {
        windows.sample((epoch, index)).key: (epoch, index)
        for epoch in range(windows.num_variants or 1)
        for index in range(len(windows))
    }
    return list(unique.values())
