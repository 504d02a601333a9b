"""Runs the blocks of the documentation, each page in a working folder of its own.

    python doc_runner.py JOBS.json RESULTS.json

The package is imported once; each `m2v`, recipe and Python block then runs in a fork of this process,
with its own `sys.argv` and standard streams, as it would in a process that a shell starts. Other
commands are run by bash. Training is cut to one epoch where a command does not say how many, and reads
audio in its own process. The environment (a Hub on the loopback) is that of this process.
"""

import gc
import json
import os
import re
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# What bash may run. Anything else has to be added here, or its block marked.
PLAIN_COMMANDS = ("cat", "hf", "head", "ls")
SHORT = {"--training.epochs": "1", "--data.windows_per_track": "1", "--data.num_workers": "0"}


def run_block(block: dict, folder: Path, log: Path) -> str:
    """Run a block; return "" or what went wrong."""
    if block["language"] == "python":
        code = compile(block["text"], block["name"], "exec")
        return problem(
            block["name"], forked(lambda: exec(code, {"__name__": "x"}), folder, log), log
        )
    for command in block["commands"]:
        if message := problem(command, run_command(command, folder, log), log):
            return message
    return ""


def run_command(command: str, folder: Path, log: Path) -> int:
    """Run one command line; return its exit code."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
    if re.search(r"[|<>;&$]|^\w+=", plain):
        raise SystemExit(f"{command}: the runner takes simple commands only. Mark the block.")
    # bash itself says which words there are: quotes, globs.
    words = subprocess.run(
        ["bash", "-c", rf"printf '%s\0' {command}"], cwd=folder, capture_output=True, check=True
    )
    program, *arguments = words.stdout.decode().removesuffix("\0").split("\0")
    if program == "m2v":
        from m2v_finetune.cli import main

        return forked(lambda: main(arguments), folder, log)
    scripts = [word for word in arguments if word.startswith("recipes/")]
    if program in ("accelerate", "python") and scripts:
        script = scripts[0]
        rest = arguments[arguments.index(script) + 1 :]
        make_room(rest, folder)
        rest += [word for key, value in SHORT.items() if key not in rest for word in (key, value)]
        return forked(lambda: run_script(script, rest), folder, log)
    if program in PLAIN_COMMANDS:
        with log.open("ab") as output:
            installed = Path(sys.executable).with_name(program)
            found = str(installed) if installed.exists() else program
            return subprocess.run(
                [found, *arguments], cwd=folder, stdout=output, stderr=output, check=False
            ).returncode
    raise SystemExit(f"{command}: the runner knows no '{program}'. Mark the block, or teach it.")


def run_script(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def make_room(arguments: list[str], folder: Path) -> None:
    """Move away a run folder that stands there already, where a page shows how it is made."""
    if "--run.output_dir" in arguments and "--run.resume" not in arguments:
        run = folder / arguments[arguments.index("--run.output_dir") + 1]
        if run.exists():
            run.rename(run.with_name(f"{run.name}.before"))


def forked(call: Callable[[], object], folder: Path, log: Path) -> int:
    """Call in a child of this process; return the exit code that it would end with."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(folder)
            call()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def problem(what: str, code: int, log: Path) -> str:
    return "" if code == 0 else f"{what}: exit code {code}\n{log.read_text()[-3000:]}"


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    # Imported before the forks, so that each finds it there.
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import jsonargparse  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import m2v_finetune.metrics.multilabel
    import m2v_finetune.publishing.publish
    import m2v_finetune.training.summary  # noqa: F401

    gc.freeze()  # so that no fork looks through what it did not make
    results = {}
    for block in jobs:
        log = Path(block["folder"]).with_suffix(".log")
        log.write_text("")
        start_time = time.monotonic()
        results[block["name"]] = run_block(block, Path(block["folder"]), log)
        print(f"{block['name']}: {time.monotonic() - start_time:.1f} s", flush=True)
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
