"""Fake tensors whose most frequent operations run without the checks of PyTorch's own mode.

A step has thousands of operations, most of them of a few kinds, and PyTorch's mode takes up to half a
millisecond for each. Here the results of these operations have the layout of an earlier result for equal
arguments, and views run on tensors of the device "meta" at once; all other operations run in PyTorch's mode.
The counted memory is equal (`tests/numerics/test_memory_plan.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

aten = torch.ops.aten
VIEWS = frozenset(
    {
        aten._unsafe_view.default,
        aten.detach.default,
        aten.expand.default,
        aten.t.default,
        aten.transpose.int,
        aten.view.default,
    }
)
"""Operations that return another view of their first argument."""
NEW = frozenset(
    {
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        aten._to_copy.default,
        aten.add.Tensor,
        aten.addmm.default,
        aten.bmm.default,
        aten.gelu.default,
        aten.gelu_backward.default,
        aten.linalg_vector_norm.default,
        aten.mean.dim,
        aten.mm.default,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.native_dropout.default,
        aten.native_dropout_backward.default,
        aten.native_layer_norm.default,
        aten.native_layer_norm_backward.default,
        aten.zeros_like.default,
    }
)
"""Operations whose results are new tensors, of shapes that the shapes of their arguments decide."""
META = torch.device("meta")
CPU = torch.device("cpu")


class QuickFakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Mode of tensors of the CPU without values; tensors with values may be arguments too."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._results: dict[Any, Any] = {}

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        kwargs = kwargs or {}
        if func in VIEWS and type(args[0]) is FakeTensor:
            with in_kernel_invocation_manager(self):
                view = func(*args, **kwargs)
            return FakeTensor(self, view, CPU)
        if func not in NEW or kwargs.get("device") is not None:
            return super().dispatch(func, types, args, kwargs)
        with torch._C._DisableTorchDispatch():
            described = [_described(one) for one in (*args, *kwargs.values())]
            key = (func, *described, *kwargs)
            if key in self._results:
                return self._new(self._results[key])
        result = super().dispatch(func, types, args, kwargs)
        with torch._C._DisableTorchDispatch():
            self._results[key] = _layout(result)
        return result

    def _new(self, layout: Any) -> Any:
        """Return new tensors of a layout."""
        if layout is None:
            return None
        if isinstance(layout, list):
            return tuple(self._new(one) for one in layout)
        size, stride, dtype = layout
        return FakeTensor(self, torch.empty_strided(size, stride, dtype=dtype, device=META), CPU)


def _described(argument: Any) -> Any:
    """Return the part of an argument that decides the layout of a result."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype
    return tuple(argument) if isinstance(argument, list) else (type(argument), argument)


def _layout(result: Any) -> Any:
    """Return the layout of a result: size, stride and type, or a list of layouts."""
    if isinstance(result, tuple):
        return [_layout(one) for one in result]
    return None if result is None else (tuple(result.shape), result.stride(), result.dtype)
