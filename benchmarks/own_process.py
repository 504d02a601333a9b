"""A side of a comparison in a process of its own, so that its settings of the process are its own.

Commands and recipes of this program keep freed memory (m2v_finetune/allocation.py). In the same process the
other side would keep it too.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from m2v_finetune.allocation import keep_freed_memory

Functions = Mapping[str, Callable[[], Any]]


class OwnProcess:
    """Process of this program that waits to run one of its functions, as a context.

    Args:
        build: Function of a module that returns the functions by name, called in the process.
        arguments: Its arguments.
        keeps_memory: Whether the process keeps freed memory, as this program does on a CPU.
    """

    def __init__(
        self, build: Callable[..., Functions], *arguments: Any, keeps_memory: bool = True
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, build, arguments, keeps_memory), daemon=True
        )
        self._process.start()
        other.close()
        self._connection.recv()

    def run(self, name: str) -> tuple[float, float, Any]:
        """Run a function; return its seconds by the clock, those of the processor, and its result."""
        self._connection.send(name)
        found: tuple[float, float, Any] = self._connection.recv()
        return found

    def __enter__(self) -> "OwnProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join()


def _serve(
    connection: Connection, build: Callable[..., Functions], arguments: Any, keeps_memory: bool
) -> None:
    if keeps_memory:
        keep_freed_memory(torch.device("cpu"))
    functions = build(*arguments)
    connection.send(None)
    while True:
        function = functions[connection.recv()]
        clock, processor = time.perf_counter(), time.process_time()
        result = function()
        connection.send((time.perf_counter() - clock, time.process_time() - processor, result))
