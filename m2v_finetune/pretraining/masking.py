"""Random masks of the student's input."""

import numpy as np
from numpy.typing import NDArray


def span_mask(
    num_frames: int,
    *,
    probability: float,
    span_frames: int,
    generator: np.random.Generator,
    min_spans: int = 1,
) -> NDArray[np.bool_]:
    """Draw spans of frames to mask; spans may overlap, so that fewer frames are masked than they sum to.

    The number of spans is ``probability * num_frames / span_frames``, rounded up or down by chance so
    that its mean is exact, and at least ``min_spans``. Their starts are drawn without replacement from all
    at which a span ends inside the window. At 0.65 and 10 about half of the frames are masked.

    Args:
        num_frames: Number of frames of the window.
        probability: Share of frames that spans would cover if none overlapped.
        span_frames: Length of a span, from 1 to ``num_frames``.
        generator: Random generator.
        min_spans: Least number of spans, at least 1; fewer only if there are fewer starts.

    Returns:
        The mask, (num_frames,), true where a frame is masked.

    Source: wav2vec 2.0 (arXiv 2006.11477), section 3.1 and appendix A.2; data2vec (arXiv 2202.03555)
    masks audio in the same way, and so does MERT (arXiv 2306.00107).
    """
    num_starts = num_frames - span_frames + 1
    expected = probability * num_frames / span_frames
    num_spans = min(max(min_spans, int(expected + generator.random())), num_starts)
    starts = generator.choice(num_starts, size=num_spans, replace=False)
    mask = np.zeros(num_frames, dtype=np.bool_)
    mask[starts[:, None] + np.arange(span_frames)] = True
    return mask
