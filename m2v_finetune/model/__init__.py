"""`TaskModel`: backbone, layer weighting and task head, with inference, saving and loading."""

from m2v_finetune.model.cached_features import FeatureLayout
from m2v_finetune.model.description import describe_model, parse_description
from m2v_finetune.model.inference import (
    NotFiniteError,
    activate,
    check_file,
    require_inference,
    score_batches,
    score_windows,
    scored,
)
from m2v_finetune.model.metadata import CARD_FILE, CONFIG_FILE, LIBRARY_NAME, WEIGHTS_FILE
from m2v_finetune.model.native import SECTION, require_native
from m2v_finetune.model.native_card import MODEL_PLACEHOLDER, native_usage
from m2v_finetune.model.saving import read_description, upload_model
from m2v_finetune.model.task_model import TaskModel

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "LIBRARY_NAME",
    "MODEL_PLACEHOLDER",
    "SECTION",
    "WEIGHTS_FILE",
    "FeatureLayout",
    "NotFiniteError",
    "TaskModel",
    "activate",
    "check_file",
    "describe_model",
    "native_usage",
    "parse_description",
    "read_description",
    "require_inference",
    "require_native",
    "score_batches",
    "score_windows",
    "scored",
    "upload_model",
]
