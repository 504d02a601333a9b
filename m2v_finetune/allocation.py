"""Reuse of freed memory on a CPU.

glibc returns each large block to the system when it is freed, and asks for it again in the next step. The
system clears every page anew, which takes up to a third of the time of a training step. A process that keeps
its freed memory does not wait for that. Its largest use of memory is 5 % above that of the default, at most.

Source: ``mallopt(3)`` of the Linux manual pages; measured by benchmarks/freed_memory.py.
"""

import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of two settings in glibc's malloc.h."""


def keep_freed_memory(device: torch.device) -> None:
    """Keep freed memory in this process from now on, if its networks run on a CPU.

    Results do not change. Nothing is done where the C library has no ``mallopt`` (as on macOS), or where the
    user set its allocator up: by a variable ``MALLOC_...``, or a setting of malloc in ``GLIBC_TUNABLES``.

    Args:
        device: Device of the networks.
    """
    if device.type != "cpu" or _is_chosen():
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)  # blocks come from the heap, not from the system one by one
        set_option(M_TRIM_THRESHOLD, -1)  # the heap never shrinks


def _is_chosen() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ)
