"""Import of the libraries of the extra ``onnx``."""

from importlib import import_module
from typing import Any

from m2v_finetune.errors import UserError

EXTRA = "onnx"


def import_extra(name: str) -> Any:
    """Return a module of the extra.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX files need the package {name.split('.')[0]}, which is not installed. Install the extra: "
            f"pip install 'm2v-finetune[{EXTRA}]'.",
            code="extra-missing",
        ) from error
