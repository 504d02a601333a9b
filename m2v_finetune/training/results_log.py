"""Results of the test split in the log."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from m2v_finetune.training.calibrating import describe_calibration
from m2v_finetune.training.novelty import describe_novelty

logger = logging.getLogger(__name__)


def log_results(results: Mapping[str, Any]) -> None:
    """Log the metrics of the test split with their intervals, and the layer weights."""
    for name, entry in results["metrics"].items():
        logger.info(
            "Test %s of %d tracks: %s",
            results["metric_names"][name],
            results["num_tracks"],
            "not defined for these tracks"
            if entry["value"] is None
            else f"{entry['value']:.4f} (95 % interval {entry['low']:.4f} to {entry['high']:.4f})",
        )
    for sentence in (describe_calibration(results), describe_novelty(results)):
        if sentence:
            logger.info("%s", sentence)
    if results.get("labels_left_out"):
        logger.info("Labels left out of the means: %s", listed(results["labels_left_out"]))
    weights = " ".join(f"{weight:.3f}" for weight in results["layer_weights"])
    logger.info("Layer weights, from the input of the first layer up: %s", weights)
    if results["warnings"]:
        logger.warning("Training may have failed. %s", " ".join(results["warnings"]))


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Return names in a sentence, the first ones of many.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
