"""Settings of a run: typed, complete, and the only place of a default.

The settings of a task's run are one frozen dataclass, `RecipeConfig`, of sections, with that of its task;
`parsing.parse_recipe` reads them.
"""

from m2v_finetune.config.data import (
    WINDOW_SECONDS,
    AugmentationConfig,
    CacheConfig,
    DataConfig,
    OnBadTrack,
    UnlabelledDataConfig,
)
from m2v_finetune.config.masked_prediction import MaskedPredictionConfig
from m2v_finetune.config.model import (
    LORA_SETTINGS,
    TUNING_SETTINGS,
    BackboneConfig,
    HeadConfig,
    HeadKind,
    TuningConfig,
    TuningMethod,
)
from m2v_finetune.config.pretraining import (
    InitialBackboneConfig,
    ObjectiveConfig,
    PretrainingConfig,
)
from m2v_finetune.config.ranges import parse_bytes
from m2v_finetune.config.recipe import RecipeConfig
from m2v_finetune.config.training import (
    OnNonfinite,
    OptimizerConfig,
    OptimizerName,
    PublishConfig,
    RunConfig,
    TrainingConfig,
)

AnyRecipeConfig = RecipeConfig | PretrainingConfig
"""Settings of any recipe."""

__all__ = [
    "LORA_SETTINGS",
    "TUNING_SETTINGS",
    "WINDOW_SECONDS",
    "AnyRecipeConfig",
    "AugmentationConfig",
    "BackboneConfig",
    "CacheConfig",
    "DataConfig",
    "HeadConfig",
    "HeadKind",
    "InitialBackboneConfig",
    "MaskedPredictionConfig",
    "ObjectiveConfig",
    "OnBadTrack",
    "OnNonfinite",
    "OptimizerConfig",
    "OptimizerName",
    "PretrainingConfig",
    "PublishConfig",
    "RecipeConfig",
    "RunConfig",
    "TrainingConfig",
    "TuningConfig",
    "TuningMethod",
    "UnlabelledDataConfig",
    "parse_bytes",
]
