"""Losses of tags and classes, with weights against imbalance; each is a mean over windows."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor


def balanced_pos_weights(
    labels: Sequence[str], counts: Mapping[str, int], num_tracks: int
) -> tuple[float, ...]:
    """Return negative divided by positive tracks of each label, so that both weigh the same in the loss.

    Source: documentation of `torch.nn.BCEWithLogitsLoss`, argument ``pos_weight``.

    Args:
        labels: Labels, in the order of the logits.
        counts: Number of tracks with each label, at least 1.
        num_tracks: Number of tracks. A label of all of them has the weight of one negative track.

    >>> balanced_pos_weights(["a", "b"], {"a": 1, "b": 4}, 4)
    (3.0, 0.25)
    """
    return tuple(max(num_tracks - counts[label], 1) / counts[label] for label in labels)


def balanced_class_weights(labels: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
    """Return weights inversely proportional to the number of tracks, with mean 1 over the tracks.

    Source: `sklearn.utils.class_weight.compute_class_weight`, ``balanced``.

    Args:
        labels: Classes, in the order of the logits.
        counts: Number of tracks of each class, at least 1.

    >>> balanced_class_weights(["a", "b"], {"a": 1, "b": 3})
    (2.0, 0.6666666666666666)
    """
    total = sum(counts[label] for label in labels)
    return tuple(total / (len(labels) * counts[label]) for label in labels)


def tag_loss(
    outputs: Tensor, targets: Tensor, *, pos_weights: Sequence[float], focal_gamma: float
) -> Tensor:
    """Return the mean binary cross-entropy over windows and labels.

    Source of the focal loss: Lin et al., Focal Loss for Dense Object Detection (2017), equation 4; the
    probability of soft targets as in `torchvision.ops.sigmoid_focal_loss`.

    Args:
        outputs: Logits, (batch, labels).
        targets: (batch, labels), from 0 to 1.
        pos_weights: Weight of positives of each label; empty for 1.
        focal_gamma: Exponent of the focal loss; 0 for none.
    """
    losses = F.binary_cross_entropy_with_logits(
        outputs,
        targets,
        pos_weight=outputs.new_tensor(pos_weights) if pos_weights else None,
        reduction="none" if focal_gamma else "mean",
    )
    if not focal_gamma:
        return losses
    probabilities = outputs.sigmoid()
    wrong = probabilities * (1 - targets) + (1 - probabilities) * targets
    return (wrong**focal_gamma * losses).mean()


def class_loss(
    outputs: Tensor,
    targets: Tensor,
    *,
    class_weights: Sequence[float],
    label_smoothing: float,
) -> Tensor:
    """Return the mean cross-entropy over windows.

    The weighted mean of `torch.nn.CrossEntropyLoss` divides by the weights in the batch, so that a window
    would count more or less by its neighbours; here each window has the weight of its class.

    Args:
        outputs: Logits, (batch, classes).
        targets: Classes (batch,), or probabilities (batch, classes).
        class_weights: Weight of each class; empty for 1.
        label_smoothing: Share of the target that is spread evenly over all classes.
    """
    losses: Tensor = F.cross_entropy(
        outputs,
        targets if targets.ndim == outputs.ndim else targets.long(),
        weight=outputs.new_tensor(class_weights) if class_weights else None,
        label_smoothing=label_smoothing,
        reduction="none" if class_weights else "mean",
    )
    return losses.mean() if class_weights else losses
