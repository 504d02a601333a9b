"""Content of a saved model, and metadata of its card."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from m2v_finetune.backbones.checkpoints import CHECKPOINTS, published_checkpoint
from m2v_finetune.hub import is_repo_id
from m2v_finetune.hub.licence import licence_metadata
from m2v_finetune.tuning import METHODS

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

LIBRARY_NAME = "m2v-finetune"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

Weights = Literal["auto", "trained", "all"]
"""Content of the weights file; see `TaskModel.save_pretrained`."""


def saved_weights(model: "TaskModel", weights: Weights) -> Literal["trained", "all"]:
    """Return the content of the weights file that ``auto`` stands for."""
    if weights == "auto":
        return "trained" if is_adapter_enough(model) else "all"
    return weights


def is_adapter_enough(model: "TaskModel") -> bool:
    """Return whether others can rebuild the model from its trained weights and the backbone's name."""
    source = model.backbone.source
    is_public = source in CHECKPOINTS or (is_repo_id(source) and not Path(source).is_dir())
    is_tuned = model.tuning.method != "full" and model.base_fingerprint is not None
    return is_public and is_tuned and not model.trains_more()


def card_data(model: "TaskModel", *, weights: Weights, native: bool = False) -> dict[str, Any]:
    """Return the metadata of the model card; see `TaskModel.card_data`."""
    published = published_checkpoint(model.backbone.source)
    base = published.hub_id if published else model.backbone.source
    if (
        model.started_from
        and is_repo_id(model.started_from)
        and not Path(model.started_from).is_dir()
    ):
        base = model.started_from
    data: dict[str, Any] = {
        "library_name": "transformers" if native else LIBRARY_NAME,
        "tags": ["music", "audio", model.task.name, LIBRARY_NAME],
        "pipeline_tag": model.task.pipeline_tag,
    }
    data |= licence_metadata(model.backbone.licence)
    if base and is_repo_id(base) and not Path(base).is_dir():
        data["base_model"] = base
        is_adapter = METHODS[model.tuning.method].adds != "nothing"
        is_adapter = is_adapter and not native and saved_weights(model, weights) == "trained"
        data["base_model_relation"] = "adapter" if is_adapter else "finetune"
    return data


def plain_card(model: "TaskModel", *, weights: Weights, native: bool = False) -> str:
    """Return the card of a model that no recipe trained: licence and base."""
    data = ModelCardData(**card_data(model, weights=weights, native=native))
    text = (
        f"A model for {model.task.name}, made with {LIBRARY_NAME} from {model.backbone.source}.\n\n"
        f"Licence of the backbone, which this model inherits: {model.backbone.licence or 'unknown'}.\n"
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
