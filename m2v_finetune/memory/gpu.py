"""Memory of CUDA kernels that differ from those of a CPU.

Fake tensors of a CUDA device cannot be differentiated if PyTorch was built without CUDA. So a step is
counted on fake CPU tensors, and this module selects the kernels of a GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

CUBLAS_WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024
"""Workspace of cuBLAS between calls, 8.5 MB. Source: PyTorch's CUDA semantics, "cuBLAS workspaces": by
default :4096:2:16:8, in KiB. On Hopper GPUs it is 33.6 MB (:4096:8); the difference is not counted."""

FLOAT32_FUNCTIONS = frozenset(
    {
        *(
            "cumprod",
            "cumsum",
            "exp",
            "expm1",
            "group_norm",
            "layer_norm",
            "log",
            "log10",
            "log1p",
            "log2",
        ),
        *("log_softmax", "logsumexp", "norm", "pow", "reciprocal", "rms_norm", "rsqrt", "softmax"),
        *("softplus", "sum", "vector_norm"),
    }
)
"""Functions of these networks that autocast runs in float32 on CUDA, but not on CPU. Source: PyTorch's
automatic mixed precision package, "CUDA Ops that can autocast to float32"."""


class GpuKernels(TorchFunctionMode):
    """Mode in which functions of CPU tensors save the same tensors for backward as those of CUDA tensors.

    - Attention is the memory-efficient kernel, which every GPU since 2014 supports (FlashAttention saves the
      same); on CPU, attention with dropout saves a square matrix.
    - Dropout saves a mask of one byte per number; on CPU it saves the mask in the precision of its input.
    - Autocast runs `FLOAT32_FUNCTIONS` in float32.

    Args:
        on_gpu: Whether to use the kernels of a GPU. In both cases `torch.istft` is replaced by its parts, as
            it reads the values of its window, which fake tensors do not have.
    """

    def __init__(self, *, on_gpu: bool = True) -> None:
        super().__init__()
        self.on_gpu = on_gpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function with the kernel of a GPU."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is Tensor.backward:
            # The mode is off within a function, but checkpointed layers are recomputed here. So the engine is
            # called directly: torch.autograd.backward would call this function again.
            with self:
                return _engine_run_backward(
                    (args[0],),
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        if func is torch.istft:
            return _istft(*args, **kwargs)
        if not self.on_gpu:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if name in FLOAT32_FUNCTIONS and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _as_float32, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    requires_grad = any(tensor.requires_grad for tensor in (query, key, value))
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query,
        key,
        value,
        attn_mask,
        requires_grad and torch.is_grad_enabled(),
        dropout_p,
        is_causal,
        scale=scale,
    )[0]
    return output


def _istft(input: Tensor, n_fft: int, hop_length: int, *, window: Tensor, length: int) -> Tensor:
    """Overlap-add the frames of spectrograms (batch, frequencies, columns)."""
    frames = torch.fft.irfft(input, n_fft, dim=-2) * window[:, None]
    full_shape = (1, n_fft + hop_length * (input.shape[-1] - 1))
    added = F.fold(frames, full_shape, (1, n_fft), stride=(1, hop_length)).flatten(1)
    envelope = torch.ones_like(added[:1])
    return (added / envelope)[:, n_fft // 2 :][:, :length]


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input
