"""Separation: the stems of a mixture, by spectrogram masks computed from the backbone's features."""

from m2v_finetune.tasks.separation.prediction import Stems
from m2v_finetune.tasks.separation.settings import SeparationConfig
from m2v_finetune.tasks.separation.task import Separation

__all__ = ["Separation", "SeparationConfig", "Stems"]
