"""All settings of a task's run."""

from dataclasses import dataclass, field

from m2v_finetune.config.data import AugmentationConfig, CacheConfig, DataConfig
from m2v_finetune.config.model import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.config.training import OptimizerConfig, PublishConfig, RunConfig, TrainingConfig
from m2v_finetune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The settings that every recipe has; each recipe adds the section ``task`` of its own.

    Args:
        data: The music.
        backbone: The pre-trained network.
        head: What reads its hidden states.
        tuning: What of the backbone learns.
        augmentation: Changes of the training windows.
        cache: What is computed once and kept.
        optimizer: Rates and their course.
        training: How long and in which portions.
        run: Where the run goes and how it repeats.
        publish: What goes to the Hub.
    """

    data: DataConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        """Check what vectors in place of audio forbid."""
        if self.data.features is None:
            return
        if self.run.memory is not None:
            raise UserError(
                f"run.memory is '{self.run.memory}', which divides batches of audio, and data.features gives "
                "vectors, which take next to nothing. Remove one of them.",
                code="settings-conflict",
            )
        refused = {
            "tuning.method (to probe)": self.tuning.method != "probe",
            "augmentation.transforms (to [])": bool(self.augmentation.transforms),
            "backbone.num_layers (to null)": self.backbone.num_layers is not None,
            "backbone.layer_weighting (to softmax or last)": self.backbone.layer_weighting
            not in ("softmax", "last"),
            "backbone.spec_augment (to false)": self.backbone.spec_augment,
            "head.pooling (to mean)": self.head.pooling != "mean",
            "data.num_variants (to null)": self.data.num_variants is not None,
            "cache.use (to auto)": self.cache.use == "on",
            "training.compile (to false)": self.training.compile,
            "publish.weights (to auto or all)": self.publish.weights == "trained",
        }
        if any(refused.values()):
            raise UserError(
                "data.features gives vectors in place of audio: there is no backbone to tune and no audio to "
                f"change. Set {', '.join(name for name, is_set in refused.items() if is_set)}.",
                code="settings-conflict",
            )
