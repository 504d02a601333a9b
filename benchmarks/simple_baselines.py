"""Baselines of each task without a network: what simple features and signal processing reach.

benchmarks/quickstart_tasks.py prints them beside the quickstarts.

- keys and pitches: a logistic regression on the mean of a constant-Q transform (CQT), one bin a semitone;
- other classes and tags: one on mean and standard deviation of 20 MFCCs;
- emotion: a ridge regression on these;
- beats: librosa's beat tracker;
- chords and transcription: a linear layer on the CQT of a frame, and on its change since the frame before;
- separation: none. Its level of chance, an equaliser for each stem, is signal processing already;
- melody and structure: none yet.

A fifth of the training tracks chooses the strength of the logistic regressions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import librosa
import numpy as np
import torch
from held_out_features import (
    CQT_BINS,
    CQT_LOWEST_HZ,
    DYNAMIC_RANGE_DB,
    RATE_HZ,
    mean_cqt,
    mfccs,
    pooled,
)
from held_out_probes import evaluate_clips, fit_frames, track_beats, whole
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.tasks.clips import EvaluatedClip

GRID = FrameGrid(sample_rate=RATE_HZ, stride_samples=320, receptive_field_samples=400)
CQT, MFCC = "regression on mean CQT", "regression on MFCCs"
NAMES = {
    "key": CQT,
    "pitch": CQT,
    "beats": "librosa's beat tracker",
    "chords": "linear layer on CQT",
    "transcription": "linear layer on CQT",
}
NONE = ("separation", "melody", "structure")
STRENGTHS = tuple(10.0**power for power in range(-2, 5))


def baseline(
    task: Any, train: Sequence[CheckedTrack], test: Sequence[CheckedTrack]
) -> dict[str, Any] | None:
    """Return the name of a task's baseline and its metric on the test tracks; None without a baseline."""
    if task.name in NONE:
        return None
    name = NAMES.get(task.name, MFCC)
    tracks = {"train": train, "evaluated": test}
    if task.name == "beats":
        found = track_beats(task, test, read)
    elif task.name in NAMES and name != CQT:
        found = of_frames(task, train, test)
    else:
        compute = mean_cqt if name == CQT else mean_and_deviation
        features = {part: [compute(read(one)) for one in own] for part, own in tracks.items()}
        if task.name == "emotion":
            found = of_numbers(task, tracks, features)
        else:
            found = evaluate_clips(task, tracks, features, list(range(len(train))), seed=0)
    return {"name": name, "value": found[task.selection_metric]}


def read(checked: CheckedTrack) -> np.ndarray:
    """Return the waveform of a track."""
    return read_audio(checked.track.path, sample_rate=RATE_HZ)


def mean_and_deviation(samples: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation over time of MFCCs, (40,)."""
    return pooled(mfccs(samples))


def of_numbers(task: Any, tracks: Any, features: Any) -> dict[str, float]:
    """Fit a ridge regression, its strength by leave-one-out errors, and return the metrics."""
    targets = np.stack([task.targets(one.track, IDENTITY) for one in tracks["train"]])
    model = make_pipeline(StandardScaler(), RidgeCV(STRENGTHS, alpha_per_target=True))
    model.fit(np.stack(features["train"]), targets)
    found: dict[str, float] = task.compute_metrics(
        [
            EvaluatedClip(target=task.targets(one.track, IDENTITY), scores=row)
            for one, row in zip(
                tracks["evaluated"], model.predict(np.stack(features["evaluated"])), strict=True
            )
        ]
    )
    return found


def cqt_frames(checked: CheckedTrack) -> np.ndarray:
    """Return the CQT in dB at each frame of `GRID`, and its change, (frames, 2 * CQT_BINS)."""
    magnitudes = np.abs(
        librosa.cqt(
            read(checked),
            sr=RATE_HZ,
            fmin=CQT_LOWEST_HZ,
            n_bins=CQT_BINS,
            hop_length=GRID.stride_samples,
        )
    )
    decibels = librosa.amplitude_to_db(magnitudes, ref=np.max, top_db=DYNAMIC_RANGE_DB).T
    both = np.concatenate([decibels, np.diff(decibels, axis=0, prepend=decibels[:1])], axis=1)
    times = whole(checked, GRID).frame_times_seconds
    nearest = np.rint(times * RATE_HZ / GRID.stride_samples).astype(int)
    return both[nearest.clip(max=len(both) - 1)].astype(np.float32)


def of_frames(
    task: Any, train: Sequence[CheckedTrack], test: Sequence[CheckedTrack]
) -> dict[str, float]:
    """Fit a linear layer on frames, and return the metrics of the tracks decoded from it."""
    targets = [
        task.frame_targets(one.track, whole(one, GRID).frame_times_seconds, semitones=0)
        for one in train
    ]
    layer = fit_frames(
        torch.from_numpy(np.concatenate([cqt_frames(one) for one in train])),
        torch.from_numpy(np.concatenate(targets)),
        task.loss,
        seed=0,
        num_outputs=task.num_outputs,
    )
    evaluated = [
        task.evaluate_track(
            one, task.predict(one, iter([(whole(one, GRID), scores(task, layer, one))]))
        )
        for one in test
    ]
    found: dict[str, float] = task.compute_metrics(evaluated)
    return found


@torch.inference_mode()
def scores(task: Any, layer: Callable[..., torch.Tensor], checked: CheckedTrack) -> np.ndarray:
    """Return the probabilities of a track's frames, (frames, outputs)."""
    found: np.ndarray = task.activate(layer(torch.from_numpy(cqt_frames(checked))[None]))[0].numpy()
    return found
