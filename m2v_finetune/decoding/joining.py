"""Aggregation of overlapping windows into one track: frame scores, and audio.

Both cross-fade with a triangle over each window, because frames near a window's border have
little context. The weights of the windows at one position are divided by their sum, so windows
that agree come out as they are, whatever their overlap.
"""

import numpy as np
from numpy.typing import NDArray


def triangle(length: int) -> NDArray[np.float64]:
    """Return positive weights that rise to the middle of a window and fall again.

    >>> triangle(5).tolist()
    [1.0, 2.0, 3.0, 2.0, 1.0]

    Args:
        length: Length of the window, in frames or samples.

    Returns:
        Weights, shape (length,).
    """
    rising = np.arange(1.0, length + 1)
    weights: NDArray[np.float64] = np.minimum(rising, rising[::-1])
    return weights


class FrameJoiner:
    """Joins the frame scores of windows on the frames of their track.

    Windows start on the grid of frames: frame j of a window that starts at frame f is frame f + j
    of the track. Windows may come in any order; only two sums for the track's frames are kept.

    Args:
        num_frames: Frames of the track. A window may reach beyond them, as that of a padded track
            does; its frames there are left out.
        num_outputs: Scores of a frame.
    """

    def __init__(self, num_frames: int, num_outputs: int) -> None:
        self._sum = np.zeros((num_frames, num_outputs))
        self._weight = np.zeros((num_frames, 1))

    def add(self, first_frame: int, scores: NDArray[np.floating]) -> None:
        """Add one window.

        Args:
            first_frame: Frame of the track at which the window starts, from 0.
            scores: Scores of the window, shape (window_frames, num_outputs).
        """
        weight = triangle(len(scores))[:, None]
        num_inside = max(0, len(self._sum) - first_frame)
        frames = slice(first_frame, first_frame + len(scores))
        self._sum[frames] += (weight * scores)[:num_inside]
        self._weight[frames] += weight[:num_inside]

    def result(self) -> NDArray[np.float64]:
        """Return the scores of the track, shape (num_frames, num_outputs).

        Raises:
            ValueError: No window covers a frame.
        """
        uncovered = np.flatnonzero(self._weight == 0)
        if len(uncovered):
            raise ValueError(
                f"{len(uncovered)} of {len(self._weight)} frames are in no window, the first one is "
                f"{uncovered[0]}; add windows that cover every frame"
            )
        return self._sum / self._weight


class OverlapAdd:
    """Joins windows of audio into a track of any length, chunk by chunk.

    Windows come in ascending order of their starts, so audio before the start of the newest one
    is finished. It is returned immediately, and at most the rest of one window is kept.

    >>> join = OverlapAdd(num_samples=6)
    >>> [join.add(start, np.ones((1, 1, 4))).shape[-1] for start in (0, 2)]
    [0, 2]
    >>> join.finish().shape[-1]
    4

    Args:
        num_samples: Length of the track. A window may reach beyond it, as that of a padded track
            does; its samples there are left out.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._position = 0
        self._sum: NDArray[np.floating] = np.zeros((1, 1, 0), dtype=np.float32)
        self._weight: NDArray[np.floating] = np.zeros(0, dtype=np.float32)

    def add(self, start_sample: int, window: NDArray[np.floating]) -> NDArray[np.floating]:
        """Add one window and return the audio that it completes.

        Args:
            start_sample: Start of the window in the track, not before the start of the last one.
            window: Shape (stems, channels, window_samples); all windows have the same stems and
                channels.

        Returns:
            The next samples of the track, up to `start_sample`: shape (stems, channels, samples),
            possibly with no samples.

        Raises:
            ValueError: The window starts before the last one, or leaves a gap behind it.
        """
        end_sample = self._position + len(self._weight)
        if not self._position <= start_sample <= end_sample:
            raise ValueError(
                f"a window starts at sample {start_sample}; the next one has to start from "
                f"{self._position}, where the last one started, to {end_sample}, where it ended"
            )
        window = window[..., : max(0, self._num_samples - start_sample)]
        shape = window.shape[:-1]
        self._sum = np.broadcast_to(self._sum, (*shape, len(self._weight)))
        finished = self._take(start_sample - self._position)
        num_samples = window.shape[-1]
        # Weights of at most 1 keep the sums of float32 samples in their range.
        weight = (triangle(num_samples) / max(1, num_samples)).astype(window.dtype)
        missing = max(0, num_samples - len(self._weight))
        silence = np.zeros((*shape, missing), dtype=window.dtype)
        self._sum = np.concatenate([self._sum, silence], axis=-1)
        self._weight = np.pad(self._weight, (0, missing))
        self._sum[..., :num_samples] += weight * window
        self._weight[:num_samples] += weight
        return finished

    def finish(self) -> NDArray[np.floating]:
        """Return the rest of the track, shape (stems, channels, samples).

        Raises:
            ValueError: The windows end before the track does.
        """
        end_sample = self._position + len(self._weight)
        if end_sample < self._num_samples:
            raise ValueError(
                f"the windows end at sample {end_sample} of {self._num_samples}; add windows up to "
                "the end of the track"
            )
        return self._take(len(self._weight))

    def _take(self, num_samples: int) -> NDArray[np.floating]:
        """Remove the first samples that are kept and return them."""
        finished: NDArray[np.floating] = self._sum[..., :num_samples] / self._weight[:num_samples]
        self._sum = self._sum[..., num_samples:]
        self._weight = self._weight[num_samples:]
        self._position += num_samples
        return finished
