"""Choice of the objective: its model, and its windows."""

from collections.abc import Mapping, Sequence

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import PretrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.pretraining.data2vec.model import Data2vecModel
from m2v_finetune.pretraining.masked_prediction.labels import TrackLabels
from m2v_finetune.pretraining.masked_prediction.mixing import Mixing
from m2v_finetune.pretraining.masked_prediction.model import MaskedPredictionModel
from m2v_finetune.pretraining.masked_prediction.windows import LabelledWindows
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.replay import REPLAY, PretrainingWindows, ReplayedWindows
from m2v_finetune.pretraining.windows import MaskedWindows, unlabelled_example


def build_pretraining_model(backbone: Backbone, config: PretrainingConfig) -> PretrainingModel:
    """Return the model of the objective of the settings.

    Args:
        backbone: Network with its mask embedding.
        config: All settings.

    Raises:
        UserError: The backbone or the windows do not fit the objective.
    """
    seconds = config.data.window_seconds
    if config.objective == "masked_prediction":
        return MaskedPredictionModel(backbone, config.masked_prediction, window_seconds=seconds)
    return Data2vecModel(backbone, config.pretrain, window_seconds=seconds)


def pretraining_windows(
    model: PretrainingModel,
    splits: Mapping[str, Sequence[CheckedTrack]],
    config: PretrainingConfig,
    labels: TrackLabels | None,
) -> tuple[PretrainingWindows, PretrainingWindows]:
    """Return the windows of training, with replayed ones if there are any, and of validation.

    Args:
        model: Model of the objective.
        splits: Tracks by split.
        config: All settings.
        labels: Labels of all tracks; None if the objective needs none.
    """
    training = _windows(model, splits["train"], config, labels, is_training=True)
    if REPLAY in splits:
        training = ReplayedWindows(
            own=training,
            replayed=_windows(model, splits[REPLAY], config, labels, is_training=True),
            share=config.data.replay_share,
        )
    return training, _windows(model, splits["validation"], config, labels, is_training=False)


def _windows(
    model: PretrainingModel,
    tracks: Sequence[CheckedTrack],
    config: PretrainingConfig,
    labels: TrackLabels | None,
    *,
    is_training: bool,
) -> PretrainingWindows:
    objective = config.pretrain if labels is None else config.masked_prediction
    masked = MaskedWindows(
        windows=TrainingWindows(
            tracks=tracks,
            example=unlabelled_example,
            grid=model.backbone.frame_grid,
            window_samples=model.window_samples,
            windows_per_track=config.data.windows_per_track,
            augmentation=None,
            seed=config.run.seed,
            multiple_of=1 if labels is None else model.backbone.frame_grid.stride_samples,
        ),
        mask_probability=objective.mask_probability,
        mask_span_frames=objective.mask_span_frames,
        min_mask_spans=1 if labels is None else config.masked_prediction.min_mask_spans,
    )
    if labels is None:
        return masked
    settings = config.masked_prediction
    mixing = None
    if settings.mix_probability > 0:
        mixing = Mixing(
            tracks=tracks,
            # Windows of validation have the same tensors, and nothing added.
            probability=settings.mix_probability if is_training and len(tracks) > 1 else 0.0,
            max_segments=settings.mix_max_segments,
            min_seconds=settings.mix_min_seconds,
            max_seconds=settings.mix_max_seconds,
            seed=config.run.seed,
        )
    return LabelledWindows(masked=masked, labels=labels, mixing=mixing)
