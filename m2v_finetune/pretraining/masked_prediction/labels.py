"""Labels of tracks: computed once, kept in files, and read for windows."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track as progress

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.resample_cache import data_cache_folder
from m2v_finetune.config import MaskedPredictionConfig, OnBadTrack
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home, file_identity, write_atomically
from m2v_finetune.pretraining.masked_prediction.clusters import (
    Clusters,
    fit_clusters,
    fit_key,
    load_clusters,
    track_features,
)
from m2v_finetune.pretraining.masked_prediction.codes import codes_file, read_codes

BLOCK_SECONDS = 30.0
"""Length of the parts in which a track is labelled."""
NO_LABEL = -1
"""Label of a frame after the end of a track; such frames are not in the loss."""
Labels = NDArray[np.int16]


@dataclass(frozen=True, kw_only=True)
class TrackLabels:
    """Labels of all tracks of a run, in files.

    Attributes:
        paths: File of each track, by its id.
        problems: Reason for each track that has none, by its id.
        sizes: Number of labels of each set, by its name.
        clusters: Clusters, from which the first sets come.
    """

    paths: Mapping[str, Path]
    problems: Mapping[str, str]
    sizes: Mapping[str, int]
    clusters: Clusters = field(repr=False)

    def read(self, track_id: str, *, first: int, num_frames: int) -> Labels:
        """Return the labels of successive frames, (sets, num_frames); `NO_LABEL` after the end.

        Args:
            track_id: Track.
            first: First frame.
            num_frames: Number of frames.

        Raises:
            KeyError: The track has no labels.
            OSError: The file cannot be read.
        """
        stored = np.load(self.paths[track_id], mmap_mode="r", allow_pickle=False)
        labels = np.full((len(self.sizes), num_frames), NO_LABEL, dtype=np.int16)
        found = stored[:, first : first + num_frames]
        labels[:, : found.shape[1]] = found
        return labels

    def hashes_of_codes(self) -> dict[str, str | None]:
        """Return a hash of the codes of each track at its frames, by id; None for labels without codes.

        Labels of clusters are not in it: a run keeps its clusters, and they may round otherwise elsewhere.
        """
        num_computed = len(self.clusters.centres)
        hashes: dict[str, str | None] = {}
        for name, path in self.paths.items():
            codes = np.load(path, allow_pickle=False)[num_computed:]
            hashes[name] = hashlib.sha256(codes.tobytes()).hexdigest()[:16] if len(codes) else None
        return hashes

    def require_all(self, *, on_bad_track: OnBadTrack) -> None:
        """Raise `UserError` if tracks have no labels and the policy is to stop; all are listed."""
        if self.problems and on_bad_track == "stop":
            raise UserError(
                problem_list(
                    f"Of {len(self.paths) + len(self.problems)} tracks, these have no labels",
                    list(self.problems.values()),
                    "Repair or remove them, or skip them with --data.on_bad_track skip.",
                    limit=None,
                ),
                code="labels-missing",
            )

    def entropies(self, tracks: Sequence[CheckedTrack]) -> dict[str, float]:
        """Return the entropy of the labels of tracks in nats, by set."""
        counts = [np.zeros(size, dtype=np.int64) for size in self.sizes.values()]
        for path in {self.paths[one.track.id] for one in tracks if one.track.id in self.paths}:
            for count, labels in zip(counts, np.load(path, allow_pickle=False), strict=True):
                count += np.bincount(labels, minlength=len(count))
        return dict(zip(self.sizes, map(_entropy, counts), strict=True))


def find_clusters(
    config: MaskedPredictionConfig,
    tracks: Sequence[CheckedTrack],
    *,
    grid: FrameGrid,
    seed: int,
    kept: Path | None = None,
    show_progress: bool = True,
) -> Clusters:
    """Return the clusters of a run: its own, those of the settings, or those fitted to the training tracks.

    Fitted clusters are cached, by a hash of files and settings.

    Args:
        config: Settings.
        tracks: Training tracks.
        grid: Frames of the backbone.
        seed: Seed of the fit.
        kept: File of the clusters of a run that resumes.
        show_progress: Whether to show a bar on the terminal.

    Raises:
        UserError: A file of clusters cannot be used, or there are too few frames, or a track cannot be read.
    """
    sizes = {n: size for n, size in config.label_sizes().items() if not n.startswith("codes_")}
    if not sizes:
        return Clusters(grid=grid, centres={})
    if kept is not None and kept.is_file():
        return load_clusters(kept, grid=grid, sizes=sizes)
    if config.clusters is not None:
        return load_clusters(expand_home(config.clusters), grid=grid, sizes=sizes)
    key = fit_key(
        [f"{one.track.id} {_identity(one)}" for one in tracks],
        grid=grid,
        sizes=sizes,
        num_frames=config.fit_frames,
        seed=seed,
    )
    path = labels_folder() / "clusters" / f"{key}.safetensors"
    if not path.is_file():
        fitted = fit_clusters(
            _shown(tracks, "Fitting clusters", show_progress),
            grid=grid,
            sizes=sizes,
            num_frames=config.fit_frames,
            num_tracks=len(tracks),
            seed=seed,
        )
        _create(path.parent)
        fitted.save(path)
    return load_clusters(path, grid=grid, sizes=sizes)


def label_tracks(
    config: MaskedPredictionConfig,
    tracks: Sequence[CheckedTrack],
    clusters: Clusters,
    *,
    show_progress: bool = True,
) -> TrackLabels:
    """Compute the labels of tracks that have none yet.

    Args:
        config: Settings.
        tracks: Tracks.
        clusters: Clusters.
        show_progress: Whether to show a bar on the terminal.

    Raises:
        UserError: A folder cannot be written, or two tracks have one id.
    """
    repeated = [
        name for name, count in Counter(one.track.id for one in tracks).items() if count > 1
    ]
    if repeated:
        raise UserError(
            f"Two tracks have the id {repeated[0]}. Ids of replayed music begin with replay/; rename the "
            "folder or the id of your own music.",
            code="labels-duplicate-id",
        )
    settings: list[object] = [clusters.fingerprint]
    if config.codes is not None:
        settings += [config.num_codebooks, config.codebook_size]
    key = hashlib.sha256(json.dumps([str(one) for one in settings]).encode()).hexdigest()
    folder = labels_folder() / key
    _create(folder)
    paths: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for checked in _shown(tracks, "Labelling tracks", show_progress):
        try:
            path = folder / f"{_identity(checked, config.codes)}.npy"
            if not path.is_file():
                labels = labels_of(checked, config, clusters)
                if labels.shape[1] == 0:
                    raise UserError(
                        "it is shorter than a frame of the network", code="track-too-short"
                    )
                write_atomically(path, lambda unfinished: _save(unfinished, labels))  # noqa: B023
            paths[checked.track.id] = path
        except (UserError, FileNotFoundError) as error:
            problems[checked.track.id] = f"{checked.track.origin}: {error}"
    return TrackLabels(
        paths=paths, problems=problems, sizes=config.label_sizes(), clusters=clusters
    )


def labels_folder() -> Path:
    """Return the folder of clusters and labels; it may not exist."""
    return data_cache_folder() / "labels"


def labels_of(checked: CheckedTrack, config: MaskedPredictionConfig, clusters: Clusters) -> Labels:
    """Return the labels of all frames of a track, (sets, frames)."""
    grid = clusters.grid
    num_frames = grid.num_frames(checked.audio.num_samples(grid.sample_rate))
    rows = []
    if clusters.centres:
        block = math.ceil(BLOCK_SECONDS * grid.frame_rate)
        parts = [
            clusters.labels(
                track_features(
                    checked,
                    grid,
                    clusters.centres,
                    first=first,
                    num_frames=min(block, num_frames - first),
                )
            )
            for first in range(0, num_frames, block)
        ]
        nothing = np.empty((len(clusters.centres), 0), dtype=np.int16)  # shorter than a frame
        rows.append(np.concatenate([nothing, *parts], axis=1))
    if config.codes is not None:
        rows.append(
            read_codes(
                expand_home(config.codes),
                checked,
                grid=grid,
                num_codebooks=config.num_codebooks,
                codebook_size=config.codebook_size,
            )
        )
    return np.concatenate(rows)


def _identity(checked: CheckedTrack, codes: str | None = None) -> str:
    """Return a hash of the file of a track, and of that of its codes."""
    identity = file_identity(checked.track.path)
    if codes is None:
        return identity
    identity += file_identity(codes_file(expand_home(codes), checked))
    return hashlib.sha256(identity.encode()).hexdigest()


def _entropy(counts: NDArray[np.int64]) -> float:
    shares = torch.from_numpy(counts[counts > 0] / max(1, counts.sum()))
    return float(torch.special.entr(shares).sum())


def _save(path: Path, labels: Labels) -> None:
    with path.open("wb") as file:
        np.save(file, labels, allow_pickle=False)


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Labels cannot be kept in {folder} ({error.strerror}). Name another folder by the environment "
            "variable M2V_CACHE.",
            code="labels-not-writable",
        ) from error


def _shown(
    tracks: Sequence[CheckedTrack], title: str, show_progress: bool
) -> "Sequence[CheckedTrack]":
    return progress(  # type: ignore[return-value]
        tracks,
        description=title,
        console=Console(stderr=True),
        disable=not show_progress,
        transient=True,
    )
