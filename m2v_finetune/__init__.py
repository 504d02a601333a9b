"""Fine-tune music2vec and MERT on music tasks: load, train, predict, publish.

>>> from m2v_finetune import TaskModel, load_backbone
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2v_finetune.backbones import Backbone, load_backbone
    from m2v_finetune.model import TaskModel
    from m2v_finetune.runs import train
    from m2v_finetune.tasks.beats import BeatsPrediction
    from m2v_finetune.tasks.chords import ChordsPrediction
    from m2v_finetune.tasks.clip_prediction import ClipPrediction
    from m2v_finetune.tasks.melody import MelodyPrediction
    from m2v_finetune.tasks.separation import Stems
    from m2v_finetune.tasks.structure import StructurePrediction
    from m2v_finetune.tasks.transcription import TranscriptionPrediction

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "BeatsPrediction",
    "ChordsPrediction",
    "ClipPrediction",
    "MelodyPrediction",
    "Stems",
    "StructurePrediction",
    "TaskModel",
    "TranscriptionPrediction",
    "__version__",
    "load_backbone",
    "train",
]

_MODULES = {
    "Backbone": "m2v_finetune.backbones",
    "BeatsPrediction": "m2v_finetune.tasks.beats",
    "ChordsPrediction": "m2v_finetune.tasks.chords",
    "ClipPrediction": "m2v_finetune.tasks.clip_prediction",
    "MelodyPrediction": "m2v_finetune.tasks.melody",
    "Stems": "m2v_finetune.tasks.separation",
    "StructurePrediction": "m2v_finetune.tasks.structure",
    "TaskModel": "m2v_finetune.model",
    "TranscriptionPrediction": "m2v_finetune.tasks.transcription",
    "load_backbone": "m2v_finetune.backbones",
    "train": "m2v_finetune.runs",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `m2v --help` needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'm2v_finetune' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
