"""Labels: of the settings, of the tracks, and of saved tasks."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.tasks.task import ASSUMED_OUTPUTS

logger = logging.getLogger(__name__)


def check_label_names(
    labels: Sequence[str], in_training: Mapping[str, int], *, column: str
) -> None:
    """Check the labels of the task.

    Args:
        labels: Labels of ``task.labels``, or all of the training tracks.
        in_training: Number of training tracks with each label.
        column: Column of the manifest, for messages.

    Raises:
        UserError: There is no label, one occurs twice, or no training track has one of them.
    """
    if len(labels) < 1 or len(set(labels)) < len(labels):
        raise UserError(
            f"The labels are {list(labels)}. There must be at least one, and no duplicates "
            f"(task.labels, or the column '{column}' of the training tracks).",
            code="labels-not-distinct",
        )
    folded: dict[str, list[str]] = {}
    for label in labels:
        folded.setdefault(label.casefold(), []).append(label)
    for alike in folded.values():
        if len(alike) > 1:
            logger.warning(
                "The labels %s differ in upper and lower case alone, and are separate labels.",
                ", ".join(alike),
            )
    nowhere = [label for label in labels if not in_training.get(label)]
    if nowhere:
        raise UserError(
            problem_list(
                "Labels of task.labels that no training track has",
                nowhere,
                f"Remove or correct them. The training tracks have: {', '.join(sorted(in_training))}.",
            ),
            code="labels-not-in-training",
        )


def check_labels_vary(
    labels: Sequence[str], labels_of: Mapping[str, Sequence[AbstractSet[str]]]
) -> None:
    """Check that some label is on a part of the training tracks only.

    Labels that are on all or none of the validation or test tracks have no score: each is warned of.

    Args:
        labels: Labels of the task.
        labels_of: Labels of each track, by the name of its split.

    Raises:
        UserError: Each of two or more training tracks has all labels.
    """
    training = labels_of.get("train", ())
    if len(training) > 1 and all(set(labels) <= own for own in training):
        raise UserError(
            f"Each of the {len(training)} training tracks has all labels ({', '.join(labels)}), so there is "
            "nothing to learn. Add tracks without them.",
            code="labels-constant",
        )
    for split in ("validation", "test"):
        tracks = labels_of.get(split, ())
        counts = Counter(label for own in tracks for label in own)
        for label in labels:
            if tracks and counts[label] in (0, len(tracks)):
                logger.warning(
                    "%s of the %d tracks of the split '%s' has the label '%s': it has no ROC-AUC and no "
                    "average precision there, and their means leave it out.",
                    "Each" if counts[label] else "None",
                    len(tracks),
                    split,
                    label,
                )


def assumed_labels(labels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the labels of the settings, or placeholders where only the data define them."""
    return tuple(labels or map(str, range(ASSUMED_OUTPUTS)))


def saved_labels(labels: Any) -> tuple[str, ...]:
    """Return the labels of a saved task; raise ValueError if they are not valid."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels are {labels!r}, not a list of names")
    if not labels or len(set(labels)) < len(labels):
        raise ValueError("its labels are empty or not distinct")
    return tuple(labels)
