"""Windows of a track: where they start, and how a random one is drawn.

A backbone sees windows of one length only, because padding changes the real frames of group-norm
models and no mask repairs it. So the last window of a track is shifted back to end where the track
ends, and only a track shorter than one window is padded.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def window_starts(
    num_samples: int,
    window_samples: int,
    hop_samples: int | None = None,
    *,
    multiple_of: int = 1,
) -> list[int]:
    """Starts of the windows that cover a track.

    Windows are `hop_samples` apart; the last one is shifted back so that it ends at the track's
    end. Every sample is in at least one window, and every window is inside the track, unless
    the track is shorter than one window: then the one start is 0 (see `pad_to_window`).

    >>> window_starts(25, 10)
    [0, 10, 15]
    >>> window_starts(7, 10)
    [0]
    >>> window_starts(25, 10, multiple_of=4)
    [0, 8, 12]

    Args:
        num_samples: Length of the track in samples, at least 1.
        window_samples: Length of a window in samples, at least 1.
        hop_samples: Distance between starts in samples, from 1 to `window_samples`; the window's
            own length if not given.
        multiple_of: Let every start be a multiple of this number of samples, such as the stride of
            frames: hop and last start are rounded down to one, so up to ``multiple_of - 1`` samples at
            the track's end are in no window.

    Returns:
        Starts in samples, ascending, without repetition.

    Raises:
        ValueError: A length is below 1, or the hop would leave samples between windows.
    """
    hop_samples = window_samples if hop_samples is None else hop_samples
    if num_samples < 1 or window_samples < 1:
        raise ValueError(
            f"num_samples={num_samples} and window_samples={window_samples} must be at least 1"
        )
    if not 1 <= hop_samples <= window_samples:
        raise ValueError(
            f"hop_samples={hop_samples} must be from 1 to window_samples={window_samples}, "
            "or samples between windows would be skipped"
        )
    last_start = max(0, num_samples - window_samples)
    last_start -= last_start % multiple_of
    hop_samples = max(multiple_of, hop_samples - hop_samples % multiple_of)
    return [*range(0, last_start, hop_samples), last_start]


def random_window_start(
    num_samples: int, window_samples: int, *, seed: int, epoch: int, track_id: str
) -> int:
    """Start of one random window, decided by (seed, epoch, track) alone.

    Args:
        num_samples: Length of the track in samples.
        window_samples: Length of the window in samples.
        seed: Seed of the run.
        epoch: Number of the epoch.
        track_id: Name of the track, unique in its data set.

    Returns:
        A start in samples, uniform over all at which the window is inside the track; 0 for a
        track no longer than the window.
    """
    generator = draw_generator(seed, epoch, track_id, "window_start")
    return int(generator.integers(0, max(0, num_samples - window_samples), endpoint=True))


def pad_to_window(samples: NDArray[np.float32], window_samples: int) -> NDArray[np.float32]:
    """Append zeros to a track that is shorter than one window.

    Args:
        samples: Waveform, shape (num_samples,).
        window_samples: Length of the window in samples.

    Returns:
        Waveform, shape (window_samples,).

    Raises:
        ValueError: `samples` is longer than the window, which windows are for.
    """
    if len(samples) > window_samples:
        raise ValueError(
            f"{len(samples)} samples do not fit a window of {window_samples}; "
            "cut the track with window_starts"
        )
    return np.pad(samples, (0, window_samples - len(samples)))


def draw_generator(seed: int, epoch: int, track_id: str, purpose: str) -> np.random.Generator:
    """Return the random generator for one draw of one track in one epoch.

    It depends only on its arguments, so neither the number of workers nor their order can change
    a run, and a resumed run draws the same as an uninterrupted one.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        track_id: Name of the track, unique in its data set.
        purpose: Name of the random draw; different purposes are independent of each other.

    Returns:
        A fresh generator.
    """
    # repr quotes the strings, so that no two different tuples give the same bytes.
    key = repr((int(seed), int(epoch), track_id, purpose)).encode()
    digest = hashlib.sha256(key).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
