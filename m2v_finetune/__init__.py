"""Fine-tune music2vec and MERT on music tasks: load, train, predict, publish.

>>> from m2v_finetune import TaskModel, load_backbone
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2v_finetune.backbones import Backbone, load_backbone
    from m2v_finetune.model import TaskModel
    from m2v_finetune.runs import train

__version__ = "0.1.0"
__all__ = ["Backbone", "TaskModel", "__version__", "load_backbone", "train"]

_MODULES = {
    "Backbone": "m2v_finetune.backbones",
    "TaskModel": "m2v_finetune.model",
    "load_backbone": "m2v_finetune.backbones",
    "train": "m2v_finetune.runs",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `m2v --help` needs no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'm2v_finetune' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
