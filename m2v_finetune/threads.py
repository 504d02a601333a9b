"""Number of intra-op threads of PyTorch, by the size of the work and the cores of this process.

Each operation on several threads ends with a barrier. If other work takes a core, or a container has a quota
of less than the machine's cores, the operations of a small network wait there most of the time. Results are
those of any other number of threads, to rounding.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL_PARAMETERS = 20_000_000
"""Networks with fewer parameters run on one thread. Source: benchmarks/threads.py."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which users set the number."""

_INITIAL = torch.get_num_threads()


def choose_threads(model: nn.Module, *, without: Iterable[nn.Module] = ()) -> int:
    """Return the number of threads for a network.

    A number that the user set is kept: by one of `VARIABLES`, or by `torch.set_num_threads` after this module
    was imported. Otherwise it is one for a small network; for another the cores that the process may use
    (by affinity and cgroup quota), divided by the number of processes of a run on this machine. PyTorch's
    own default, the physical cores, is never exceeded. Processes that read audio are not counted: they
    wait most of the time beside a large network, and have the other cores beside a small one.

    Args:
        model: Network.
        without: Parts of it that do not run, such as those whose output is cached.
    """
    current = torch.get_num_threads()
    if current != _INITIAL or any(os.environ.get(name) for name in VARIABLES):
        return current
    idle = {id(parameter) for module in without for parameter in module.parameters()}
    size = sum(one.numel() for one in model.parameters() if id(one) not in idle)
    if size < SMALL_PARAMETERS:
        return 1
    from joblib import cpu_count

    cores: int = cpu_count()
    return max(1, min(current, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Use a number of threads within a block; afterwards the number is the one before."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
