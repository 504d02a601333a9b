"""Metrics of a song's structure, of one track; `mean_report` averages them over tracks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

TOLERANCES_SECONDS = (0.5, 3.0)
"""Maximum distances of an estimated boundary from the true one. Source: MIREX, mir_eval."""


def section_scores(
    reference_intervals: ArrayLike,
    reference_labels: Sequence[str],
    estimated_intervals: ArrayLike,
    estimated_labels: Sequence[str],
) -> dict[str, float]:
    """Score the sections of one track.

    The estimate is cut to the span of the reference. As in `mir_eval.segment.evaluate`, the start and the
    end of the track are boundaries too.

    Source: mir_eval.segment; Turnbull et al., ISMIR 2007 (boundaries); Levy and Sandler, IEEE TASLP 2008
    (pairs).

    Args:
        reference_intervals: (sections, 2) true starts and ends in seconds, in order and without gaps.
        reference_labels: (sections,).
        estimated_intervals: (sections, 2).
        estimated_labels: (sections,); they need not be the words of the reference, as only which frames share
            a label counts.

    Returns:
        `boundary_f1_05` and `boundary_f1_3`, the F-measure of boundaries within 0.5 and 3 s, each with
        `_precision_` and `_recall_` in place of `_f1_`; and `pairwise_f1`, the F-measure of pairs of frames
        with one label.

    Example:
        >>> scores = section_scores([[0, 4], [4, 8]], ["a", "b"], [[0, 6], [6, 8]], ["x", "y"])
        >>> scores["boundary_f1_05"], scores["boundary_f1_3"]
        (0.6666666666666666, 1.0)
    """
    from mir_eval import segment, util

    # Lists of its own, as mir_eval may change them.
    reference, true_labels = util.adjust_intervals(
        np.asarray(reference_intervals, np.float64), list(reference_labels), t_min=0.0
    )
    estimate, labels = util.adjust_intervals(
        np.asarray(estimated_intervals, np.float64),
        list(estimated_labels),
        t_min=0.0,
        t_max=reference.max(),
    )
    scores: dict[str, float] = {}
    for tolerance, name in zip(TOLERANCES_SECONDS, ("05", "3"), strict=True):
        precision, recall, f1 = segment.detection(reference, estimate, window=tolerance)
        scores |= {
            f"boundary_f1_{name}": float(f1),
            f"boundary_precision_{name}": float(precision),
            f"boundary_recall_{name}": float(recall),
        }
    *_, pairwise = segment.pairwise(reference, true_labels, estimate, labels)
    return scores | {"pairwise_f1": float(pairwise)}
