"""Features of held-out sound: hidden states, MFCCs and a constant-Q transform; kept in files."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import librosa
import numpy as np
import torch

from m2v_finetune.backbones.backbone import Backbone

RATE_HZ = 16_000
NUM_MFCC = 20
CQT_LOWEST_HZ = 32.703
CQT_BINS = 84
DYNAMIC_RANGE_DB = 80.0

Waveforms = Callable[[], Iterator[np.ndarray]]


def pooled(frames: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation over time, (2 * features,), of frames (frames, features)."""
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


@torch.inference_mode()
def states(backbone: Backbone, samples: np.ndarray) -> np.ndarray:
    """Return all hidden states of a window side by side, (frames, states * hidden_size)."""
    inputs = backbone.prepare(torch.from_numpy(samples)[None])
    return torch.cat([state[0] for state in backbone(inputs)], dim=-1).numpy()


def mfccs(samples: np.ndarray) -> np.ndarray:
    """Return MFCCs by librosa's defaults, (frames, NUM_MFCC)."""
    found: np.ndarray = librosa.feature.mfcc(y=samples, sr=RATE_HZ, n_mfcc=NUM_MFCC).T
    return found


def mean_cqt(samples: np.ndarray) -> np.ndarray:
    """Return the mean over time of a constant-Q transform in dB below its maximum, (CQT_BINS,).

    One bin a semitone, over seven octaves from C1.
    """
    magnitudes = np.abs(
        librosa.cqt(samples, sr=RATE_HZ, fmin=CQT_LOWEST_HZ, n_bins=CQT_BINS, hop_length=512)
    )
    decibels = librosa.amplitude_to_db(magnitudes, ref=np.max, top_db=DYNAMIC_RANGE_DB)
    mean: np.ndarray = decibels.mean(axis=1)
    return mean


def kept(
    folder: Path, name: str, about: str, compute: Callable[[], list[np.ndarray]]
) -> list[np.ndarray]:
    """Return features from a file of the folder, or compute and keep them.

    Args:
        folder: Where the files are.
        name: Begins the name of the file.
        about: All that the features depend on; its hash ends the name.
        compute: Computes them, one array a track.
    """
    path = folder / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, *compute())
        part.rename(path)
    with np.load(path) as file:
        return [file[f"arr_{index}"] for index in range(len(file.files))]
