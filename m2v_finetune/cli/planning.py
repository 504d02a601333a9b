"""`m2v plan` and `m2v benchmark`: what a run will take, and runs of every task."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2v_finetune.cli.options import Commands, TableConsole, count
from m2v_finetune.errors import UserError
from m2v_finetune.shipped import find_file


def add_commands(commands: Commands) -> None:
    """Add `plan` and `benchmark` to the parser's subcommands."""
    plan = commands.add_parser(
        "plan",
        help="the memory that a run will take, and the batches that fit",
        description="Counts one optimiser step on tensors without values: no card, no data and no weights "
        "are needed. Settings of the recipe may follow, such as --tuning.method full.",
    )
    plan.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="as of a recipe; may be repeated",
    )
    plan.add_argument(
        "--task", help="such as tagging, or pretrain; by default the name of the last file's folder"
    )
    plan.add_argument(
        "--memory",
        help="of each device, such as 11GB (decimal), 10GiB (binary) or 8e9; by default run.memory of the "
        "settings",
    )
    plan.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)"
    )
    plan.add_argument(
        "--processes",
        type=count,
        default=1,
        help="that share a total batch (default: %(default)s)",
    )
    plan.set_defaults(command=_plan, takes_settings=True)

    benchmark = commands.add_parser(
        "benchmark",
        help="probe a backbone on every task whose data are there, beside published numbers",
        description="Runs the published probe protocol on each data set that `m2v data prepare` made ready. "
        "Stop it whenever you like: the same command goes on. docs/benchmarking.md says more.",
    )
    benchmark.add_argument(
        "--backbone",
        required=True,
        help="as --backbone.source of a recipe; with --features the name of the vectors, such as jukebox",
    )
    benchmark.add_argument(
        "--root",
        type=Path,
        required=True,
        help="holds a folder for each data set, with its manifests",
    )
    benchmark.add_argument(
        "--features",
        type=Path,
        help="read vectors that were computed elsewhere, in DATA_SET/BACKBONE/CLIP.npy below this folder",
    )
    benchmark.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="only these, such as genre key"
    )
    benchmark.add_argument(
        "--seeds", type=count, default=3, help="runs by the best rate (default: %(default)s)"
    )
    benchmark.add_argument(
        "--output", type=Path, help="folder of runs and tables (default: benchmarks-BACKBONE)"
    )
    benchmark.set_defaults(command=_benchmark)


def _plan(arguments: argparse.Namespace) -> None:
    from m2v_finetune.config import WINDOW_SECONDS, PretrainingConfig, parse_bytes
    from m2v_finetune.memory.counted_step import Machine
    from m2v_finetune.memory.plan import plan_run
    from m2v_finetune.memory.plan_tables import show_plan
    from m2v_finetune.parsing import parse_recipe, recipe_config
    from m2v_finetune.tasks import TASK_SETTINGS, TASKS
    from m2v_finetune.training.defaults import complete_tuning
    from m2v_finetune.training.precision import BF16_CAPABILITY, choose_precision

    files = [find_file(file) for file in arguments.config]
    for file in files:
        if not os.path.isfile(file):  # noqa: PTH113 (Path raises where a folder cannot be read)
            raise UserError(
                f"There is no file {file}. Give the settings of a recipe by --config.",
                code="config-not-found",
            )
    name = arguments.task or files[-1].resolve().parent.name
    if name not in (*TASKS, "pretrain"):
        raise UserError(
            f"There is no task '{name}'. Name one by --task: {', '.join(TASKS)}, or pretrain. Without it, "
            "the folder of the file has to have its name, as in configs/tagging/.",
            code="task-unknown",
        )
    is_task = name in TASKS
    config_class: type[Any] = recipe_config(TASK_SETTINGS[name]) if is_task else PretrainingConfig
    config = parse_recipe(
        config_class,
        [*(f"--config={file}" for file in files), *arguments.settings],
        description="",
        quickstart=Path(),
    )
    if is_task and config.data.window_seconds is None:
        # The longest that is chosen: shorter tracks make it less.
        config = replace(config, data=replace(config.data, window_seconds=WINDOW_SECONDS))
    if is_task:
        config = complete_tuning(config)
    on_gpu = arguments.device == "cuda"
    # Of cards that compute in float16 only, unless the settings ask for bfloat16, which takes the same.
    capability = BF16_CAPABILITY if config.training.mixed_precision == "bf16" else (7, 5)
    machine = Machine(
        on_gpu=on_gpu,
        precision=choose_precision(
            config.training.mixed_precision, capability=capability if on_gpu else None
        ),
        num_processes=arguments.processes,
    )
    memory = arguments.memory or config.run.memory
    task = TASKS[name].from_settings(config.task) if is_task else None
    plan = plan_run(
        config, task, machine, memory_bytes=parse_bytes("--memory", memory) if memory else None
    )
    assumed = ""
    if task is not None and getattr(config.task, "labels", ()) is None:
        assumed = f" {task.num_outputs} labels are assumed, as the data name them."
    TableConsole().print(show_plan(plan, assumed=assumed))
    if plan.memory_bytes is not None and plan.chosen is None:
        raise UserError(plan.refusal(), code="plan-no-fit")


def _benchmark(arguments: argparse.Namespace) -> None:
    from m2v_finetune.benchmarking import BenchmarkSettings, run_benchmark

    settings = BenchmarkSettings(
        backbone=arguments.backbone,
        root=arguments.root,
        features=arguments.features,
        tasks=tuple(arguments.tasks or ()),
        num_seeds=arguments.seeds,
        output=arguments.output,
    )
    run_benchmark(settings)
