"""Interface of a downstream task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import HeadConfig, HeadKind
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.heads import Head
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.shown import Shown

Array = NDArray[np.float32]
ASSUMED_OUTPUTS = 50
"""Assumed number of labels while there are no data, as in the usual tagging benchmarks."""
WindowScores = Iterator[tuple[Window, Array]]
"""Windows of one track in order, each with the output of `Task.activate`."""


class Prediction(Protocol):
    """Prediction for a track; `Task.formats` lists the formats in which it can be written."""

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the prediction as text in a printed format.

        Args:
            kind: One of `Task.formats` whose value is None.
            path: Path of the music file, as the user wrote it.
            top: Number of labels to show, where labels are ranked.
            timeline: Whether to show the predictions of windows or frames too.
            is_first: Whether this is the first text, so that it needs a header.
        """

    def write(self, kind: str, destination: Path) -> None:
        """Write the prediction to a file or folder of its own.

        Args:
            kind: One of `Task.formats` whose value is a suffix.
            destination: Path of the new file or folder; its parent exists.
        """

    def show(self, path: Path) -> Shown:
        """Return what `m2v demo` shows of the prediction.

        Args:
            path: Path of the music file.

        Raises:
            AudioError: The file cannot be read.
        """


class Task(Protocol):
    """Labels, head, loss, track aggregation, metrics and plots of one downstream task.

    Each task is a frozen dataclass in a module of its own, found by `tasks.TASKS`. All of it may be sent
    to worker processes.

    Attributes:
        name: Key in `TASKS`, name of the recipe, prefix of a run folder's name.
        settings_class: Class of the section ``task`` of the settings.
        head_kind: Default of ``head.kind``.
        selection_metric: Validation metric that selects the best epoch; higher is better.
        pipeline_tag: Name of the task on the Hub.
        hop_fraction: Hop between a track's windows, as a fraction of the window; a default.
        on_frames: Whether the windows of a track start at frames of one grid.
        formats: Output formats by name; the first is the default. The value is None for text that is
            printed, one track after the other. Else it is the suffix of a file of its own (empty for a
            folder).
        usage_example: Code after ``model.predict(...)`` in the example of the model card.
    """

    name: ClassVar[str]
    settings_class: ClassVar[type[Any]]
    head_kind: ClassVar[HeadKind]
    selection_metric: ClassVar[str]
    pipeline_tag: ClassVar[str]
    hop_fraction: ClassVar[float]
    on_frames: ClassVar[bool]
    formats: ClassVar[Mapping[str, str | None]]
    usage_example: ClassVar[str]

    @classmethod
    def from_tracks(cls, config: Any, splits: Mapping[str, Sequence[Track]]) -> "Task":
        """Make the task from its settings and tracks, whose labels must all be usable.

        Raises:
            UserError: Lists, with file and line, every label that cannot be used.
        """

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> "Task":
        """Make the task from its settings and the usable labels of the training tracks.

        Raises:
            UserError: The settings do not fit the tracks, or none of their labels is usable.
        """

    @classmethod
    def from_settings(cls, config: Any) -> "Task":
        """Make the task from its settings alone, to plan a run.

        The number of outputs is that of the settings, or `ASSUMED_OUTPUTS` where only tracks define it.
        """

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Task":
        """Rebuild the task from the result of `to_dict`; raise ValueError or KeyError if it is not valid."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model: plain data, with ``name``."""

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Human-readable name of each metric of `compute_metrics`."""

    @property
    def label_column(self) -> str:
        """Column of the manifest with the labels."""

    @property
    def sample_rate(self) -> int | None:
        """Sample rate of the waveforms that `example` augments, in Hz; None for the backbone's."""

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the head."""

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problems of each track's labels or annotation, with file and line."""

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Check that tracks can be evaluated.

        Raises:
            UserError: Lists, with file and line, every label that is unknown to this task.
        """

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> Head:
        """Return a new head, from `heads`."""

    def describe_head(self, config: HeadConfig) -> str:
        """Return a description of the head, for the model card."""

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation that leave the labels valid."""

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation for which the labels are transformed."""

    def example(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, ...]:
        """Read a window of a training track: the model inputs, and last the targets."""

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of `example`, all float32."""

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Read the model inputs of a window."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch of windows."""

    def activate(self, outputs: Tensor) -> Tensor:
        """Return scores of windows from their outputs, such as probabilities."""

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> Prediction:
        """Aggregate window scores into the track-level prediction."""

    def evaluate_track(self, checked: CheckedTrack, prediction: Any) -> Any:
        """Score a track: compare its prediction with its labels. The result is kept for every track."""

    def compute_metrics(self, evaluated: Sequence[Any]) -> dict[str, float]:
        """Return the metrics to log during training, by `metric_names`; nan where one is undefined."""

    def summarize(self, evaluated: Sequence[Any], *, seed: int) -> dict[str, Any]:
        """Return the results of the tracks for results.json.

        Returns:
            ``metrics``, each with ``value``, ``low`` and ``high`` (None where there is none);
            ``about_metrics``, their definition in a sentence or more; and details such as
            ``per_label``.
        """

    def statistics(self, evaluated: Sequence[Any]) -> Mapping[str, Statistic]:
        """Return metrics of `summarize` as functions of how often each track is drawn.

        They compare two models on the same tracks by a paired bootstrap.
        """

    def label_statistics(self, evaluated: Sequence[Any]) -> Mapping[str, Mapping[str, Statistic]]:
        """Return the same for each label, by label and metric; empty where there are none."""

    def prediction_row(self, evaluated: Any) -> dict[str, str | float]:
        """Return a track's columns of predictions.csv."""

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[Any],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot results of the test tracks.

        Args:
            folder: Existing folder for the plots.
            results: Results, with those of `summarize`.
            evaluated: Output of `evaluate_track` for each test track.
            tracks: Test tracks.
            predict: Function that returns the prediction for a track.

        Returns:
            The caption of each plot, by file name.
        """
