"""Separation: the stems of a mixture, by spectrogram masks computed from the backbone's features."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.decode import AudioInfo, inspect_audio, read_channels, resample
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.loader import Augment, Window
from m2v_finetune.data.manifest import Track, problem_list, require_column
from m2v_finetune.data.paths import did_you_mean, path_problem
from m2v_finetune.data.values import is_missing
from m2v_finetune.decoding.joining import OverlapAdd
from m2v_finetune.errors import AudioError, UserError
from m2v_finetune.files import write_atomically
from m2v_finetune.heads import Head, MaskHead
from m2v_finetune.metrics.separation import SeparationAccumulator, separation_report
from m2v_finetune.tasks.clips import saved_labels
from m2v_finetune.tasks.frames import as_json
from m2v_finetune.tasks.task import Prediction, WindowScores

Array = NDArray[np.float32]
# The window of open-unmix: 4096 samples at 44.1 kHz, and four of them overlap.
SPECTRUM_SECONDS = 0.093
OVERLAPPING_SPECTRA = 4
SHOWN_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class SeparationConfig:
    """Settings of the stems and of their format.

    Args:
        stems: Names of the stems, those of their files (without suffix) in a track's folder of stems.
        label_column: Column with the path of that folder, relative to the manifest.
        sample_rate: Sample rate of mixtures and stems, in Hz; files of another rate are resampled.
        num_channels: Number of channels, 1 or 2; files are mixed down, or one channel is repeated.
    """

    stems: list[str] = field(default_factory=lambda: ["vocals", "drums", "bass", "other"])
    label_column: str = "stems"
    sample_rate: int = 44_100
    num_channels: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        if len(self.stems) < 2 or len(set(self.stems)) < len(self.stems):
            raise UserError(
                f"task.stems is {self.stems}. Name two or more, without duplicates.",
                code="stems-not-distinct",
            )
        if self.num_channels not in (1, 2):
            raise UserError(
                f"task.num_channels is {self.num_channels}; it must be 1 or 2.",
                code="num-channels-illegal",
            )
        if self.sample_rate < 8000:
            raise UserError(
                f"task.sample_rate is {self.sample_rate}; it must be at least 8000 Hz.",
                code="sample-rate-illegal",
            )


class Stems:
    """Stems of a track, computed while they are read, so that a track of any length fits in memory.

    They can be read once: by `chunks`, `write`, `arrays` or `render`.

    Attributes:
        names: Names of the stems.
        sample_rate: Sample rate in Hz.
        num_samples: Length of the track at that rate.
    """

    def __init__(
        self, names: Sequence[str], *, sample_rate: int, num_samples: int, chunks: Iterator[Array]
    ) -> None:
        self.names = tuple(names)
        self.sample_rate = sample_rate
        self.num_samples = num_samples
        self._chunks = chunks

    def chunks(self) -> Iterator[Array]:
        """Yield the stems from start to end, (stems, channels, samples) each time."""
        return self._chunks

    def arrays(self) -> dict[str, Array]:
        """Return each stem, (channels, num_samples)."""
        joined = np.concatenate(list(self.chunks()), axis=-1)
        return dict(zip(self.names, joined, strict=True))

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the level of each stem, as human-readable text or as a line of JSON."""
        energy, count = np.zeros(len(self.names)), 0
        for chunk in self.chunks():
            energy += np.square(chunk, dtype=np.float64).sum(axis=(1, 2))
            count += chunk[0].size
        levels = [10 * math.log10(max(one / count, 1e-12)) for one in energy]
        if kind == "json":
            named = dict(zip(self.names, (round(level, 2) for level in levels), strict=True))
            return as_json({"path": str(path), "levels_db": named})
        lines = [
            f"  {level:7.1f} dB  {name}" for name, level in zip(self.names, levels, strict=True)
        ]
        return "\n".join([str(path), *lines]) + "\n"

    def write(self, kind: str, destination: Path) -> None:
        """Write a folder with one WAV file a stem, in 32-bit floating point, so that nothing clips."""
        write_atomically(destination, self._write_stems)

    def _write_stems(self, folder: Path) -> None:
        folder.mkdir()
        with ExitStack() as stack:
            files: list[soundfile.SoundFile] = []
            for chunk in self.chunks():
                files = files or [
                    stack.enter_context(self._new_file(folder, name, chunk.shape[1]))
                    for name in self.names
                ]
                for file, stem in zip(files, chunk, strict=True):
                    file.write(stem.T)

    def _new_file(self, folder: Path, name: str, num_channels: int) -> soundfile.SoundFile:
        return soundfile.SoundFile(
            os.fsencode(folder / f"{name}.wav"),
            "w",
            samplerate=self.sample_rate,
            channels=num_channels,
            subtype="FLOAT",
        )


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
            return list(pool.map(self._stem_problems, tracks))

    def _stem_problems(self, track: Track) -> list[str]:
        named = track.columns.get(self.label_column)
        if not isinstance(named, str) or is_missing(named):
            return [f"{track.origin}: no folder of stems in the column, but {named!r}"]
        if outside := path_problem(named, track.folder, track.path_rule):
            return [f"{track.origin}: {outside}"]
        folder = track.folder / named
        if not folder.is_dir():
            hint = did_you_mean(folder.absolute())
            return [f"{track.origin}: there is no folder of stems at {named!r}.{hint}"]
        try:
            mixture = inspect_audio(track.path)
        except AudioError:
            return []  # the check of the tracks' own files lists it, or skips the track
        problems = self._channel_problems(track, track.path, mixture)
        for stem in self.stems:
            path = stem_path(folder, stem)
            if path is None:
                hint = did_you_mean((folder / f"{stem}.wav").absolute())
                problems.append(f"{track.origin}: {folder} has no stem '{stem}'.{hint}")
                continue
            try:
                audio = inspect_audio(path)
            except AudioError as error:
                problems.append(f"{track.origin}: {error}")
                continue
            if audio.num_samples(self.sample_rate) != mixture.num_samples(self.sample_rate):
                problems.append(
                    f"{track.origin}: {path} lasts {audio.duration_seconds:.4f} s, its mixture "
                    f"{mixture.duration_seconds:.4f} s"
                )
            problems += self._channel_problems(track, path, audio)
        return problems

    def _channel_problems(self, track: Track, path: Path, audio: AudioInfo) -> list[str]:
        if self.num_channels == 1 or audio.num_channels in (1, self.num_channels):
            return []
        return [
            f"{track.origin}: {path} has {audio.num_channels} channels, where 1 or {self.num_channels} are "
            "expected (task.num_channels)"
        ]

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
            [self._read_window(checked, path, window) for path in self._paths(checked)]
        )
        if augment is not None:
            flat, _ = augment(stems.reshape(-1, stems.shape[-1]))
            stems = flat.reshape(stems.shape)
        mixture = stems.sum(axis=0)
        return self._backbone_input(mixture, window), mixture, stems

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the backbone input, the mixture, and its stems."""
        mixture = (self.num_channels, self._num_samples(window))
        return (window.num_samples,), mixture, (len(self.stems), *mixture)

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Return the input of the backbone, and the mixture, as `example` does."""
        mixture = self._read_window(checked, checked.track.path, window)
        return self._backbone_input(mixture, window), mixture

    def _backbone_input(self, mixture: Array, window: Window) -> Array:
        """Return a mixture as input of the backbone: mono, at its sample rate."""
        waveform = resample(mixture.mean(axis=0), self.sample_rate, window.grid.sample_rate)
        return waveform[: window.num_samples]

    def _read_window(self, checked: CheckedTrack, path: Path, window: Window) -> Array:
        """Read a window of a track's mixture or stem, padded with zeros after its end."""
        start = self._start_sample(window)
        stop = min(start + self._num_samples(window), checked.audio.num_samples(self.sample_rate))
        samples = self._read(path, start, stop)
        return np.pad(samples, ((0, 0), (0, self._num_samples(window) - samples.shape[-1])))

    def _read(self, path: Path, start: int, stop: int) -> Array:
        """Read samples of a file at `sample_rate`, (channels, stop - start)."""
        return read_channels(
            path,
            sample_rate=self.sample_rate,
            start_sample=start,
            num_samples=stop - start,
            num_channels=self.num_channels,
        )

    def _num_samples(self, window: Window) -> int:
        """Return the length of a window at `sample_rate`.

        It has a few samples more than the window lasts. Starts of windows and lengths of tracks are
        rounded at either rate, but windows must still touch and the last one must reach the end.
        """
        rate = window.grid.sample_rate
        return -(-window.num_samples * self.sample_rate // rate) - (-self.sample_rate // rate) + 1

    def _start_sample(self, window: Window) -> int:
        return window.start_sample * self.sample_rate // window.grid.sample_rate

    def _paths(self, checked: CheckedTrack) -> list[Path]:
        """Return the files of the stems of a track that was checked."""
        folder = checked.track.folder / str(checked.track.columns[self.label_column])
        return [path for stem in self.stems if (path := stem_path(folder, stem)) is not None]

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
            finished = join.add(self._start_sample(window), stems)
            if finished.shape[-1]:
                yield finished.astype(np.float32)
        yield join.finish().astype(np.float32)

    def evaluate_track(
        self, checked: CheckedTrack, prediction: Stems
    ) -> dict[str, dict[str, float]]:
        """Return SDR and SI-SDR of each stem, in dB, chunk by chunk."""
        paths = self._paths(checked)
        accumulator = SeparationAccumulator(self.stems, sample_rate_hz=self.sample_rate)
        start = 0
        for chunk in prediction.chunks():
            stop = start + chunk.shape[-1]
            reference = np.stack([self._read(path, start, stop) for path in paths])
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
            self._read(checked.track.path, 0, shown_samples).mean(axis=0),
            dict(zip(self.stems, stems, strict=True)),
            self.sample_rate,
            folder / "separation.png",
            title=f"{checked.track.id}, mixture and predicted stems",
        )
        return {
            "separation.png": "Spectrograms of the first seconds of a test track and of its predicted stems"
        }


def stem_path(folder: Path, stem: str) -> Path | None:
    """Return the audio file of a stem in a folder, whatever its suffix; None where there is none."""
    found = (folder / f"{stem}{suffix}" for suffix in sorted(AUDIO_SUFFIXES))
    return next((path for path in found if path.is_file()), None)
