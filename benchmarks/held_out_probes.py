"""Linear probes on features of held-out sound: a logistic regression of tracks, a linear layer on frames."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import librosa
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.metrics.beats import beat_scores
from m2v_finetune.tasks.clips import EvaluatedClip

PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths, `C` of scikit-learn."""
CHOOSING_SHARE = 0.2
BEAT_STEPS, BEAT_BATCH_FRAMES, BEAT_RATE = 1500, 2048, 3e-3

Features = Mapping[str, Sequence[np.ndarray]]
Tracks = Mapping[str, Sequence[CheckedTrack]]


def evaluate_clips(
    task: Any, tracks: Tracks, features: Features, used: list[int], *, seed: int
) -> dict[str, float]:
    """Fit a regression to the used training tracks, and return the task's metrics of the evaluated ones."""
    inputs = np.stack([features["train"][number] for number in used])
    targets = np.stack([task.targets(tracks["train"][number].track, IDENTITY) for number in used])
    penalty = choose_penalty(task, inputs, targets, seed=seed)
    scores = Regression(inputs, targets, penalty).scores(
        np.stack(features["evaluated"]), count=task.num_outputs
    )
    evaluated = [
        EvaluatedClip(target=task.targets(checked.track, IDENTITY), scores=row)
        for checked, row in zip(tracks["evaluated"], scores, strict=True)
    ]
    return {**task.compute_metrics(evaluated), "penalty": penalty}


def choose_penalty(task: Any, inputs: np.ndarray, targets: np.ndarray, *, seed: int) -> float:
    """Return the penalty by which a fifth of the tracks is predicted best from the others."""
    order = list(range(len(inputs)))
    Random(f"{seed}/penalty").shuffle(order)
    count = round(CHOOSING_SHARE * len(order))
    held, others = order[:count], order[count:]
    found = []
    for penalty in PENALTIES:
        scores = Regression(inputs[others], targets[others], penalty).scores(
            inputs[held], count=task.num_outputs
        )
        evaluated = [
            EvaluatedClip(target=target, scores=row)
            for target, row in zip(targets[held], scores, strict=True)
        ]
        value = task.compute_metrics(evaluated)[task.selection_metric]
        found.append((-1.0 if np.isnan(value) else value, -penalty))
    return -max(found)[1]


class Regression:
    """A logistic regression on standardised features: of classes, or one for each label.

    Args:
        inputs: (tracks, features).
        targets: Numbers of classes, (tracks,); or labels, (tracks, labels).
        penalty: Inverse strength.
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, penalty: float) -> None:
        regression = LogisticRegression(C=penalty, max_iter=200)
        self.is_multilabel = targets.ndim == 2
        model = OneVsRestClassifier(regression) if self.is_multilabel else regression
        self.model = make_pipeline(StandardScaler(), model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", message="Label not .* is present in all")
            self.model.fit(inputs, targets.astype(int))

    def scores(self, inputs: np.ndarray, *, count: int) -> np.ndarray:
        """Return probabilities, (tracks, count); 0 for a class without a training track."""
        found = self.model.predict_proba(inputs)
        if self.is_multilabel:
            return np.asarray(found, dtype=np.float32)
        scores = np.zeros((len(inputs), count), dtype=np.float32)
        scores[:, self.model[-1].classes_] = found
        return scores


def whole(checked: CheckedTrack, grid: FrameGrid) -> Window:
    """Return a track as one window."""
    return Window(
        start_sample=0, num_samples=checked.audio.num_samples(grid.sample_rate), grid=grid
    )


def evaluate_beats(
    task: Any, tracks: Tracks, features: Features, used: list[int], *, grid: FrameGrid, seed: int
) -> dict[str, float]:
    """Fit a linear layer to frames of the used training tracks, and return the metrics of beats."""
    inputs, targets = [], []
    for number in used:
        checked = tracks["train"][number]
        times = whole(checked, grid).frame_times_seconds
        inputs.append(torch.from_numpy(features["train"][number]))
        targets.append(torch.from_numpy(task.frame_targets(checked.track, times, semitones=0)))
    layer = fit_frames(torch.cat(inputs), torch.cat(targets), task.loss, seed=seed)
    evaluated = []
    for checked, own in zip(tracks["evaluated"], features["evaluated"], strict=True):
        with torch.inference_mode():
            scores = task.activate(layer(torch.from_numpy(own).float()[None]))[0].numpy()
        prediction = task.predict(checked, iter([(whole(checked, grid), scores)]))
        evaluated.append(task.evaluate_track(checked, prediction))
    found: dict[str, float] = task.compute_metrics(evaluated)
    return found


def fit_frames(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss: Callable[..., torch.Tensor],
    *,
    seed: int,
    num_outputs: int | None = None,
) -> nn.Module:
    """Return a linear layer behind a standardisation, fitted to frames (frames, features).

    Args:
        inputs: Features, in half precision.
        targets: (frames, outputs), nan where nothing is annotated; or classes, (frames,).
        loss: The task's, of (batch, frames, outputs).
        seed: Draws the order.
        num_outputs: Of the layer (default: as many as the targets have columns).
    """
    generator = torch.Generator().manual_seed(seed)
    sample = inputs[torch.randperm(len(inputs), generator=generator)[:20_000]].float()
    mean, deviation = sample.mean(dim=0), sample.std(dim=0).clamp(min=1e-5)
    layer = nn.Linear(inputs.shape[1], num_outputs or targets.shape[1])
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=BEAT_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BEAT_STEPS)
    for _ in range(BEAT_STEPS):
        chosen = torch.randint(len(inputs), (BEAT_BATCH_FRAMES,), generator=generator)
        batch = (inputs[chosen].float() - mean) / deviation
        optimizer.zero_grad()
        loss(layer(batch)[None], targets[chosen][None]).backward()
        optimizer.step()
        schedule.step()
    return nn.Sequential(Standardised(mean, deviation), layer).eval()


class Standardised(nn.Module):
    """Subtracts means and divides by standard deviations, (features,) each."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the standardised features."""
        return (inputs - self.mean) / self.deviation


def track_beats(
    task: Any, tracks: Sequence[CheckedTrack], read: Callable[[CheckedTrack], np.ndarray]
) -> dict[str, float]:
    """Return the F-measure of librosa's beat tracker, the mean over the tracks."""
    found = []
    for checked in tracks:
        _, times = librosa.beat.beat_track(y=read(checked), sr=16_000, units="time")
        reference = task.annotation(checked.track).times_seconds
        found.append(beat_scores(reference, np.asarray(times))["f_measure"])
    return {"f_measure": float(np.mean(found))}
