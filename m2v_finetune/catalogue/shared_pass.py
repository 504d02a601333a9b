"""One pass of the layers that models have in common, for the outputs of all of them."""

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from m2v_finetune.backbones import Backbone, depths
from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.heads import ClipHead
from m2v_finetune.model import TaskModel
from m2v_finetune.tuning import METHODS


class Branch(NamedTuple):
    """Place where the layers of a model leave those of an earlier one.

    Attributes:
        parent: Number of the earlier model.
        depth: Last hidden state that both have, or `CONV_ENCODER`.
    """

    parent: int
    depth: int


def shared_depth(one: TaskModel, other: TaskModel) -> int | None:
    """Return the last hidden state up to which two models compute the same.

    Returns:
        Index of the hidden state; `CONV_ENCODER` if they share only the convolutional encoder; None if not
        even that, or where a model has no layers here, as an ONNX file.
    """
    if not (isinstance(one.backbone, Backbone) and isinstance(other.backbone, Backbone)):
        return None
    depth = depths.shared_depth(one.backbone, other.backbone)
    adds = any(METHODS[model.tuning.method].adds != "nothing" for model in (one, other))
    if depth is not None and adds and one.tuning != other.tuning:
        # Tensors of added modules do not show their scale.
        return min(depth, 0)
    return depth


class SharedPass:
    """Function from waveforms to the outputs of `TaskModel.score` of models that share their lowest layers.

    Each layer that several models have in common runs once.

    Args:
        models: Models that share their convolutional encoder at least, by `shared_depth`.
    """

    def __init__(self, models: Sequence[TaskModel]) -> None:
        self.models = models
        self.num_states = [
            1 + model.layer_weighting.selected_layer
            if model.layer_weighting.selected_layer is not None
            else model.backbone.num_hidden_states
            for model in models
        ]
        self.branches = [self._branch(number) for number in range(len(models))]
        self.kept = {
            branch
            for branch, num_states in zip(self.branches, self.num_states, strict=True)
            if branch.depth + 1 < num_states
        }
        self.pools_alike = all(
            isinstance(model.head, ClipHead) and model.head.pooling == "mean" for model in models
        )

    def __call__(self, waveforms: Tensor) -> list[Tensor]:
        """Return the output of each model for waveforms (batch, window_samples)."""
        first = self.models[0]
        with first.autocast():
            if len(self.models) == 1:
                return [first.score(waveforms)]
            states = self._states(waveforms)
            return [model.score_states(own) for model, own in zip(self.models, states, strict=True)]

    def _branch(self, number: int) -> Branch:
        """Return the branch of a model from the first of those with which it has most in common."""
        branches = [Branch(0, CONV_ENCODER)]
        for parent in range(number):
            depth = shared_depth(self.models[parent], self.models[number])
            assert depth is not None
            last = min(self.num_states[parent], self.num_states[number]) - 1
            branches.append(Branch(parent, min(depth, last)))
        return max(branches, key=lambda branch: branch.depth)

    def _states(self, waveforms: Tensor) -> list[list[Tensor]]:
        """Return the hidden states that each model needs, averaged over time if all heads do so."""
        first = self.models[0]
        assert isinstance(first.backbone, Backbone)
        features = first.backbone.encode(first.backbone.prepare(waveforms))
        starts: dict[Branch, Tensor] = {}
        states: list[list[Tensor]] = []
        for number, model in enumerate(self.models):
            branch = self.branches[number]
            own = [] if branch.depth == CONV_ENCODER else states[branch.parent][: branch.depth + 1]
            if len(own) < self.num_states[number]:
                start = features if branch.depth == CONV_ENCODER else starts[branch]
                assert isinstance(model.backbone, Backbone)
                above = model.backbone.iterate_from(branch.depth, start)
                num_missing = self.num_states[number] - len(own)
                for depth, state in enumerate(islice(above, num_missing), start=len(own)):
                    place = Branch(number, depth)
                    if place in self.kept:
                        starts[place] = state
                    own += first.head.pre_pool([state]) if self.pools_alike else [state]
            states.append(own)
        return states
