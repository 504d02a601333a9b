"""Models as ONNX files: writing them, and running them with ONNX Runtime."""

from m2v_finetune.exporting.onnx_file import export_onnx
from m2v_finetune.exporting.onnx_model import OnnxModel

__all__ = ["OnnxModel", "export_onnx"]
