"""Runs that are killed, and go on, against runs that were never killed: are they the same to the bit?

    python benchmarks/kills.py

starts real processes of recipes/tagging.py on 16 clips of the quickstart, for three methods of tuning, kills
them by SIGKILL at random moments after seeded steps, and lets each run go on until it is killed again, or is
finished. Weights, metrics.jsonl, predictions and the curves of TensorBoard are compared, bit for bit. The
result is in benchmarks/results/kills.json; it exits with 1 if anything differs.

A process begins by importing torch, which takes longer than such a run. So one process imports it once, and
is forked for every run (multiprocessing's forkserver): each run is a process of its own, with its own memory.
"""

import json
import multiprocessing
import os
import random
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in, step_of

REPOSITORY = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "kills.json"
METHODS = ("probe", "lora", "full")
NUM_RUNS, KILLS_OF_A_RUN = 2, 4  # of each method: 24 kills
NUM_CLIPS = {"train": 8, "validation": 4, "test": 4}
SETTINGS: dict[str, Any] = {
    "data.window_seconds": 1,
    "data.windows_per_track": 2,
    "data.num_workers": 1,
    "backbone.source": "random-small",
    "head.standardize": "true",
    "optimizer.learning_rate": 0.01,
    "training.epochs": 3,
    "training.per_device_batch_size": 2,
    "training.log_every_steps": 2,
    "run.checkpoint_every_steps": 3,
    "run.resume": "auto",
}
NUM_STEPS = 3 * 8
TIMEOUT_SECONDS = 300

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["m2v_finetune.runs", "torch.utils.tensorboard"])


def write_manifest(folder: Path) -> Path:
    """Write a manifest of a few clips of the quickstart, and return its path."""
    left = dict(NUM_CLIPS)
    lines = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left[row["split"]] > 0:
            left[row["split"]] -= 1
            # So that both tags have tracks of both kinds in every split.
            tags = [["even", "odd"][left[row["split"]] % 2]]
            path = str(QUICKSTART_DIR / row["path"])
            lines.append(json.dumps({"path": path, "split": row["split"], "tags": tags}) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the recipe, in as many processes as it takes.

    Attributes:
        folder: Its run folder.
        settings: Options of the recipe.
    """

    folder: Path
    settings: dict[str, Any]

    @property
    def log(self) -> Path:
        """What the last process printed."""
        return self.folder.with_suffix(".log")

    def start(self, *, limit_bytes: int | None = None) -> ForkServerProcess:
        """Start a process that begins the run, or goes on with it.

        Args:
            limit_bytes: The size that a file may reach, as if the disk were full then.
        """
        options = {**SETTINGS, **self.settings, "run.output_dir": self.folder}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        process = CONTEXT.Process(target=_run_recipe, args=(arguments, self.log, limit_bytes))
        process.start()
        return process

    def finish(self, *, limit_bytes: int | None = None) -> int | None:
        """Start a process, wait for its end, and return its exit code."""
        process = self.start(limit_bytes=limit_bytes)
        process.join(TIMEOUT_SECONDS)
        return process.exitcode

    def wait_for(self, process: ForkServerProcess, num_steps: int) -> None:
        """Wait until a process has logged so many steps after those it found, or has ended."""
        checkpoints = checkpoints_in(self.folder / "checkpoints")
        wanted = (step_of(checkpoints[-1]) if checkpoints else 0) + num_steps
        has_started = not (self.folder / "metrics.jsonl").exists()
        while process.is_alive():
            # What a killed process logged after its checkpoint is there until the next one cuts it off.
            has_started = has_started or "Resuming after" in self.log.read_text(encoding="utf-8")
            if has_started and self._last_step() >= wanted:
                return
            time.sleep(0.002)

    def _last_step(self) -> int:
        path = self.folder / "metrics.jsonl"
        whole = (
            [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            if path.exists()
            else []
        )
        return json.loads(whole[-1])["step"] if whole else 0


def kill(run: Run, *, num_kills: int, seed: int, num_steps: int = NUM_STEPS) -> list[int]:
    """Kill a run so many times, then let it finish; return the last step logged before each kill."""
    draw = random.Random(seed)
    steps = []
    for _ in range(num_kills):
        process = run.start()
        # Few enough that the last kill comes before the end.
        run.wait_for(process, draw.randint(1, (num_steps - 4) // num_kills))
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        if process.exitcode != -9:
            break  # it was finished before
        steps.append(run._last_step())
    code = run.finish()
    if code != 0:
        raise RuntimeError(f"The run ended with {code}:\n{run.log.read_text(encoding='utf-8')}")
    return steps


def differences(run: Run, other: Run) -> list[str]:
    """Return what of two finished runs differs in any bit."""
    found = [
        name
        for name in ("model/model.safetensors", "metrics.jsonl", "predictions.csv")
        if (run.folder / name).read_bytes() != (other.folder / name).read_bytes()
    ]
    ours, theirs = (_state(one) for one in (run, other))
    return found + [name for name in ours if not _is_equal(ours[name], theirs[name])]


def _state(run: Run) -> dict[str, Any]:
    """Return the last checkpoint of a run, and what TensorBoard shows of it."""
    [*_, last] = checkpoints_in(run.folder / "checkpoints")
    state = torch.load(last / STATE_FILE, weights_only=True)
    del state["seconds"]  # which differ from run to run, as do the times that TensorBoard shows
    events = EventAccumulator(str(run.folder / "tensorboard" / "tagging")).Reload()
    tags = events.Tags()["scalars"]
    state["tensorboard"] = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in tags
        if not tag.startswith("time/")
    }
    return state


def _is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return bool(a == b)


def _run_recipe(arguments: Sequence[str], log: Path, limit_bytes: int | None) -> None:
    """Be `python recipes/tagging.py`, in a process that was forked for it."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if limit_bytes is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    # Processes that read audio are forked from this one, as those of a run that a shell started.
    multiprocessing.set_start_method("fork", force=True)
    recipe = REPOSITORY / "recipes" / "tagging.py"
    sys.argv = [str(recipe), *arguments]
    runpy.run_path(str(recipe), run_name="__main__")


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what became of the killed runs of each method."""
    manifest = write_manifest(folder)
    for method in METHODS:
        settings = {"data.source": manifest, "tuning.method": method}
        straight = Run(folder=folder / f"{method}-straight", settings=settings)
        kill(straight, num_kills=0, seed=0)
        for seed in range(NUM_RUNS):
            killed = Run(folder=folder / f"{method}-{seed}", settings=settings)
            steps = kill(killed, num_kills=KILLS_OF_A_RUN, seed=seed)
            found = differences(killed, straight)
            yield {
                "method": method,
                "seed": seed,
                "killed_after_steps": steps,
                "differences": found,
            }


def main() -> None:
    """Measure, print and write."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in measure(Path(folder)):
            runs.append(run)
            print(json.dumps(run), flush=True)
    num_kills = sum(len(run["killed_after_steps"]) for run in runs)
    num_differences = sum(len(run["differences"]) for run in runs)
    print(f"kills: {num_kills}, differences: {num_differences}")
    content = {
        "num_kills": num_kills,
        "num_differences": num_differences,
        "steps_of_a_run": NUM_STEPS,
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sys.exit(num_differences > 0)


if __name__ == "__main__":
    main()
