"""Table of the predictions of one model or several; models share a pass of the layers they have in common."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from m2v_finetune import __version__
from m2v_finetune.catalogue.analysis import Array, Layout, Pass, Row
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.shared_pass import SharedPass, shared_depth
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError
from m2v_finetune.model import NotFiniteError, TaskModel, activate, require_inference
from m2v_finetune.model.fingerprint import model_fingerprint
from m2v_finetune.tasks import Prediction
from m2v_finetune.tasks.clip_prediction import ClipPrediction
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.variation import OutputVariation

if TYPE_CHECKING:
    import pyarrow

VERSION_DIGITS = 12
"""Digits of a fingerprint in the column ``version``."""


@dataclass
class NamedModel:
    """A model, and its name in the table.

    Attributes:
        name: Name of its columns, if there are several models.
        source: Folder or Hub id that it was loaded from.
        model: Model, on its device, in evaluation mode.
        fingerprint: Hash of its weights and settings.
        variation: Variation of its outputs.
        num_tracks: Number of tracks with an output.
        pass_number: Number of the pass that computes its output.
        output_number: Number of the output in the pass.
    """

    name: str
    source: str
    model: TaskModel

    def __post_init__(self) -> None:
        """Hash the weights and settings; refuse a model without rows."""
        require_inference(self.model)
        if self.model.task.sample_rate is not None:
            raise UserError(
                f"{self.source} separates stems, which are audio and fit in no table. Use it without a "
                "folder of tables: m2v predict MODEL FILES --format wav --output FOLDER.",
                code="catalogue-no-stems",
            )
        self.model.eval()
        self.fingerprint = model_fingerprint(self.model)
        self.variation = OutputVariation()
        self.num_tracks = 0
        self.pass_number = 0
        self.output_number = 0


class Predictions:
    """Analysis of tracks by models of tasks; see `analysis.Analysis`.

    Models with the same windows and the same convolutional encoder share a pass. In it, a layer with the same
    weights and the same input runs once: probes of one backbone run it once, and models with tuned upper
    layers run those alone. Predictions equal those of each model alone. Other models with the same windows
    share the reading.

    Args:
        models: Models, on their devices.

    Raises:
        UserError: A model reads vectors, or separates stems; or two have one name.
    """

    kind = "predictions"

    def __init__(self, models: Sequence[NamedModel]) -> None:
        import pyarrow

        self.models = models
        repeated = [
            name for name, count in Counter(one.name for one in models).items() if count > 1
        ]
        if repeated:
            raise UserError(
                f"Two models are named {', '.join(repeated)}. Their columns are named after their folders: "
                "rename one.",
                code="catalogue-duplicate-model",
            )
        self.layouts: list[Layout] = []
        self.passes: list[Pass] = []
        for members in _sharing(models):
            layout = layout_of(members[0].model)
            if layout not in self.layouts:
                self.layouts.append(layout)
            for number, one in enumerate(members):
                one.pass_number, one.output_number = len(self.passes), number
            self.passes.append(
                Pass(
                    layout=self.layouts.index(layout),
                    network=members[0].model,
                    compute=SharedPass([one.model for one in members]),
                )
            )
        self.identity: dict[str, Any] = {
            "models": [
                {
                    "name": one.name,
                    "task": one.model.task.name,
                    "fingerprint": one.fingerprint,
                    **(
                        {}
                        if one.model.precision == "float32"
                        else {"precision": one.model.precision}
                    ),
                }
                for one in models
            ]
        }
        self.facts: dict[str, Any] = {
            "m2v_finetune": __version__,
            "sources": {one.name: one.source for one in models},
        }
        self.constants: dict[str, Any] = {}
        fields = [
            pyarrow.field("id", pyarrow.string()),
            pyarrow.field("path", pyarrow.string()),
            pyarrow.field("duration", pyarrow.float64()),
        ]
        for one in models:
            fields.append(
                pyarrow.field(self._column("prediction", one), prediction_type(one.model))
            )
            for column, value in (
                ("model", one.source),
                ("version", one.fingerprint[:VERSION_DIGITS]),
            ):
                fields.append(pyarrow.field(self._column(column, one), pyarrow.string()))
                self.constants[self._column(column, one)] = value
        self.schema = pyarrow.schema([*fields, pyarrow.field("error", pyarrow.string())])

    def _column(self, column: str, one: NamedModel) -> str:
        return column if len(self.models) == 1 else f"{column}_{one.name}"

    def rows(
        self,
        item: Item,
        checked: CheckedTrack,
        windows: Sequence[Sequence[Window]],
        outputs: Sequence[Sequence[Sequence[Array]]],
    ) -> list[Row]:
        """Return one row: the prediction of each model, or the reason why it has none."""
        row: Row = {}
        errors = []
        for one in self.models:
            task = one.model.task
            of_windows = [window[one.output_number] for window in outputs[one.pass_number]]
            found = torch.from_numpy(np.stack(of_windows))
            one.num_tracks += 1
            scores = activate(one.model, found, one.variation)
            if not np.isfinite(scores).all():
                errors.append(f"{NotFiniteError.code}: {one.source}: {NotFiniteError(item.path)}")
                continue
            spans = windows[self.passes[one.pass_number].layout]
            prediction = task.predict(checked, zip(spans, scores, strict=True))
            row[self._column("prediction", one)] = _content(prediction, Path(item.path))
        return [{**row, "error": "; ".join(errors) or None}]


def model_name(source: str) -> str:
    """Return the name of a model's columns, from its folder or Hub id.

    >>> [model_name(one) for one in ("runs/tagging-8f2c/model", "me/my-tagger", "key/")]
    ['tagging-8f2c', 'my-tagger', 'key']
    """
    path = Path(source)
    path = path if path.name not in ("", ".", "..") else path.resolve()
    is_of_run = path.name == "model" and path.parent.name
    return path.parent.name if is_of_run else path.name


def layout_of(model: TaskModel) -> Layout:
    """Return the positions of the windows that a model predicts from."""
    return Layout(
        grid=model.backbone.frame_grid,
        window_samples=model.window_samples,
        hop_samples=model.hop_samples,
        on_frames=model.task.on_frames,
    )


def prediction_type(model: TaskModel) -> "pyarrow.DataType":
    """Return the type of the column of a model's predictions.

    A struct with the score of each label, the decided labels of a model that decides, and the novelty of the
    track if the model measures it; JSON text for tasks whose predictions have times.
    """
    import pyarrow

    task = model.task
    if not isinstance(task, ClipTask):
        return pyarrow.string()
    scores = pyarrow.struct([(label, pyarrow.float32()) for label in task.labels])
    fields = [("scores", scores)]
    if task.decide(dict.fromkeys(task.labels, 0.0)) is not None:
        fields.insert(0, ("labels", pyarrow.list_(pyarrow.string())))
    if model.measures_novelty:
        fields.append(("novelty", pyarrow.float32()))
    return pyarrow.struct(fields)


def _content(prediction: Prediction, path: Path) -> Any:
    """Return a prediction as plain data: what `m2v predict --format json` writes, without the path."""
    if isinstance(prediction, ClipPrediction):
        labels = {} if prediction.decided is None else {"labels": prediction.decided}
        novelty = {} if prediction.novelty is None else {"novelty": prediction.novelty}
        return {**labels, "scores": prediction.scores, **novelty}
    text = prediction.render("json", path=path, top=1, timeline=False, is_first=False)
    content = json.loads(text)
    del content["path"]
    return content


def _sharing(models: Sequence[NamedModel]) -> list[list[NamedModel]]:
    """Divide models into those that share a pass."""
    groups: list[list[NamedModel]] = []
    for one in models:
        for group in groups:
            first = group[0].model
            if (
                layout_of(first) == layout_of(one.model)
                and first.precision == one.model.precision
                and shared_depth(first, one.model) is not None
            ):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups
