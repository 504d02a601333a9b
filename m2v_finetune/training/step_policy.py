"""Optimizer steps of a run, with retries after out-of-memory errors and reports of non-finite gradients."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from accelerate import Accelerator

from m2v_finetune.config import OptimizerConfig, TrainingConfig
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.faults import DataError, StepReader
from m2v_finetune.training.objective import Objective
from m2v_finetune.training.oom_retry import OutOfMemoryRetry, OutOfMemoryRetryError, PlannedMemory
from m2v_finetune.training.optimization import set_learning_rates
from m2v_finetune.training.random_state import get_random_state, set_random_state
from m2v_finetune.training.step import StepResult, take_step
from m2v_finetune.training.step_timer import StepTimer

logger = logging.getLogger(__name__)


class StepPolicy:
    """Policy of optimizer steps: data, retries, and steps that are not finite.

    Args:
        model: On its device.
        optimizer: Optimizer of its trainable parameters.
        loss: Loss function of outputs and targets.
        objective: Callback before each step.
        reader: Reader of the training windows.
        accelerator: Precision and processes.
        training: Batches, and the policy for gradients that are not finite.
        optimization: Clipping of gradients.
        plan: Planned memory, if ``run.memory`` is set.

    Attributes:
        oom_retry: Batch size that fits into memory.
        timer: Time of the steps, and their wait for data.
    """

    def __init__(
        self,
        model: TaskModel | PretrainingModel,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        objective: Objective,
        reader: StepReader,
        accelerator: Accelerator,
        training: TrainingConfig,
        optimization: OptimizerConfig,
        plan: PlannedMemory | None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.objective = objective
        self.reader = reader
        self.accelerator = accelerator
        self.training = training
        self.optimization = optimization
        self.oom_retry = OutOfMemoryRetry(training=training, accelerator=accelerator, plan=plan)
        self.timer = StepTimer()

    def take(
        self, batches: Iterator[list[torch.Tensor]], *, number: int, learning_rate_factor: float
    ) -> StepResult:
        """Read the batches of a step and take it.

        Args:
            batches: Batches of the epoch, from the reader.
            number: Number of the step, from 1.
            learning_rate_factor: Multiplier of the peak learning rates.

        Raises:
            DataError: Data cannot be read, or gradients are not finite and the policy is to stop. The random
                states are those before the step.
            OutOfMemoryRetryError: The step does not fit into memory. Unless weights were being changed, the
                random states are those before the step.
        """
        random_state = get_random_state()
        try:
            with self.timer.reading():
                parts = self.reader.read_step(batches, self.training.gradient_accumulation_steps)
            set_learning_rates(self.optimizer, learning_rate_factor)
            result = self.oom_retry.take(
                partial(self._take_step, number=number), parts, number=number
            )
            if result.is_skipped:
                self._explain_not_finite(result, number=number)
        except DataError:
            set_random_state(random_state)
            raise
        except OutOfMemoryRetryError as error:
            if error.is_undone:
                set_random_state(random_state)
            raise
        return result

    def _take_step(
        self, batches: Iterator[Sequence[torch.Tensor]], num_batches: int, *, number: int
    ) -> StepResult:
        self.objective.start_step(number)
        return take_step(
            self.model,
            self.optimizer,
            batches,
            loss=self.loss,
            gradient_accumulation_steps=num_batches,
            max_grad_norm=self.optimization.max_grad_norm,
            scaler=self.accelerator.scaler,
            num_processes=self.accelerator.num_processes,
        )

    def _explain_not_finite(self, result: StepResult, *, number: int) -> None:
        """Log the batches and tracks of a step whose gradients are not finite.

        Raises:
            DataError: training.on_nonfinite is ``stop``. Under float16 that counts only if a loss is not
                finite: the loss scale is found by gradients that overflow.
        """
        is_loss, batches = self.reader.not_finite(result.losses)
        message = f"The {'loss' if is_loss else 'gradient'} of step {number} is not finite"
        is_fault = is_loss or self.accelerator.scaler is None
        if self.training.on_nonfinite == "stop" and is_fault:
            raise DataError(
                problem_list(
                    f"{message}, and no weight was changed",
                    batches,
                    "Check these tracks, or lower optimizer.learning_rate. To leave such steps out, set "
                    "training.on_nonfinite to skip.",
                ),
                code="training-not-finite",
            )
        logger.warning("%s. %s", message, "; ".join(batches))
