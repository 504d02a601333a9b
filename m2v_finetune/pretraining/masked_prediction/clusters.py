"""K-means clusters of frames' features: fitted to the training tracks, saved, and applied."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window, read_window
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_atomically
from m2v_finetune.pretraining.masked_prediction.spectra import (
    FEATURES,
    FeatureName,
    first_sample,
    frame_features,
)

FORMAT_VERSION = 1
"""Raise it if a change of the code changes the features."""
SEGMENT_SECONDS = 2.0
"""Length of the segments of a track to which clusters are fitted."""
# Source: HuBERT's learn_kmeans.py in fairseq, which has 20 starts and waits for 100 batches without
# improvement: minutes of computation for hardly better clusters.
KMEANS = {
    "init": "k-means++",
    "batch_size": 10_000,
    "max_iter": 100,
    "n_init": 3,
    "max_no_improvement": 20,
    "reassignment_ratio": 0.0,
    "tol": 0.0,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centres of clusters of one or more features, on the frames of an encoder.

    Attributes:
        grid: Frames.
        centres: By the name of the feature, (clusters, dimensions), float32.
    """

    grid: FrameGrid
    centres: Mapping[str, Tensor]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of clusters by feature."""
        return {name: len(centres) for name, centres in self.centres.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the labels of a waveform."""
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, asdict(self.grid)]).encode())
        for name, centres in self.centres.items():
            digest.update(f"{name} {tuple(centres.shape)}".encode())
            digest.update(centres.numpy().tobytes())
        return digest.hexdigest()

    def labels(self, features: Mapping[str, Tensor]) -> NDArray[np.int16]:
        """Return the nearest centre of each frame, (features, frames).

        Args:
            features: By name, (frames, dimensions).
        """
        rows = []
        for name, centres in self.centres.items():
            # The square of the frame itself is the same for all centres.
            distances = centres.square().sum(dim=1) - 2.0 * features[name] @ centres.T
            rows.append(distances.argmin(dim=1))
        return torch.stack(rows).numpy().astype(np.int16)

    def save(self, path: Path) -> None:
        """Write the clusters to a safetensors file."""
        metadata = {"format_version": str(FORMAT_VERSION), "grid": json.dumps(asdict(self.grid))}
        tensors = {f"{name}": centres.contiguous() for name, centres in self.centres.items()}
        write_atomically(path, lambda unfinished: save_file(tensors, unfinished, metadata=metadata))


def load_clusters(path: Path, *, grid: FrameGrid, sizes: Mapping[str, int]) -> Clusters:
    """Read the clusters of `Clusters.save`.

    Args:
        path: File.
        grid: Frames of the backbone, which must be those of the clusters.
        sizes: Expected number of clusters by feature.

    Raises:
        UserError: The file is missing or invalid, or its clusters are others.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = metadata.get("format_version")
        own_grid = FrameGrid(**json.loads(metadata["grid"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has no clusters ({error}). Write them by `m2v pretrain-labels`.",
            code="clusters-unreadable",
        ) from error
    wanted = {name: (size, FEATURES[_named(name)].num_dims) for name, size in sizes.items()}
    shapes = {name: tuple(centres.shape) for name, centres in found.items()}
    problems = []
    if version != str(FORMAT_VERSION):
        problems.append(f"their format is {version}, not {FORMAT_VERSION}")
    if own_grid != grid:
        problems.append(f"their frames are those of {own_grid}, and the backbone has {grid}")
    if shapes != wanted:
        problems.append(f"their shapes are {shapes}, and the settings have {wanted}")
    if problems:
        raise UserError(
            f"The clusters in {path} do not fit this run: {'; '.join(problems)}. Fit others by `m2v "
            "pretrain-labels`, or change masked_prediction.log_mel_clusters and chroma_clusters.",
            code="clusters-other",
        )
    return Clusters(grid=grid, centres={name: found[name].float() for name in sizes})


def fit_clusters(
    tracks: Iterable[CheckedTrack],
    *,
    grid: FrameGrid,
    sizes: Mapping[str, int],
    num_frames: int,
    num_tracks: int,
    seed: int,
) -> Clusters:
    """Fit clusters to a sample of the frames of training tracks.

    Each track gives as many frames as the others, in segments of 2 s at random places, drawn by (seed,
    track).

    Args:
        tracks: Training tracks, read one after the other.
        grid: Frames of the encoder.
        sizes: Number of clusters by feature.
        num_frames: Number of frames of all tracks together, at least.
        num_tracks: Number of tracks.
        seed: Seed of segments and clusters.

    Raises:
        UserError: There are fewer frames than clusters.
        AudioError: A track can no longer be read.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow to import, and not needed to plan

    sampled: dict[str, list[Tensor]] = {name: [] for name in sizes}
    of_track = math.ceil(num_frames / num_tracks)
    for checked in tracks:
        available = grid.num_frames(checked.audio.num_samples(grid.sample_rate))
        length = min(available, max(1, round(SEGMENT_SECONDS * float(grid.frame_rate))))
        generator = draw_generator(seed, 0, checked.track.id, "clusters")
        for _ in range(min(math.ceil(of_track / max(1, length)), available)):
            first = int(generator.integers(0, available - length, endpoint=True))
            found = track_features(checked, grid, sizes, first=first, num_frames=length)
            for name, features in found.items():
                sampled[name].append(features)
    centres = {}
    for name, size in sizes.items():
        frames = torch.cat(sampled[name]) if sampled[name] else torch.empty(0)
        if len(frames) < size:
            raise UserError(
                f"{size} clusters of {name} cannot be fitted to {len(frames)} frames. Give more music, or "
                f"lower masked_prediction.{name}_clusters.",
                code="clusters-too-few-frames",
            )
        kmeans = MiniBatchKMeans(n_clusters=size, random_state=seed, **KMEANS).fit(frames.numpy())
        centres[name] = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
        logger.info("Fitted %d clusters of %s to %d frames.", size, name, len(frames))
    return Clusters(grid=grid, centres=centres)


def track_features(
    checked: CheckedTrack,
    grid: FrameGrid,
    names: Iterable[str],
    *,
    first: int,
    num_frames: int,
) -> dict[str, Tensor]:
    """Return features of successive frames of a track, (frames, dimensions) by name, in float32.

    Outside of the track is silence.

    Args:
        checked: Track.
        grid: Frames of the encoder; frame 0 starts at the start of the track.
        names: Names of `FEATURES`.
        first: First frame.
        num_frames: Number of frames, at least 1.

    Raises:
        AudioError: The file can no longer be read.
    """
    features = {name: FEATURES[_named(name)] for name in names}
    longest = max(one.fft_samples for one in features.values())
    start = first_sample(grid, first, longest)
    num_samples = (num_frames - 1) * grid.stride_samples + longest
    length = checked.audio.num_samples(grid.sample_rate)
    low, high = max(0, start), min(length, start + num_samples)
    samples = np.zeros(num_samples, dtype=np.float32)
    window = Window(start_sample=low, num_samples=high - low, grid=grid)
    samples[low - start : high - start] = read_window(checked, window)
    waveform = torch.from_numpy(samples)
    found = {}
    for name, feature in features.items():
        shift = first_sample(grid, first, feature.fft_samples) - start
        of_feature = waveform[shift : num_samples - shift]
        found[name] = frame_features(of_feature, grid, feature)
    return found


def _named(name: str) -> FeatureName:
    return "log_mel" if name == "log_mel" else "chroma"


def fit_key(
    identities: Sequence[str], *, grid: FrameGrid, sizes: Mapping[str, int], **settings: Any
) -> str:
    """Return a SHA-256 of all that decides the result of `fit_clusters`.

    Args:
        identities: Identity of each track's file, with its id.
        grid: Frames of the encoder.
        sizes: Number of clusters by feature.
        settings: Other arguments.
    """
    content = [FORMAT_VERSION, identities, asdict(grid), dict(sizes), settings, KMEANS]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
