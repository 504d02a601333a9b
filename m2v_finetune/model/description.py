"""Content of config.json: task, head, windows, tuning and backbone of a saved model."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from m2v_finetune import __version__
from m2v_finetune.backbones.layer_weighting import Weighting
from m2v_finetune.config import HeadConfig, TuningConfig
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json
from m2v_finetune.model import native as native_format
from m2v_finetune.model.metadata import CONFIG_FILE, LIBRARY_NAME, WEIGHTS_FILE
from m2v_finetune.tasks import Task, find_task

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

FORMAT_VERSION = 1
FLOAT32_BYTES = 4

SavedWeights = Literal["trained", "all", "native"]
"""Content of the weights file: `Weights` that were saved, or ``native`` for a network of transformers."""


@dataclass(frozen=True, kw_only=True)
class SavedBackbone:
    """Section ``backbone`` of config.json."""

    source: str
    revision: str | None
    licence: str
    fingerprint: str | None
    sample_rate: int
    normalize: bool
    num_layers: int
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Content of config.json."""

    library_name: str
    library_version: str
    format_version: int
    task: dict[str, Any]
    window_seconds: float
    hop_seconds: float
    layer_weighting: Weighting
    head: HeadConfig
    tuning: TuningConfig
    weights: SavedWeights
    backbone: SavedBackbone
    novelty_windows: int = 0


def describe_model(model: "TaskModel", weights: SavedWeights) -> dict[str, Any]:
    """Return the content of config.json, with the fields of `SavedModel`."""
    backbone = model.backbone
    # A model with all its weights needs no path of the machine that trained it.
    is_private = weights != "trained" and Path(backbone.source).is_dir()
    return {
        "library_name": LIBRARY_NAME,
        "library_version": __version__,
        "format_version": FORMAT_VERSION,
        "task": model.task.to_dict(),
        "window_seconds": model.window_seconds,
        "hop_seconds": model.hop_seconds,
        "layer_weighting": model.layer_weighting.kind,
        "head": asdict(model.head_config),
        "tuning": model.tuning.used(),
        "weights": weights,
        "backbone": {
            "source": Path(backbone.source).name if is_private else backbone.source,
            "revision": backbone.revision,
            "licence": backbone.licence,
            "fingerprint": model.base_fingerprint,
            "sample_rate": backbone.sample_rate,
            "normalize": backbone.normalize,
            "num_layers": backbone.num_layers,
            "settings": backbone.settings,
        },
        **({} if model.novelty is None else {"novelty_windows": len(model.novelty.windows)}),
    }


def read_config(path: Path) -> tuple[SavedModel, Task]:
    """Return the content of config.json; raise `UserError` if it is damaged or of another program."""
    if not path.is_file():
        inside = path.parent / "model"
        hint = f" Its folder {inside} does." if (inside / CONFIG_FILE).is_file() else ""
        raise UserError(
            f"{path.parent} holds no {CONFIG_FILE}, so it is no model.{hint}", code="model-missing"
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if native_format.SECTION in content:
            content = content[native_format.SECTION]
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    saved, task = parse_description(content, path)
    try:
        _check_head_size(saved, path.parent / WEIGHTS_FILE)
    except ValueError as error:
        raise _damaged(path, error) from error
    return saved, task


def parse_description(content: Any, path: Path) -> tuple[SavedModel, Task]:
    """Return settings and task of a saved model from the JSON of `describe_model`.

    Args:
        content: The JSON.
        path: File that it is from, for messages.

    Raises:
        UserError: It is damaged, of another program, or of a newer version.
    """
    try:
        if content["library_name"] != LIBRARY_NAME:
            raise ValueError(f"its library_name is {content['library_name']!r}")
        if content["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{path} was written by a newer version ({content['library_version']}). Upgrade "
                f"{LIBRARY_NAME} (this is {__version__}).",
                code="model-newer-version",
            )
        saved = _from_json(SavedModel, content)
        if not 0 < saved.hop_seconds <= saved.window_seconds < math.inf:
            raise ValueError(
                f"its windows are of {saved.window_seconds} s every {saved.hop_seconds} s"
            )
        if saved.backbone.sample_rate <= 0:
            raise ValueError(f"its sample_rate is {saved.backbone.sample_rate}")
        return saved, _find_task(saved.task["name"], path).from_dict(saved.task)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not the config of an {LIBRARY_NAME} model ({type(error).__name__}: {error}).",
        code="model-config-damaged",
    )


def _find_task(name: str, path: Path) -> type[Task]:
    try:
        return find_task(name)
    except UserError as error:
        raise UserError(f"{path} is of another task. {error}", code=error.code) from error


def _check_head_size(saved: SavedModel, weights: Path) -> None:
    """Raise ValueError where the hidden layer of a head is larger than all saved weights."""
    if saved.head.kind == "mlp" and weights.is_file():
        num_bytes = weights.stat().st_size
        if saved.head.hidden_size * FLOAT32_BYTES > num_bytes:
            raise ValueError(
                f"its head has a hidden_size of {saved.head.hidden_size}, and its weights {num_bytes} bytes"
            )


def _from_json(kind: type[Any], content: Mapping[str, Any]) -> Any:
    """Return a dataclass from JSON.

    Raises:
        TypeError: A value is missing, unknown, or of another type than the field's.
    """
    hints = get_type_hints(kind)
    if unknown := content.keys() - hints.keys():
        raise TypeError(f"{', '.join(sorted(unknown))} is not known")
    values = {}
    for field in fields(kind):
        if field.name not in content:
            if field.default is MISSING:
                raise TypeError(f"{field.name} is missing")
            continue
        value, hint = content[field.name], hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
            value = _from_json(hint, value)
        if not _is_instance(value, hint):
            raise TypeError(f"{field.name} is {value!r}")
        values[field.name] = value
    return kind(**values)


def _is_instance(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_is_instance(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    expected = get_origin(hint) or hint
    return isinstance(value, (int, float) if expected is float else expected)
