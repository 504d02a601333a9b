"""Counting the bytes of tensors over a piece of training, on real tensors or on fake ones.

Every storage that an operation makes is noted with its size, and again when it dies; what lives at the
worst moment is the peak. Fake tensors (`torch._subclasses.fake_tensor.FakeTensorMode`) have shapes and
lifetimes but no memory, so that a step of a large model is counted in seconds, on any machine.
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
"""Blocks of the CUDA allocator are multiples of it. Source: kMinBlockSize of CUDACachingAllocator."""


class LimitExceededError(Exception):
    """More lives than was asked about."""


class StorageRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when each storage is made and dies, while it is the active mode.

    Storages are numbered as they are made. Which of them die between two that are made has no order.

    Args:
        limit_bytes: `LimitExceededError` is raised as soon as more lives.

    Attributes:
        sizes: Bytes of each storage.
        ends: How many storages had been made when each one died; None while it lives.
        parts: What a storage is, where that was said.
        backward_starts: For each backward pass, how many storages had been made before it.
        living_bytes: Of the storages that live now.
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
        """Run an operation and note what it made."""
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
        """Note a tensor's storage, unless it is known, and what it is."""
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
        """Return what was recorded.

        Where nothing else was said: what was made in a forward pass and lived when its backward pass began
        is an activation, all else workspace.

        Args:
            block_bytes: Sizes are rounded up to multiples of it.
        """
        count = len(self.sizes)
        starts = np.arange(count)
        ends = np.array([count if end is None else end for end in self.ends], dtype=np.int64)
        parts = np.full(count, PARTS.index("workspace"))
        for backward in self.backward_starts:
            parts[(starts < backward) & (ends >= backward)] = PARTS.index("activations")
        for number, part in self.parts.items():
            parts[number] = PARTS.index(part)
        # What a first step makes for the optimiser is there all along in every later one.
        starts[parts == PARTS.index("optimizer")] = 0
        # Blocks are whole, as the allocator gives them.
        sizes = np.array(self.sizes, dtype=np.int64)
        sizes = -(-sizes // block_bytes) * block_bytes
        return Timeline(starts=starts, ends=ends, sizes=sizes, parts=parts)


class FakeRecorder(StorageRecorder):  # type: ignore[no-untyped-call]
    """Of fake tensors, which have no values: what reads a number from one reads a 1."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, unless it reads a number."""
        if func is torch.ops.prim.device.default:  # two of three calls
            return args[0].fake_device
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The storages of a step in the order of their lives.

    Attributes:
        starts: How many storages were made before each one, (storages,).
        ends: How many were made before it died, (storages,).
        sizes: Bytes of each, (storages,).
        parts: Index in `PARTS` of each, (storages,).
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    parts: NDArray[np.int64]

    def accumulating(self) -> "Timeline":
        """Return the step's last batch, where others came before: their gradients are there all along.

        To each of them the new one is added, and dies.
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
        """Return the bytes that live at the worst moment, by part.

        Where several moments are the worst, it is the first.
        """
        changes = np.zeros(max(self.ends) + 1, dtype=np.int64)
        np.add.at(changes, self.starts, self.sizes)
        np.add.at(changes, self.ends, -self.sizes)
        worst = int(np.argmax(np.cumsum(changes)))
        is_there = (self.starts <= worst) & (self.ends > worst)
        return {
            part: int(self.sizes[is_there & (self.parts == index)].sum())
            for index, part in enumerate(PARTS)
        }
