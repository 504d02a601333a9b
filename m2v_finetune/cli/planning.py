"""`m2v plan` and `m2v benchmark`: what a run will take, and runs of every task."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2v_finetune.cli.options import Commands, TableConsole, count, without_collection
from m2v_finetune.errors import UserError
from m2v_finetune.path_hints import did_you_mean
from m2v_finetune.shipped import find_file


def add_commands(commands: Commands) -> None:
    """Add `plan` and `benchmark` to the parser's subcommands."""
    plan = commands.add_parser(
        "plan",
        help="plan the memory of a run, and the batch sizes that fit",
        description="Counts one optimizer step on tensors without values: no GPU, no data and no weights "
        "are needed. Settings of the recipe may follow, such as --tuning.method full.",
    )
    plan.add_argument(
        "--config",
        type=Path,
        action="append",
        required=True,
        help="settings file, as of a recipe; may be repeated",
    )
    plan.add_argument(
        "--task",
        help="name of the task, such as tagging, or pretrain; by default the name of the last file's folder",
    )
    plan.add_argument(
        "--memory",
        help="memory of each device, such as 11GB (decimal), 10GiB (binary) or 8e9; by default "
        "run.memory of the settings",
    )
    plan.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        default="cuda",
        help="device of the run (default: %(default)s)",
    )
    plan.add_argument(
        "--processes",
        type=count,
        default=1,
        help="number of processes that share a total batch (default: %(default)s)",
    )
    plan.set_defaults(command=_plan, takes_settings=True)

    benchmark = commands.add_parser(
        "benchmark",
        help="probe a backbone on every task with prepared data, next to published results",
        description="Runs the published probe protocol on each data set that `m2v data prepare` prepared. "
        "You can stop it at any time: the same command resumes. See docs/benchmarking.md.",
    )
    benchmark.add_argument(
        "--backbone",
        required=True,
        help="backbone, as --backbone.source of a recipe; with --features the name of the vectors, "
        "such as jukebox",
    )
    benchmark.add_argument(
        "--root",
        type=Path,
        required=True,
        help="folder with a subfolder for each data set and its manifests",
    )
    benchmark.add_argument(
        "--features",
        type=Path,
        help="folder of precomputed vectors, DATA_SET/BACKBONE/CLIP.npy, to read in place of audio",
    )
    benchmark.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="tasks to run, such as genre key (default: all)"
    )
    benchmark.add_argument(
        "--seeds",
        type=count,
        default=3,
        help="number of runs with the best learning rate (default: %(default)s)",
    )
    benchmark.add_argument(
        "--output", type=Path, help="folder of runs and tables (default: benchmarks-BACKBONE)"
    )
    benchmark.set_defaults(command=_benchmark)


def _plan(arguments: argparse.Namespace) -> None:
    from m2v_finetune.config import WINDOW_SECONDS, PretrainingConfig, parse_bytes
    from m2v_finetune.parsing import parse_recipe, recipe_config
    from m2v_finetune.tasks import find_task

    files = [find_file(file) for file in arguments.config]
    for file in files:
        if not os.path.isfile(file):  # noqa: PTH113 (Path raises where a folder cannot be read)
            raise UserError(
                f"There is no file {file}.{did_you_mean(file.absolute())} Give the settings of a recipe by "
                "--config.",
                code="config-not-found",
            )
    name = arguments.task or files[-1].resolve().parent.name
    try:
        task_class = None if name == "pretrain" else find_task(name)
    except UserError as error:
        raise UserError(
            f"{error} Name a task, or pretrain, by --task; without it, the folder of the file has to have "
            "its name, as in configs/tagging/.",
            code=error.code,
        ) from error
    config_class: type[Any] = PretrainingConfig if task_class is None else recipe_config(task_class)
    config = parse_recipe(
        config_class,
        [*(f"--config={file}" for file in files), *arguments.settings],
        description="",
        quickstart=Path(),
    )
    memory = arguments.memory or config.run.memory
    memory_bytes = parse_bytes("--memory", memory) if memory else None
    # After the settings: an error in them appears before these imports, most of the time of a plan.
    with without_collection():
        from m2v_finetune.cpu_precision import uses_bfloat16
        from m2v_finetune.memory.counted_step import Machine
        from m2v_finetune.memory.plan import plan_run
        from m2v_finetune.memory.plan_tables import show_plan
        from m2v_finetune.training.defaults import complete_tuning
        from m2v_finetune.training.distillation import check_teacher_settings
        from m2v_finetune.training.precision import BF16_CAPABILITY, choose_precision
    if task_class is not None:
        check_teacher_settings(config)
    if task_class is not None and config.data.window_seconds is None:
        # The longest default; shorter tracks reduce it.
        config = replace(config, data=replace(config.data, window_seconds=WINDOW_SECONDS))
    if task_class is not None:
        config = complete_tuning(config)
    on_gpu = arguments.device == "cuda"
    # GPUs with float16 only, unless the settings choose bfloat16, which needs the same memory.
    capability = BF16_CAPABILITY if config.training.mixed_precision == "bf16" else (7, 5)
    machine = Machine(
        on_gpu=on_gpu,
        precision=choose_precision(
            config.training.mixed_precision,
            capability=capability if on_gpu else None,
            bf16_on_cpu=uses_bfloat16(name),
        ),
        num_processes=arguments.processes,
    )
    task = None if task_class is None else task_class.from_settings(config.task)
    plan = plan_run(config, task, machine, memory_bytes=memory_bytes)
    assumed = ""
    has_teacher = config.training.teacher is not None  # its labels are those of the student
    if task is not None and not has_teacher and getattr(config.task, "labels", ()) is None:
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
