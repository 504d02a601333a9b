"""Feature cache of a run: the output of the frozen layers for each window, computed once.

For a probe, the features are the hidden states that its layer weighting uses. If layers of the backbone
are trainable, they include the input of the first trainable layer. A run reads features in place of audio,
in training and in evaluation. Runs with the same backbone, audio and windows share them.
"""

from m2v_finetune.training.feature_cache.cache import FeatureCache
from m2v_finetune.training.feature_cache.plan import plan_cache

__all__ = ["FeatureCache", "plan_cache"]
