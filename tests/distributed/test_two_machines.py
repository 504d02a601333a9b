"""The commands of docs/several-gpus.md for two machines: two launchers on the loopback."""

import shlex
import socket
from pathlib import Path

import pytest
from support.forked import Forked
from support.matrix import exhaustive
from support.processes import cpu_environment, options, run_ranks
from support.runs import read_metrics

MAIN = {
    "accelerate": "from accelerate.commands.accelerate_cli import main; main()",
    "torchrun": "from torch.distributed.run import main; main()",
}
FIRST, SECOND = "127.0.0.1", "127.0.0.2"
SETTINGS = {
    "data.window_seconds": 1,
    "data.num_workers": 0,
    "data.windows_per_track": 1,
    "backbone.source": "random-small",
    "backbone.num_layers": 1,
    "head.dropout": 0,
    "training.epochs": 1,
    "training.log_every_steps": 1,
}


def commands_of_the_page(repository: Path, program: str) -> list[str]:
    """Return the commands of a launcher for several machines, in the page's order."""
    page = (repository / "docs" / "several-gpus.md").read_text(encoding="utf-8")
    section = page.partition("## Several machines")[2].partition("\n## ")[0]
    lines = section.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(f"{program} ")]


def on_this_machine(command: str, port: int, folder: Path, manifest: Path) -> list[str]:
    """Return the words of a command, with one process on each machine, on the CPU."""
    for old, new in {
        "first-machine": FIRST,
        "29500": str(port),
        "configs/accelerate/ddp.yaml": "configs/accelerate/cpu.yaml",
        "--num_processes 8": "--num_processes 2",
        "--nproc_per_node 4": "--nproc_per_node 1",
        "/data/songs.csv": str(manifest),
        "/shared/runs/tagging": str(folder),
    }.items():
        command = command.replace(old, new)
    program, *words = shlex.split(command)
    words += options({**SETTINGS, "training.per_device_batch_size": 4})
    return ["-c", MAIN[program], *words]


@pytest.mark.exhaustive
@pytest.mark.parametrize("program", ["accelerate", *exhaustive("torchrun")])
def test_the_commands_of_the_page_train_as_one_process(
    repository, small_manifest, tmp_path, program
):
    with socket.socket() as free:
        free.bind((FIRST, 0))
        port = free.getsockname()[1]
    commands = commands_of_the_page(repository, program)
    if (
        program == "torchrun"
    ):  # one command for both; torchrun takes its own address from a name server
        commands = [
            f"torchrun --local_addr {address}{commands[0].removeprefix('torchrun')}"
            for address in (FIRST, SECOND)
        ]
    assert len(commands) == 2
    machines = [
        Forked(
            on_this_machine(command, port, tmp_path / "two", small_manifest),
            environment=cpu_environment(GLOO_SOCKET_IFNAME="lo"),
            folder=repository,
        )
        for command in commands
    ]
    try:
        logs = [machine.communicate(timeout=300)[1] for machine in machines]
    finally:
        for machine in machines:
            if machine.returncode is None:
                machine.kill()
    codes = [machine.returncode for machine in machines]
    assert codes == [0, 0], "\n".join(log[-3000:] for log in logs)
    assert "4 windows x 1 accumulated x 2 processes = 8" in " ".join(logs[0].split())

    one = {
        **SETTINGS,
        "data.source": small_manifest,
        "training.per_device_batch_size": 8,
        "run.output_dir": tmp_path / "one",
    }
    done = run_ranks(1, [repository / "recipes" / "tagging.py"], one)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 3
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
        else:
            assert a["validation"] == pytest.approx(b["validation"], abs=1e-4)
