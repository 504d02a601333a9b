"""Teacher: exponential moving average of the student, which computes the targets."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2v_finetune.backbones import Backbone
from m2v_finetune.backbones.roles import modules_with_roles

INSTANCE_NORM_EPSILON = 1e-5


def ema_decay(step: int, *, start: float, end: float, ramp_steps: int) -> float:
    """Return the decay of the moving average after an optimizer step.

    It rises linearly from ``start`` to ``end`` over ``ramp_steps``, then stays at ``end``.

    Source: data2vec (arXiv 2202.03555), section 3.3.

    Args:
        step: Number of earlier optimizer steps.
        start: Decay at the first step.
        end: Decay from ``ramp_steps`` on.
        ramp_steps: Length of the ramp.
    """
    return end if step >= ramp_steps else start + (end - start) * step / ramp_steps


def instance_normalize(states: Tensor) -> Tensor:
    """Return states (batch, frames, hidden_size) with zero mean and unit variance over a window's frames.

    Each window and each of its dimensions is normalised by itself.
    """
    variance, mean = torch.var_mean(states, dim=1, keepdim=True, correction=0)
    return (states - mean) * torch.rsqrt(variance + INSTANCE_NORM_EPSILON)


class Teacher(nn.Module):
    """Moving average of the student's network; always in evaluation mode.

    Attributes:
        backbone: Network of the teacher.
        averages: Averaged parameters. ``layers``: the transformer layers; conv encoder, projection and
            positional convolutions are copied from the student at each step. ``all``: all parameters.
    """

    def __init__(
        self, student: Backbone, *, num_target_layers: int, averages: Literal["layers", "all"]
    ) -> None:
        """Copy a student.

        Args:
            student: Student, whose layers have the role ``last_feed_forward``.
            num_target_layers: Number of highest layers whose mean is the target.
            averages: Averaged parameters, as in the attribute.

        Raises:
            UserError: A layer has no such block.
        """
        super().__init__()
        self.backbone = copy.deepcopy(student).requires_grad_(False)
        self.averages = averages
        blocks = modules_with_roles(self.backbone, "last_feed_forward", user="Pre-training")
        self._target_blocks = [*blocks.values()][-num_target_layers:]
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the student does."""
        return super().train(mode=False)

    @property
    def shares_conv_encoder(self) -> bool:
        """Whether the features of the student's conv encoder are the teacher's too."""
        return self.averages == "layers"

    @torch.no_grad()
    def ema_update(self, student: Backbone, decay: float) -> None:
        """Move the averaged weights to ``decay * own + (1 - decay) * student``; copy the others."""
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        encoder = self.backbone.encoder
        in_layers = (f"{encoder.layers}.", f"{encoder.norm}.")
        for (name, own), its in zip(
            self.backbone.network.named_parameters(), student.network.parameters(), strict=True
        ):
            is_averaged = self.averages == "all" or name.startswith(in_layers)
            (averaged if is_averaged else copied).append((own, its))
        # One call for each list: a few GPU kernels, not one for each weight.
        own_weights, its_weights = zip(*averaged, strict=True)
        torch._foreach_lerp_(own_weights, its_weights, 1.0 - decay)
        for own, its in copied:
            own.copy_(its)

    @torch.no_grad()
    def targets(self, features: Tensor) -> Tensor:
        """Return the targets of the student, (batch, frames, hidden_size), in float32.

        They are the mean over the highest layers of the outputs of their last feed-forward blocks, before
        the residual connection, each normalised over time.

        Source: data2vec (arXiv 2202.03555), section 3.3; instance normalisation for audio as in its
        section 4.2.

        Args:
            features: Output of the conv encoder, (batch, channels, frames), without masks.
        """
        with outputs_of(self._target_blocks) as outputs:
            for _ in self.backbone.iterate_layers(self.backbone.project(features)):
                pass
        total = torch.zeros_like(outputs[0], dtype=torch.float32)
        for output in outputs:
            total += instance_normalize(output.float())
        return total / len(outputs)


@contextmanager
def outputs_of(modules: list[Any]) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules while the context is open, in the order of their calls."""
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in modules
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
