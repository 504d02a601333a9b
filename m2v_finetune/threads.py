"""Use of the cores of this process: intra-op threads of PyTorch, and batches that are computed at once.

Each operation on several threads ends with a barrier. If other work takes a core, or a container has a quota
of less than the machine's cores, the operations of a small network wait there most of the time. Results are
those of any other number of threads, to rounding. So a small network has one thread for each batch, and on
several cores computes several batches at once, without barriers and with the same results.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from m2v_finetune.errors import Stopped

SMALL_PARAMETERS = 20_000_000
"""Networks with fewer parameters run on one thread. Source: benchmarks/threads.py."""
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which users set the number."""
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables of accelerate launch and torchrun, which set `VARIABLES` to 1 if the user has not."""

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_INITIAL = torch.get_num_threads()


def choose_threads(model: nn.Module, *, without: Iterable[nn.Module] = ()) -> int:
    """Return the number of threads for a network.

    A number that the user set is kept: by one of `VARIABLES`, or by `torch.set_num_threads` after this module
    was imported. A 1 in them under one of `LAUNCHERS` is the launcher's, and does not count. Otherwise it is
    one for a small network; for another the physical cores that the process may use (by affinity and cgroup
    quota), divided by the number of processes of a run on this machine. Processes that read audio are not
    counted: they wait most of the time beside a large network, and have the other cores beside a small one.

    Args:
        model: Network.
        without: Parts of it that do not run, such as those whose output is cached.
    """
    if _is_chosen():
        return torch.get_num_threads()
    idle = {id(parameter) for module in without for parameter in module.parameters()}
    size = sum(one.numel() for one in model.parameters() if id(one) not in idle)
    return 1 if size < SMALL_PARAMETERS else _cores()


def batches_at_once(model: nn.Module) -> int:
    """Return the number of batches that a network computes at once, each with `choose_threads` threads.

    It is the number of cores for a small network on a CPU, unless the user set a number of threads. Otherwise
    it is one, as for networks without weights here, which ONNX Runtime runs.
    """
    devices = {one.device.type for one in model.parameters()}
    if devices != {"cpu"} or _is_chosen():
        return 1
    return _cores() if choose_threads(model) == 1 else 1


def in_order(
    function: Callable[[Batch], Result], batches: Iterable[Batch], *, at_once: int
) -> Iterator[tuple[Batch, Result]]:
    """Yield each batch with ``function(batch)``, in the order of the batches.

    Args:
        function: Function of a batch; several calls run at once, on threads, if ``at_once`` is above one.
        batches: Batches, which are read in this thread, at most ``at_once`` ahead. An error of theirs is
            raised after the results of the batches before it, but for a signal.
        at_once: Number of calls at once.
    """
    if at_once == 1:
        for batch in batches:
            yield batch, function(batch)
        return
    # Autocast is a setting of a thread.
    dtype, is_enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def compute(batch: Batch) -> Result:
        with torch.autocast("cpu", dtype=dtype, enabled=is_enabled):
            return function(batch)

    waiting: deque[tuple[Batch, Future[Result]]] = deque()
    unread, error = iter(batches), None
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                try:
                    batch = next(unread)
                except StopIteration:
                    break
                except Stopped:
                    raise
                except Exception as failed:
                    error = failed
                    break
                waiting.append((batch, pool.submit(compute, batch)))
                if len(waiting) > at_once:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
    if error is not None:
        raise error


def _is_chosen() -> bool:
    """Return whether the user set the number of threads, or a block of `intra_op_threads` did."""
    if torch.get_num_threads() != _INITIAL:
        return True
    found = [os.environ.get(name, "").split(",")[0].strip() for name in VARIABLES]
    numbers = [int(one) for one in found if one.isdigit() and int(one) > 0]  # OpenMP ignores others
    return bool(numbers) and not (numbers == [1] and _is_launched())


def _is_launched() -> bool:
    return any(name in os.environ for name in LAUNCHERS)


def _cores() -> int:
    """Return the cores for this process, of those that the processes of a run share on this machine."""
    from joblib import cpu_count

    # PyTorch's default, the physical cores, is not known where a launcher has set another.
    physical = cpu_count(only_physical_cores=True) if _is_launched() else _INITIAL
    cores: int = min(physical, cpu_count())
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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
