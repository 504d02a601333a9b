"""All settings of a task's run."""

from dataclasses import dataclass, field

from m2v_finetune.config.data import AugmentationConfig, CacheConfig, DataConfig
from m2v_finetune.config.model import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.config.training import OptimizerConfig, PublishConfig, RunConfig, TrainingConfig
from m2v_finetune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Settings of every recipe; each recipe adds its section ``task``.

    Args:
        data: Data set, splits and windows.
        backbone: Pre-trained network.
        head: Head on its hidden states.
        tuning: Trainable parameters of the backbone.
        augmentation: Augmentation of the training windows.
        cache: Feature cache.
        optimizer: Optimizer and learning-rate schedule.
        training: Epochs and batches.
        run: Run folder, seed and checkpoints.
        publish: Upload to the Hub.
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
        """Check that the sections fit together."""
        if self.head.is_solved:
            self._check_solved_head()
        if self.training.teacher is not None:
            self._check_student()
        if self.training.init_from is not None and self.backbone.spec_augment:
            raise UserError(
                "backbone.spec_augment needs the mask of a checkpoint, which models of training.init_from "
                "lack. Remove one of them.",
                code="settings-conflict",
            )
        if self.data.features is not None:
            self._check_vectors()
        elif self.backbone.spec_augment and self.tuning.method == "probe":
            raise UserError(
                "backbone.spec_augment masks the input of a trainable backbone, and a probe's backbone is "
                "frozen. Switch it off, or choose another tuning.method.",
                code="settings-conflict",
            )

    def _check_student(self) -> None:
        """Check that the settings fit a student, which reads waveforms and no labels in training."""
        refused = {
            "training.init_from (to null)": self.training.init_from is not None,
            "data.features (to null)": self.data.features is not None,
            "data.folds (to null)": self.data.folds is not None,
            "data.sampling (to uniform)": self.data.sampling != "uniform",
            "augmentation.mixup_alpha (to 0)": self.augmentation.mixup_alpha > 0,
            "cache.use (to auto)": self.cache.use == "on",
            "head.kind (to linear or mlp)": self.head.is_solved,
        }
        if any(refused.values()):
            raise UserError(
                f"training.teacher is {self.training.teacher}: the student learns its outputs for waveforms, "
                f"not labels. Set {', '.join(name for name, is_set in refused.items() if is_set)}.",
                code="settings-conflict",
            )

    def _check_solved_head(self) -> None:
        """Check that the settings fit a head that is solved on fixed features."""
        refused = {
            "tuning.method (to probe)": self.tuning.method != "probe",
            "backbone.layer_weighting (to softmax, last or a number)": self.backbone.layer_weighting
            == "conv1d",
            "head.pooling (to mean or mean_std)": self.head.pooling == "attention",
            "augmentation.mixup_alpha (to 0)": self.augmentation.mixup_alpha > 0,
            "data.sampling (to uniform, with task.class_weight balanced)": self.data.sampling
            != "uniform",
            "training.ema_decay (to 0)": self.training.ema_decay > 0,
        }
        if any(refused.values()):
            raise UserError(
                f"head.kind is {self.head.kind}, which scikit-learn solves on fixed features of the training "
                f"tracks. Set {', '.join(name for name, is_set in refused.items() if is_set)}.",
                code="settings-conflict",
            )

    def _check_vectors(self) -> None:
        """Check that the settings fit vectors in place of audio."""
        if self.run.memory is not None:
            raise UserError(
                f"run.memory is '{self.run.memory}', which divides batches of audio, but data.features gives "
                "vectors, which need very little memory. Remove one of them.",
                code="settings-conflict",
            )
        refused = {
            "tuning.method (to probe)": self.tuning.method != "probe",
            "augmentation.transforms (to [])": bool(self.augmentation.transforms),
            "augmentation.mixup_alpha (to 0)": self.augmentation.mixup_alpha > 0,
            "backbone.num_layers (to null)": self.backbone.num_layers is not None,
            "backbone.layer_weighting (to softmax or last)": self.backbone.layer_weighting
            not in ("softmax", "last"),
            "backbone.spec_augment (to false)": self.backbone.spec_augment,
            "head.pooling (to mean)": self.head.pooling != "mean",
            "data.num_variants (to null)": self.data.num_variants is not None,
            "cache.use (to auto)": self.cache.use == "on",
            "training.compile (to false)": self.training.compile,
            "training.init_from (to null)": self.training.init_from is not None,
            "publish.weights (to auto or all)": self.publish.weights == "trained",
            "publish.native (to false)": self.publish.native,
        }
        if any(refused.values()):
            raise UserError(
                "data.features gives vectors in place of audio: there is no backbone to tune and no audio to "
                f"change. Set {', '.join(name for name, is_set in refused.items() if is_set)}.",
                code="settings-conflict",
            )
