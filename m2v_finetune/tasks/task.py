"""What the rest of the program asks of a task: the same few things of every one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window
from m2v_finetune.data.manifest import Track

Array = NDArray[np.float32]
ASSUMED_OUTPUTS = 50
"""Labels of a task whose data name them, while there are no data: those of the usual tagging benchmarks."""
WindowScores = Iterator[tuple[Window, Array]]
"""The windows of one track in order, each with what `Task.activate` made of it."""


class Prediction(Protocol):
    """What a model says of a track; `Task.formats` says what it can be written as."""

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return text of a printed format.

        Args:
            kind: One of `Task.formats` whose value is None.
            path: The music file, as the user wrote it.
            top: How many labels to show, where labels are ranked.
            timeline: Whether to show what is said of each window or frame too.
            is_first: Whether nothing was written before, so that a header belongs here.
        """

    def write(self, kind: str, destination: Path) -> None:
        """Write a format that has files of its own.

        Args:
            kind: One of `Task.formats` whose value is a suffix.
            destination: The new file or folder; its parent exists.
        """


class Task(Protocol):
    """Labels, head, loss, track aggregation, metrics and pictures of one downstream task.

    Each task is a frozen dataclass in a module of its own, found by `tasks.TASKS`. All of it may be sent
    to worker processes.

    Attributes:
        name: Key in `TASKS`, name of the recipe, begin of a run folder's name.
        selection_metric: The metric of validation tracks by which the best epoch is chosen; higher is
            better.
        pipeline_tag: What the Hub calls such a model.
        hop_fraction: Distance of a track's windows, as a share of the window, unless the settings say it.
        on_frames: Whether the windows of a track begin on one grid of frames.
        formats: By name, what a prediction can be written as; the first is the default. The value is None
            for text that is printed, one track after the other, and else the suffix of a file of its own
            (empty for a folder of its own).
        usage_example: What follows ``model.predict(...)`` in the card's example.
    """

    name: ClassVar[str]
    selection_metric: ClassVar[str]
    pipeline_tag: ClassVar[str]
    hop_fraction: ClassVar[float]
    on_frames: ClassVar[bool]
    formats: ClassVar[Mapping[str, str | None]]
    usage_example: ClassVar[str]

    @classmethod
    def from_tracks(cls, config: Any, splits: Mapping[str, Sequence[Track]]) -> "Task":
        """Make the task from its settings and the labels of the tracks, which have to be usable all of them.

        Raises:
            UserError: Lists, with file and line, every label that cannot be used.
        """

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> "Task":
        """Make the task from its settings and the labels of the training tracks, but those it cannot use.

        Raises:
            UserError: The settings do not fit the tracks, or no label of theirs can be used.
        """

    @classmethod
    def from_settings(cls, config: Any) -> "Task":
        """Make the task from its settings alone, to plan a run.

        It has as many outputs as with tracks, where settings say how many; else `ASSUMED_OUTPUTS`.
        """

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Task":
        """Rebuild the task from what `to_dict` returned; ValueError or KeyError if that is not what it is."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved with a model: plain data, with ``name``."""

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Each metric of `compute_metrics` by its name for people."""

    @property
    def label_column(self) -> str:
        """The column of a manifest that holds the labels."""

    @property
    def sample_rate(self) -> int | None:
        """Rate of the waveforms that `example` augments, in Hz; None for the backbone's."""

    @property
    def num_outputs(self) -> int:
        """Width of what the head gives."""

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return, for each track, what is wrong with its labels or annotation, each with its place."""

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Check that tracks can be judged.

        Raises:
            UserError: Lists, with file and line, every label that this task does not know.
        """

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> nn.Module:
        """Return a new head: `heads` has them."""

    def describe_head(self, config: HeadConfig) -> str:
        """Return what the head is, for the model card."""

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation under which the labels stay true."""

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation that the labels follow."""

    def example(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, ...]:
        """Read a window of a training track: what the model takes, and last what it should give."""

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of what `example` reads of a window, all float32."""

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Read a window of a track: what the model takes."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch of windows."""

    def activate(self, outputs: Tensor) -> Tensor:
        """Return what the outputs of windows mean, such as probabilities."""

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> Prediction:
        """Join what the windows say into what is known of the track."""

    def evaluate_track(self, checked: CheckedTrack, prediction: Any) -> Any:
        """Compare a prediction with the labels of its track; small, as one is kept for every track."""

    def compute_metrics(self, evaluated: Sequence[Any]) -> dict[str, float]:
        """Return metrics of `metric_names` over tracks, those to watch; nan where one does not exist."""

    def summarize(self, evaluated: Sequence[Any], *, seed: int) -> dict[str, Any]:
        """Return what results.json says of the tracks.

        Returns:
            ``metrics``, each with ``value``, ``low`` and ``high`` (None where there is none);
            ``about_metrics``, a sentence or more on their definition; and what else is of interest,
            such as ``per_label``.
        """

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
        """Draw pictures of the test tracks.

        Args:
            folder: Exists.
            results: What `summarize` returned, among others.
            evaluated: What `evaluate_track` returned of each test track.
            tracks: The test tracks.
            predict: What the model says of a track.

        Returns:
            A caption for each file that was made.
        """
