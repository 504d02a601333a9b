"""Predictions for many music files: each is written when it is computed; the same command resumes."""

from m2v_finetune.prediction.files import PredictedFiles, predict_files
from m2v_finetune.prediction.outputs import Rendering

__all__ = ["PredictedFiles", "Rendering", "predict_files"]
