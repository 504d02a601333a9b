"""Metrics of the main melody, of one track; `mean_report` averages them over tracks."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

PITCH_TOLERANCE_CENTS = 50
"""Greatest error of a pitch that counts as right. Source: MIREX, mir_eval."""


def melody_scores(
    reference_times: ArrayLike,
    reference_hz: ArrayLike,
    estimated_times: ArrayLike,
    estimated_hz: ArrayLike,
) -> dict[str, float]:
    """Score the melody of one track at the annotated times.

    The estimate at an annotated time is that of the nearest estimated one.

    Source: mir_eval.melody; Salamon et al., "Melody Extraction from Polyphonic Music Signals", IEEE Signal
    Processing Magazine 2014. `mir_eval.melody.evaluate` interpolates pitches and holds voicing until the
    next estimated time, which moves the borders of notes by half a frame.

    Args:
        reference_times: (times,) annotated times in seconds, increasing.
        reference_hz: (times,) frequencies; 0 or negative where there is no melody.
        estimated_times: (frames,) in seconds, increasing, evenly spaced.
        estimated_hz: (frames,) frequencies; negative where none is found, for a guess of the pitch.

    Returns:
        All in [0, 1], or nan where the track has no time of that kind:

        - `overall_accuracy`: share of all times with the right pitch, or rightly without melody.
        - `raw_pitch_accuracy`: share of the times with melody whose pitch, found or guessed, is right.
        - `raw_chroma_accuracy`: the same, whatever the octave.
        - `voicing_recall`: share of the times with melody where one is found.
        - `voicing_false_alarm`: share of the times without melody where one is found.

    Example:
        >>> melody_scores([0.0, 0.01, 0.02, 0.03], [220, 220, 440, 0], [0.0, 0.02], [220, 220])[
        ...     "raw_pitch_accuracy"
        ... ]
        0.6666666666666666
    """
    from mir_eval import melody

    with warnings.catch_warnings():
        # A model at the start of its training finds no melody; mir_eval warns of each such track.
        warnings.filterwarnings("ignore", message=".* has no voiced frames", category=UserWarning)
        return _scores(
            *melody.to_cent_voicing(
                np.asarray(reference_times, np.float64),
                np.asarray(reference_hz, np.float64),
                np.asarray(estimated_times, np.float64),
                np.asarray(estimated_hz, np.float64),
                kind="nearest",
            )
        )


def _scores(
    voicing: Array, cents: Array, found_voicing: Array, found_cents: Array
) -> dict[str, float]:
    """Return the scores of arrays on one time base, (times,) each."""
    from mir_eval import melody

    arrays = (voicing, cents, found_voicing, found_cents)
    scores = dict.fromkeys(
        ("raw_pitch_accuracy", "raw_chroma_accuracy", "voicing_recall", "voicing_false_alarm"),
        np.nan,
    )
    tolerance = {"cent_tolerance": PITCH_TOLERANCE_CENTS}
    if voicing.any():
        scores["raw_pitch_accuracy"] = melody.raw_pitch_accuracy(*arrays, **tolerance)
        scores["raw_chroma_accuracy"] = melody.raw_chroma_accuracy(*arrays, **tolerance)
        scores["voicing_recall"] = melody.voicing_recall(voicing, found_voicing)
    if not voicing.all():
        scores["voicing_false_alarm"] = melody.voicing_false_alarm(voicing, found_voicing)
    scores["overall_accuracy"] = melody.overall_accuracy(*arrays, **tolerance)
    return {name: float(score) for name, score in scores.items()}
