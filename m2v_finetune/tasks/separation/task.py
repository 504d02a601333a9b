"""Task of separation: targets, loss, prediction and metrics of stems."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.decode import resample
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import HeadConfig, HeadKind
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window
from m2v_finetune.data.manifest import Track, problem_list, require_column
from m2v_finetune.decoding.joining import OverlapAdd
from m2v_finetune.errors import UserError
from m2v_finetune.heads import Head, MaskHead
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.metrics.separation import (
    SeparationAccumulator,
    separation_report,
    separation_statistics,
)
from m2v_finetune.tasks.label_names import saved_labels
from m2v_finetune.tasks.separation.prediction import Stems
from m2v_finetune.tasks.separation.settings import SeparationConfig
from m2v_finetune.tasks.separation.stem_files import StemFiles
from m2v_finetune.tasks.task import Prediction, WindowScores

Array = NDArray[np.float32]
# The window of open-unmix: 4096 samples at 44.1 kHz, and four of them overlap.
SPECTRUM_SECONDS = 0.093
OVERLAPPING_SPECTRA = 4
SHOWN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Stems of a mixture: masks that sum to one, so stems sum to the mixture.

    Attributes:
        stems: Names of the stems, in the order of the outputs.
        label_column: Column of the manifest.
        sample_rate: Sample rate of mixtures and stems, in Hz.
        num_channels: Number of channels of mixtures and stems.
    """

    name: ClassVar[str] = "separation"
    settings_class: ClassVar[type[Any]] = SeparationConfig
    selection_metric: ClassVar[str] = "sdr"
    head_kind: ClassVar[HeadKind] = "linear"
    pipeline_tag: ClassVar[str] = "audio-to-audio"
    hop_fraction: ClassVar[float] = 0.5
    on_frames: ClassVar[bool] = False
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "wav": ""}
    usage_example: ClassVar[str] = ".arrays()"

    stems: tuple[str, ...]
    label_column: str
    sample_rate: int
    num_channels: int

    @classmethod
    def from_tracks(
        cls, config: SeparationConfig, splits: Mapping[str, Sequence[Track]]
    ) -> "Separation":
        """Check the stems of every track; `UserError` lists every unusable stem."""
        task = cls.from_settings(config)
        task.check_labels([track for members in splits.values() for track in members])
        return task

    @classmethod
    def from_training(cls, config: SeparationConfig, tracks: Sequence[Track]) -> "Separation":
        """Make the task from its settings. `UserError` where no track has the column."""
        require_column(tracks, config.label_column)
        return cls.from_settings(config)

    @classmethod
    def from_settings(cls, config: SeparationConfig) -> "Separation":
        """Make the task from its settings, which are its attributes."""
        return cls(
            stems=tuple(config.stems),
            label_column=config.label_column,
            sample_rate=config.sample_rate,
            num_channels=config.num_channels,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Separation":
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        return cls(
            stems=saved_labels(settings["stems"]),
            label_column=str(settings["label_column"]),
            sample_rate=int(settings["sample_rate"]),
            num_channels=int(settings["num_channels"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {
            "name": self.name,
            "stems": list(self.stems),
            "label_column": self.label_column,
            "sample_rate": self.sample_rate,
            "num_channels": self.num_channels,
        }

    @property
    def metric_names(self) -> Mapping[str, str]:
        """SDR and SI-SDR in dB, as a mean over stems and of each stem."""
        return {
            "sdr": "SDR in dB, mean of stems",
            **{f"sdr_{stem}": f"SDR of {stem} in dB" for stem in self.stems},
            "si_sdr": "SI-SDR in dB, mean of stems",
            **{f"si_sdr_{stem}": f"SI-SDR of {stem} in dB" for stem in self.stems},
        }

    @property
    def files(self) -> StemFiles:
        """Reader of the files of mixtures and stems."""
        return StemFiles(
            stems=self.stems,
            label_column=self.label_column,
            sample_rate=self.sample_rate,
            num_channels=self.num_channels,
        )

    @property
    def num_outputs(self) -> int:
        """Number of stems."""
        return len(self.stems)

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Raise `UserError` that lists every stem that is missing, unreadable, or of another length."""
        require_column(tracks, self.label_column)
        problems = [problem for found in self.label_problems(tracks) for problem in found]
        if problems:
            raise UserError(
                problem_list(
                    "Tracks whose stems cannot be used",
                    problems,
                    f"The column '{self.label_column}' names a folder with one file a stem: "
                    f"{', '.join(self.stems)} (task.stems). Correct these, or skip these tracks with "
                    "--data.on_bad_track skip.",
                    limit=None,
                ),
                code="stems-unusable",
            )

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problems of each track: every stem that is missing, unreadable, or of another length."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.files.problems, tracks))

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> Head:
        """Return a head that masks the mixture's spectrogram.

        Raises:
            UserError: A setting is not supported by the mask head.
        """
        for key in ("pooling", "kind", "standardize"):
            if getattr(config, key) != getattr(HeadConfig(), key):
                raise UserError(
                    f"head.{key} is '{getattr(config, key)}', but the head of separation, a mask of the "
                    "mixture's spectrogram, has no such setting. Remove it.",
                    code="head-unsupported-setting",
                )
        if config.hidden_size % 2:
            raise UserError(
                f"head.hidden_size is {config.hidden_size}; here it must be even.",
                code="head-odd-hidden-size",
            )
        n_fft = 2 ** round(math.log2(SPECTRUM_SECONDS * self.sample_rate))
        return MaskHead(
            input_size=hidden_size,
            num_stems=len(self.stems),
            grid=grid,
            sample_rate=self.sample_rate,
            channels=self.num_channels,
            n_fft=n_fft,
            hop_samples=n_fft // OVERLAPPING_SPECTRA,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
        )

    def describe_head(self, config: HeadConfig) -> str:
        """Return a description of the head, for the model card."""
        return (
            f"masks of the mixture's spectrogram by a bidirectional GRU of hidden size {config.hidden_size}, "
            f"dropout {config.dropout:g}, computed from the backbone's features"
        )

    def allowed_effects(self) -> frozenset[Effect]:
        """Return all effects but noise, which is in no stem: all stems are changed alike."""
        return frozenset(Effect) - {Effect.NOISE}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return none: the stems themselves are changed."""
        return frozenset()

    def example(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, ...]:
        """Return the input of the backbone, the mixture, and its stems; the stems sum to the mixture.

        Returns:
            (window_samples,) at the backbone's rate; (channels, samples) and (stems, channels, samples) at
            `sample_rate`.
        """
        stems = np.stack(
            [self.files.read_window(checked, path, window) for path in self.files.paths(checked)]
        )
        if augment is not None:
            flat, _ = augment(stems.reshape(-1, stems.shape[-1]))
            stems = flat.reshape(stems.shape)
        mixture = stems.sum(axis=0)
        return self._backbone_input(mixture, window), mixture, stems

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the backbone input, the mixture, and its stems."""
        mixture = (self.num_channels, self.files.num_samples(window))
        return (window.num_samples,), mixture, (len(self.stems), *mixture)

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Return the input of the backbone, and the mixture, as `example` does."""
        mixture = self.files.read_window(checked, checked.track.path, window)
        return self._backbone_input(mixture, window), mixture

    def _backbone_input(self, mixture: Array, window: Window) -> Array:
        """Return a mixture as input of the backbone: mono, at its sample rate."""
        waveform = resample(mixture.mean(axis=0), self.sample_rate, window.grid.sample_rate)
        return waveform[: window.num_samples]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean absolute error of waveforms, both (batch, stems, channels, samples).

        Source: the loss of Demucs (Défossez et al., arXiv 1911.13254).
        """
        return F.l1_loss(outputs, targets)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the stems as they are."""
        return outputs

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> Stems:
        """Join the windows by overlap-add, while the stems are read."""
        num_samples = checked.audio.num_samples(self.sample_rate)
        return Stems(
            self.stems,
            sample_rate=self.sample_rate,
            num_samples=num_samples,
            chunks=self._joined(windows, num_samples),
        )

    def _joined(self, windows: WindowScores, num_samples: int) -> Iterator[Array]:
        join = OverlapAdd(num_samples=num_samples)
        for window, stems in windows:
            finished = join.add(self.files.start_sample(window), stems)
            if finished.shape[-1]:
                yield finished.astype(np.float32)
        yield join.finish().astype(np.float32)

    def evaluate_track(
        self, checked: CheckedTrack, prediction: Stems
    ) -> dict[str, dict[str, float]]:
        """Return SDR and SI-SDR of each stem, in dB, chunk by chunk."""
        paths = self.files.paths(checked)
        accumulator = SeparationAccumulator(self.stems, sample_rate_hz=self.sample_rate)
        start = 0
        for chunk in prediction.chunks():
            stop = start + chunk.shape[-1]
            reference = np.stack([self.files.read(path, start, stop) for path in paths])
            accumulator.add(reference, chunk)
            start = stop
        return accumulator.scores()

    def compute_metrics(self, evaluated: Sequence[dict[str, dict[str, float]]]) -> dict[str, float]:
        """Return the metrics of `metric_names` without intervals; nan where one is undefined."""
        metrics = self.summarize(evaluated, seed=0)["metrics"]
        return {
            name: math.nan if metrics[name]["value"] is None else metrics[name]["value"]
            for name in self.metric_names
        }

    def summarize(
        self, evaluated: Sequence[dict[str, dict[str, float]]], *, seed: int
    ) -> dict[str, Any]:
        """Return SDR and SI-SDR with intervals over tracks, as a mean over stems and of each."""
        report = separation_report(evaluated, self.stems, seed=seed)
        about = (
            "SDR as in museval: the median over tracks of the median over the seconds of a track. "
            "SI-SDR is of whole tracks, their median."
        )
        return {
            "metrics": report["metrics"],
            "num_scored_tracks": report["num_tracks"],
            "about_metrics": about,
        }

    def statistics(self, evaluated: Sequence[dict[str, dict[str, float]]]) -> dict[str, Statistic]:
        """Return the medians as statistics of counts of draws."""
        return separation_statistics(evaluated, self.stems)

    def label_statistics(
        self, evaluated: Sequence[dict[str, dict[str, float]]]
    ) -> dict[str, dict[str, Statistic]]:
        """Return no statistic of labels: the metrics have those of stems."""
        return {}

    def prediction_row(self, evaluated: dict[str, dict[str, float]]) -> dict[str, str | float]:
        """Return the scores of each stem."""
        return {
            f"{score}_{stem}": value
            for stem, scores in evaluated.items()
            for score, value in scores.items()
        }

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[dict[str, dict[str, float]]],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot the spectrograms of the first track and of its predicted stems."""
        from m2v_finetune.plotting.spectrograms import plot_separation

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, Stems)
        shown_samples = min(round(SHOWN_SECONDS * self.sample_rate), prediction.num_samples)
        shown: list[Array] = []
        for chunk in prediction.chunks():
            shown.append(chunk.mean(axis=1))
            if sum(part.shape[-1] for part in shown) >= shown_samples:
                break
        stems = np.concatenate(shown, axis=-1)[:, :shown_samples]
        plot_separation(
            self.files.read(checked.track.path, 0, shown_samples).mean(axis=0),
            dict(zip(self.stems, stems, strict=True)),
            self.sample_rate,
            folder / "separation.png",
            title=f"{checked.track.id}, mixture and predicted stems",
        )
        return {
            "separation.png": "Spectrograms of the first seconds of a test track and of its predicted stems"
        }
