"""Programs of this package in processes of their own, forked from one that has imported it.

Imports take most of the time of a short run. A server imports once; each program is a fork of it, with its
own arguments, environment, working directory and streams, and signals, exit codes and kills are real.
The server has `HF_HUB_OFFLINE`. `huggingface_hub` and `datasets` read their settings when they are imported:
a fork whose `HF_` variables differ from those of the server reads them anew. What else depends on an import,
on the locale or on the launcher is for a process of `subprocess`.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SERVER = """
import atexit, gc, importlib, json, os, runpy, signal, socket, sys, threading
gc.disable()  # while it imports
import accelerate, torch, transformers
import m2v_finetune.cli, m2v_finetune.metrics.multilabel, m2v_finetune.runs
import m2v_finetune.plotting.runs, torch.utils.tensorboard
import datasets, huggingface_hub.hf_api
gc.freeze()  # so that no fork looks through what it did not make
gc.enable()

def hub_variables():
    return {name: value for name, value in os.environ.items() if name.startswith("HF_")}

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
listener.settimeout(30)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork():
    os._exit(0)  # whoever started this waits until it listens
while True:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        os.kill(int(sys.argv[2]), 0)  # it ends with the process of the tests, even a killed one
        continue
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not message:
        os._exit(0)
    if not os.fork():
        break
    connection.close()
    for stream in streams:
        os.close(stream)
listener.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
while not message.endswith(b"\\n"):
    message += connection.recv(1 << 20)
pid = os.fork()
if pid:
    connection.sendall(b"%d\\n" % pid)
    connection.sendall(b"%d\\n" % os.waitpid(pid, 0)[1])
    os._exit(0)
connection.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
request = json.loads(message)
os.chdir(request["folder"])
before = hub_variables()
os.environ.clear()
os.environ.update(request["environment"])
if hub_variables() != before:
    for module in (huggingface_hub.constants, datasets.config):
        importlib.reload(module)
    huggingface_hub.hf_api.api.endpoint = huggingface_hub.constants.ENDPOINT
sys.argv = request["words"]
sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(":"))

def program():
    if sys.argv[0] == "m2v":
        m2v_finetune.cli.main()
    elif sys.argv[0] == "-c":
        program = sys.argv.pop(1)
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")

# As Python ends, without taking apart each module, which takes a second.
code = 0
try:
    program()
except SystemExit as ended:
    code = ended.code or 0
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
except BaseException:
    sys.excepthook(*sys.exc_info())
    code = 1
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""
_servers: dict[tuple[str, ...], Path] = {}


class Forked:
    """A program that runs, with what `subprocess.Popen` has of it.

    Args:
        words: ``m2v``, a script, or ``-c`` and a program, and its arguments.
        environment: All variables; those of this process if None. `PYTHONPATH` adds to that of the server.
        folder: Working directory; that of this process if None.
        prefix: Command that the server is started with, such as ``setpriv``.
        output: File for both streams, open to write; None for temporary files, see `communicate`.
        input: File to read from; None for nothing.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        prefix: Sequence[str] = (),
        output: object = None,
        input: object = None,
    ) -> None:
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        streams = self._files[1:] if output is None else [output, output]
        streams = [self._files[0] if input is None else input, *streams]
        request = {
            "words": [os.fsdecode(word) for word in words],
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(_server(tuple(prefix))))
        message = json.dumps(request).encode() + b"\n"
        socket.send_fds(self._connection, [message], [one.fileno() for one in streams])
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        if self.returncode is not None:
            return self.returncode
        self._connection.setblocking(False)
        try:
            status = self._answers.readline()
        finally:
            self._connection.setblocking(True)
        return self._ended(status) if status else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code, negative for a signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self._ended(self._answers.readline())
        assert self.returncode is not None
        return self.returncode

    def _ended(self, status: bytes) -> int:
        self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the program."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the program, if it runs."""
        with suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what was written to standard output and to standard error."""
        self.wait(timeout)
        written = []
        for file in self._files[1:]:
            file.seek(0)
            written.append(file.read().decode(errors="backslashreplace"))
        return written[0], written[1]


def run_forked(
    words: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    prefix: Sequence[str] = (),
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit code; arguments are those of `Forked`."""
    running = Forked(words, environment=environment, folder=folder, prefix=prefix)
    try:
        stdout, stderr = running.communicate(timeout)
    except TimeoutError:
        running.kill()
        raise
    return subprocess.CompletedProcess(list(words), running.wait(), stdout, stderr)


def _server(prefix: tuple[str, ...]) -> Path:
    if prefix not in _servers:
        folder = tempfile.TemporaryDirectory(prefix="m2v-forks-")
        address = Path(folder.name) / "socket"
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [*prefix, sys.executable, "-c", SERVER, address, str(os.getpid())],
            env=environment,
            check=True,
        )
        _servers[prefix] = address

        def stop() -> None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(address))
            connection.close()  # without a request: the server ends
            folder.cleanup()

        atexit.register(stop)
    return _servers[prefix]
