"""Count of the bytes of tensors over a part of training, on real or fake tensors.

Each storage is recorded when it is allocated and when it is freed. The largest sum of live storages is the
peak. Fake tensors (`torch._subclasses.fake_tensor.FakeTensorMode`) have shapes and lifetimes but no memory,
so that a step of a large model is counted in seconds, on any machine.
"""

import math
import weakref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = Literal["weights", "gradients", "optimizer", "activations", "workspace"]
PARTS: tuple[Part, ...] = ("weights", "gradients", "optimizer", "activations", "workspace")
BLOCK_BYTES = 512
"""Block size of the CUDA allocator. Source: kMinBlockSize of CUDACachingAllocator."""


class LimitExceededError(Exception):
    """Live storages exceed the limit of the count."""


class StorageRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recorder of the allocation and release of each storage, while it is the active mode.

    Time is counted in allocations. Storages freed between two allocations have no order.

    Args:
        limit_bytes: Limit of live bytes; beyond it `LimitExceededError` is raised.

    Attributes:
        sizes: Size of each storage in bytes.
        ends: Number of allocations before the release of each storage; None while it is live.
        parts: Part of a storage, if known.
        backward_starts: Number of allocations before each backward pass.
        living_bytes: Size of all live storages.
    """

    def __init__(self, *, limit_bytes: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit_bytes = limit_bytes
        self.living_bytes = 0
        self.sizes: list[int] = []
        self.ends: list[int | None] = []
        self.parts: dict[int, Part] = {}
        self.backward_starts: list[int] = []
        self._numbers: dict[int, int] = {}  # of living storages, by address
        self._watchers: dict[int, Any] = {}
        self._last_backward = -1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and record its storages."""
        # The number of the running backward pass, -1 outside of any.
        backward = torch._C._current_graph_task_id()
        if backward > self._last_backward:
            self._last_backward = backward
            self.backward_starts.append(len(self.sizes))
        made = self.call(func, args, kwargs or {})
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return made

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation."""
        return func(*args, **kwargs)

    def note(self, tensor: Tensor, part: Part | None = None) -> None:
        """Record a tensor's storage, unless it is known, and its part."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        number = self._numbers.get(address)
        if number is None:
            number = len(self.sizes)
            self.sizes.append(storage.nbytes())
            self.ends.append(None)
            self._numbers[address] = number
            self._watchers[number] = weakref.ref(storage, lambda _: self._died(address, number))
            self.living_bytes += self.sizes[number]
            if self.living_bytes > self.limit_bytes:
                raise LimitExceededError
        if part is not None:
            self.parts[number] = part

    def _died(self, address: int, number: int) -> None:
        del self._numbers[address], self._watchers[number]
        self.ends[number] = len(self.sizes)
        self.living_bytes -= self.sizes[number]

    def timeline(self, *, block_bytes: int = 1) -> "Timeline":
        """Return the recorded storages.

        Storages without a part are activations if they were allocated in a forward pass and live at the
        start of its backward pass; the others are workspace.

        Args:
            block_bytes: Block size; sizes are rounded up to multiples of it.
        """
        count = len(self.sizes)
        starts = np.arange(count)
        ends = np.array([count if end is None else end for end in self.ends], dtype=np.int64)
        parts = np.full(count, PARTS.index("workspace"))
        for backward in self.backward_starts:
            parts[(starts < backward) & (ends >= backward)] = PARTS.index("activations")
        for number, part in self.parts.items():
            parts[number] = PARTS.index(part)
        # State that the optimizer allocates in its first step is live in all of every later step.
        starts[parts == PARTS.index("optimizer")] = 0
        # The allocator rounds up to blocks.
        sizes = np.array(self.sizes, dtype=np.int64)
        sizes = -(-sizes // block_bytes) * block_bytes
        return Timeline(starts=starts, ends=ends, sizes=sizes, parts=parts)


class FakeRecorder(StorageRecorder):  # type: ignore[no-untyped-call]
    """Recorder of fake tensors, which have no values: every number read from one is 1."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, unless it reads a number."""
        if func is torch.ops.prim.device.default:  # two of three calls
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Storages of a step, with their lifetimes.

    Attributes:
        starts: Number of allocations before that of each storage, (storages,).
        ends: Number of allocations before its release, (storages,).
        sizes: Size in bytes, (storages,).
        parts: Index in `PARTS`, (storages,).
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    parts: NDArray[np.int64]

    def accumulating(self) -> "Timeline":
        """Return the timeline of the last of several accumulated batches.

        The gradients of earlier batches are live in all of it. Each new gradient is added to them and freed.
        """
        is_gradient = self.parts == PARTS.index("gradients")
        starts, ends = self.starts.copy(), self.ends
        starts[is_gradient] = 0
        added = self.starts[is_gradient]
        return Timeline(
            starts=np.concatenate([starts, added]),
            ends=np.concatenate([ends, added + 1]),
            sizes=np.concatenate([self.sizes, self.sizes[is_gradient]]),
            parts=np.concatenate([self.parts, np.full(len(added), PARTS.index("workspace"))]),
        )

    def peak(self) -> dict[Part, int]:
        """Return the live bytes at the peak, by part; of several peaks the first."""
        changes = np.zeros(max(self.ends) + 1, dtype=np.int64)
        np.add.at(changes, self.starts, self.sizes)
        np.add.at(changes, self.ends, -self.sizes)
        worst = int(np.argmax(np.cumsum(changes)))
        is_there = (self.starts <= worst) & (self.ends > worst)
        return {
            part: int(self.sizes[is_there & (self.parts == index)].sum())
            for index, part in enumerate(PARTS)
        }
