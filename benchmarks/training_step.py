"""Time an optimizer step beside the step of transformers' Trainer, in turns.

    python benchmarks/training_step.py [ROW ...] [--steps N] [--batch-size N] [--seconds S]

Rows, each with the same windows, precision and dropout on both sides, and no gradient checkpointing:

    full   all transformer layers learn, the conv encoder is frozen
           beside transformers' Data2VecAudioForSequenceClassification with its weighted sum of layers, conv
           encoder frozen too, as its audio classification example does by default
    conv   the same with the conv encoder learning, on both sides
    lora   rank 2 on all linear layers, the lower half of the layers kept
           beside PEFT with the same rank and layers on that model, whole
    stored the same, but this program begins with what its frozen part said of the windows, as from the cache

The network has the size of music2vec-v1 and RANDOM weights; `--backbone filterbank-small` is for
trying the script. Both sides hold the same weights, and before any step their hidden states are asserted
equal. The Trainer runs by itself, with its defaults; after each of its steps one is taken by this program.
The first steps are kept apart: they make the optimizer's state, and compile what is compiled. On a CPU
this program has a process of its own (own_process.py), and both run in float32; where the CPU is fast in
bfloat16, this program runs in that too, which has a goal of its own. The time that the processor worked is
given beside that of the clock, and compared with the goal. On an NVIDIA card both run
in bfloat16, this program also with compiled layers, which are compared with the goal; of full fine-tuning
the share of the card's own rate of matrix products is measured, and compared too.

Writes benchmarks/results/training_step.json: medians, spread, ratios, versions and machine; where a goal is
missed, which operations took the time of both sides.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from own_process import OwnProcess
from peft import LoraConfig, get_peft_model
from profiles import operations, profiler
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.cpu_precision import has_fast_bfloat16
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

RESULT = Path(__file__).parent / "results" / "training_step.json"
NUM_CLASSES = 10
MAX_GRAD_NORM = 1.0
MATRIX_SIZE = 8192
SHARE_GOAL = 0.4  # of the rate of matrix products, full fine-tuning, compiled
LORA = {"r": 2, "lora_alpha": 4.0}
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"]
PACKAGES = ("torch", "transformers", "peft", "accelerate", "m2v-finetune")


@dataclass(frozen=True)
class Row:
    """What is compared.

    Attributes:
        tuning: Of this program.
        keeps_half: Whether it keeps the lower half of the layers.
        theirs: What the other side makes of transformers' model.
        goal_cpu: How many times as fast a step should be, on a CPU in float32; None for no goal.
        goal_bfloat16: In bfloat16, on a CPU that is fast in it.
        goal_gpu: On an NVIDIA card, compiled.
        is_cached: Whether this program has what the frozen part of the network says, as from the cache.
    """

    tuning: TuningConfig
    keeps_half: bool
    theirs: Callable[[Data2VecAudioForSequenceClassification], nn.Module]
    goal_cpu: float | None
    goal_bfloat16: float
    goal_gpu: float
    is_cached: bool = False


@dataclass
class Side:
    """One way to take a step, and how long it took.

    Attributes:
        step: Takes one, as `OwnProcess.run` does; None for the Trainer, which takes its own.
        profile: Takes one, with the slowest operations as its result.
        seconds: Of each step.
        processor_seconds: Of this process, on all its threads, in the same steps.
        operations: Which took most of the last one.
    """

    step: Callable[[], tuple[float, float, Any]] | None = None
    profile: Callable[[], tuple[float, float, Any]] | None = None
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    operations: list[dict[str, Any]] = field(default_factory=list)


def whole(model: Data2VecAudioForSequenceClassification) -> nn.Module:
    """Train everything."""
    return model


def conv_frozen(model: Data2VecAudioForSequenceClassification) -> nn.Module:
    """Train everything but the conv encoder."""
    model.freeze_feature_encoder()
    return model


def with_peft(model: Data2VecAudioForSequenceClassification) -> nn.Module:
    """Train low-rank updates, the head and the weights of layers."""
    model.freeze_feature_encoder()
    adapted = get_peft_model(
        model,
        LoraConfig(
            **LORA, target_modules=LINEAR_LAYERS, modules_to_save=["projector", "classifier"]
        ),
    )
    model.layer_weights.requires_grad_(True)
    return adapted


FULL = TuningConfig(method="full")
ROWS = {
    "full": Row(FULL, False, conv_frozen, goal_cpu=1.1, goal_bfloat16=2.5, goal_gpu=1.3),
    "conv": Row(
        TuningConfig(method="full", train_conv_encoder=True),
        False,
        whole,
        goal_cpu=1.1,
        goal_bfloat16=2.0,
        goal_gpu=1.3,
    ),
    "lora": Row(
        TuningConfig(method="lora", **LORA),
        True,
        with_peft,
        goal_cpu=None,
        goal_bfloat16=4.0,
        goal_gpu=1.5,
    ),
    "stored": Row(
        TuningConfig(method="lora", **LORA),
        True,
        with_peft,
        goal_cpu=None,
        goal_bfloat16=6.0,
        goal_gpu=2.5,
        is_cached=True,
    ),
}


def main() -> None:
    """Measure the rows asked for, or all, and write each as it is found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all if none")
    parser.add_argument(
        "--steps", type=int, default=7, help="of each side that count (%(default)s)"
    )
    parser.add_argument("--first", type=int, default=2, help="before them (%(default)s)")
    parser.add_argument("--batch-size", type=int, help="windows (2, or 32 on a card)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window (%(default)s)")
    parser.add_argument("--backbone", default="music2vec-v1", help="its size (%(default)s)")
    parser.add_argument(
        "--bfloat16",
        action=argparse.BooleanOptionalAction,
        default=has_fast_bfloat16(),
        help="this program in bfloat16 too, on a CPU (where the CPU is fast in it)",
    )
    parser.add_argument("--compile", action="store_true", help="compiled layers on a CPU too")
    parser.add_argument("--output", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    transformers_logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in arguments.rows or ROWS:
        row = measure(ROWS[name], arguments, device)
        write(name, row, arguments.output, device)
        shown = {k: v for k, v in row.items() if k != "operations"}
        print(json.dumps({name: shown}, indent=2), flush=True)


def measure(row: Row, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Take the steps of both sides; return what was found."""
    on_gpu = device.type == "cuda"
    batch_size = arguments.batch_size or (32 if on_gpu else 2)
    load_before = os.getloadavg()[0]
    ours, whole_network, waveforms, targets = drawn(row, arguments, batch_size)
    theirs = their_model(whole_network)
    difference = largest_difference(ours, theirs, waveforms)
    prepared = ours.backbone.prepare(waveforms)
    num_steps = arguments.first + arguments.steps
    build = partial(our_side, arguments=arguments, batch_size=batch_size, device=device)
    name = next(name for name, one in ROWS.items() if one is row)
    with ExitStack() as processes:
        if on_gpu:
            run: Callable[[str], Any] = partial(run_here, build(name))
        else:
            run = processes.enter_context(OwnProcess(build, name)).run
        assert run("weights")[2] == sum_of_weights(ours), "the sides have other weights"
        sides = {"theirs": Side(), "ours": Side(partial(run, "ours"), partial(run, "profile"))}
        for one, is_measured in (
            ("bfloat16", not on_gpu and arguments.bfloat16),
            ("compiled", on_gpu or arguments.compile),
        ):
            if is_measured:
                sides[f"ours_{one}"] = Side(
                    partial(run, f"ours_{one}"), partial(run, f"profile_{one}")
                )
        take_turns(row.theirs(theirs), prepared, targets, sides, num_steps=num_steps, device=device)

    goals = {"ours_compiled": row.goal_gpu} if on_gpu else {"ours": row.goal_cpu}
    if "ours_bfloat16" in sides:
        goals["ours_bfloat16"] = row.goal_bfloat16
    evaluated_time = "median" if on_gpu else "median_processor"
    found: dict[str, Any] = {
        "network": f"{arguments.backbone}, RANDOM WEIGHTS, {whole_network.backbone.num_layers} layers, "
        f"{ours.backbone.num_layers} of them kept by ours",
        "batch": f"{batch_size} windows of {arguments.seconds:g} s",
        "precision": "bfloat16 autocast" if on_gpu else "float32, but for ours_bfloat16",
        "largest_difference_of_hidden_states": difference,
        "trained_parameters": {"theirs": trained(theirs), "ours": trained(ours)},
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "goals": goals,
    }
    for name, side in sides.items():
        found[name] = spread(side, arguments.first, num_steps)
    for name in sides:
        if name != "theirs":
            found[f"times_as_fast_{name}"] = ratio(found["theirs"], found[name])
    found["are_goals_met"] = {
        name: found[f"times_as_fast_{name}"][evaluated_time] >= goal
        for name, goal in goals.items()
        if goal is not None
    }
    if on_gpu and row.tuning == FULL:
        found["share_of_matrix_rate"] = share_of_rate(ours, waveforms, targets, device, found)
        found["share_goal"] = SHARE_GOAL
        found["is_share_goal_met"] = found["share_of_matrix_rate"]["ours_compiled"] >= SHARE_GOAL
    if not (all(found["are_goals_met"].values()) and found.get("is_share_goal_met", True)):
        found["operations"] = {name: side.operations for name, side in sides.items()}
    return found


def drawn(
    row: Row, arguments: argparse.Namespace, batch_size: int
) -> tuple[TaskModel, TaskModel, Tensor, Tensor]:
    """Return the model of this program, the whole network, windows and targets; the same in each process."""
    torch.manual_seed(0)
    ours = our_model(row, arguments)
    whole_network = our_model(ROWS["full"], arguments) if row.keeps_half else ours
    waveforms = 0.1 * torch.randn(batch_size, ours.window_samples)
    targets = torch.randint(0, NUM_CLASSES, (batch_size,))
    if row.keeps_half:
        ours.backbone.network.load_state_dict(
            {
                own: whole_network.backbone.network.state_dict()[own.replace(".base_layer", "")]
                for own in ours.backbone.network.state_dict()
                if "lora_" not in own
            },
            strict=False,
        )
    return ours, whole_network, waveforms, targets


def our_side(
    name: str, *, arguments: argparse.Namespace, batch_size: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Return the steps of this program in a row, and the slowest operations of one."""
    row = ROWS[name]
    ours, _, waveforms, targets = drawn(row, arguments, batch_size)
    inputs = waveforms
    if row.is_cached:
        with torch.no_grad():
            inputs = ours.frozen_features(waveforms)
    step = our_step(ours, inputs, targets, device)
    steps = {
        "weights": partial(sum_of_weights, ours),
        "ours": step,
        "profile": partial(profiled, step, device),
    }
    if device.type == "cpu" and arguments.bfloat16:
        in_bfloat16 = our_model(row, arguments)
        in_bfloat16.load_state_dict(ours.state_dict())
        if row.is_cached:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                inputs = in_bfloat16.frozen_features(waveforms)
        step = our_step(in_bfloat16, inputs, targets, device, in_bfloat16=True)
        steps |= {"ours_bfloat16": step, "profile_bfloat16": partial(profiled, step, device)}
    if device.type == "cuda" or arguments.compile:
        compiled = our_model(row, arguments)
        compiled.load_state_dict(ours.state_dict())
        compiled.backbone.compile_layers()
        step = our_step(compiled, inputs, targets, device)
        steps |= {"ours_compiled": step, "profile_compiled": partial(profiled, step, device)}
    return steps


def sum_of_weights(model: nn.Module) -> float:
    """Return the sum of the absolute weights, to compare processes."""
    return sum(float(one.detach().double().abs().sum()) for one in model.parameters())


def profiled(step: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Return the slowest operations of a step."""
    with profiler(device) as own:
        step()
    return operations(own, device)


def run_here(steps: dict[str, Callable[[], Any]], name: str) -> tuple[float, float, Any]:
    """Do what `OwnProcess.run` does, in this process, on a GPU."""
    device = torch.device("cuda")
    before = now(device)
    result = steps[name]()
    clock, processor = (b - a for a, b in zip(before, now(device), strict=True))
    return clock, processor, result


def our_model(row: Row, arguments: argparse.Namespace) -> TaskModel:
    """Build the model of this program, with random weights."""
    config = BackboneConfig(source=arguments.backbone)
    if row.keeps_half:
        config = BackboneConfig(source=arguments.backbone, num_layers=num_layers(arguments) // 2)
    return TaskModel.build(
        task=Genre(labels=tuple(map(str, range(NUM_CLASSES))), label_column="genre"),
        backbone=config,
        head=HeadConfig(dropout=0.0),
        tuning=row.tuning,
        window_seconds=arguments.seconds,
        with_weights=False,
    ).train()


def num_layers(arguments: argparse.Namespace) -> int:
    """Return how many layers the whole network has."""
    with torch.device("meta"):
        return our_model(ROWS["full"], arguments).backbone.num_layers


def their_model(ours: TaskModel) -> Data2VecAudioForSequenceClassification:
    """Build transformers' model with the weights of ours; LayerDrop and SpecAugment are off in both."""
    assert ours.backbone.num_hidden_states == ours.backbone.settings["num_hidden_layers"] + 1
    config = Data2VecAudioConfig.from_dict(
        ours.backbone.settings
        | {"use_weighted_layer_sum": True, "num_labels": NUM_CLASSES, "layerdrop": 0.0}
        | {"apply_spec_augment": False, "mask_time_prob": 0.0, "vocab_size": 32}
    )
    model = Data2VecAudioForSequenceClassification(config)
    model.data2vec_audio.load_state_dict(ours.backbone.network.state_dict())
    return model.train()


def largest_difference(
    ours: TaskModel, theirs: Data2VecAudioForSequenceClassification, waveforms: Tensor
) -> float:
    """Return the largest difference of hidden states; raise where it is more than of rounding."""
    with torch.no_grad():
        prepared = ours.backbone.prepare(waveforms[:1])
        our_states = ours.eval().backbone(prepared)
        their_states = theirs.eval()(prepared, output_hidden_states=True).hidden_states
    ours.train(), theirs.train()
    difference = max(
        float((a - b).abs().max()) for a, b in zip(our_states, their_states, strict=False)
    )
    assert difference < 1e-4, f"the two sides are not the same network: {difference}"
    return difference


def our_step(
    model: TaskModel,
    waveforms: Tensor,
    targets: Tensor,
    device: torch.device,
    *,
    in_bfloat16: bool = False,
) -> Callable[[], None]:
    """Return a step of this program, batch to the device included; always in bfloat16 on a card."""
    model.to(device)
    optimizer = build_optimizer(model, OptimizerConfig())
    autocast: Any = nullcontext
    if in_bfloat16 or device.type == "cuda":
        autocast = partial(torch.autocast, device.type, torch.bfloat16)

    def step() -> None:
        take_step(
            model,
            optimizer,
            (
                [part.to(device, non_blocking=True) for part in parts]
                for parts in [(waveforms, targets)]
            ),
            loss=model.task.loss,
            max_grad_norm=MAX_GRAD_NORM,
            autocast=autocast,
        )

    return step


class Turns(TrainerCallback):
    """Times the Trainer's own steps, and takes one of each other side after each of them.

    One more step than asked for is taken, the last, and profiled.
    """

    def __init__(self, sides: dict[str, Side], *, num_steps: int, device: torch.device) -> None:
        self.sides = sides
        self.num_steps = num_steps
        self.device = device
        self.start_time = (0.0, 0.0)
        self.profiler: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to time, or to profile."""
        if state.global_step == self.num_steps:
            self.profiler = profiler(self.device)
            self.profiler.start()
        self.start_time = now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time of the Trainer's step, then take those of the others."""
        theirs = self.sides["theirs"]
        for seconds, start, end in zip(
            (theirs.seconds, theirs.processor_seconds),
            self.start_time,
            now(self.device),
            strict=True,
        ):
            seconds.append(end - start)
        if self.profiler is not None:
            self.profiler.stop()
            theirs.operations = operations(self.profiler, self.device)
        for side in self.sides.values():
            if side.step is None or side.profile is None:
                continue
            if self.profiler is not None:
                _, _, side.operations = side.profile()
                continue
            clock, processor_seconds, _ = side.step()
            side.seconds.append(clock)
            side.processor_seconds.append(processor_seconds)


def take_turns(
    model: nn.Module,
    input_values: Tensor,
    targets: Tensor,
    sides: dict[str, Side],
    *,
    num_steps: int,
    device: torch.device,
) -> None:
    """Let the Trainer train on one batch, again and again."""
    examples = [
        {"input_values": window, "labels": label}
        for window, label in zip(input_values, targets, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(examples),
                max_steps=num_steps + 1,
                max_grad_norm=MAX_GRAD_NORM,
                learning_rate=1e-5,
                bf16=device.type == "cuda",
                use_cpu=device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=examples,
            callbacks=[Turns(sides, num_steps=num_steps, device=device)],
        ).train()


def now(device: torch.device) -> tuple[float, float]:
    """Return the time, and that of the processor, when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def spread(side: Side, num_first: int, num_steps: int) -> dict[str, Any]:
    """Return median and spread of the steps that count, and the first step apart."""
    counted = side.seconds[num_first:num_steps]
    of_processor = side.processor_seconds[num_first:num_steps]
    return {
        "first_step_seconds": round(side.seconds[0], 3),
        "median_seconds": round(statistics.median(counted), 4),
        "fastest_seconds": round(min(counted), 4),
        "slowest_seconds": round(max(counted), 4),
        "median_processor_seconds": round(statistics.median(of_processor), 4),
        "num_steps": len(counted),
    }


def ratio(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Return how many times as fast ours is, by the clock and by the time that a processor worked.

    The latter is what says more of a CPU that others use too.
    """
    return {
        key: theirs[f"{key}_seconds"] / ours[f"{key}_seconds"]
        for key in ("median", "fastest", "median_processor")
    }


def share_of_rate(
    model: TaskModel,
    waveforms: Tensor,
    targets: Tensor,
    device: torch.device,
    found: dict[str, Any],
) -> dict[str, float]:
    """Return the floating-point operations of a step over those that matrix products alone would reach."""
    counter = FlopCounterMode(display=False)
    with counter:
        our_step(model, waveforms, targets, device)()
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).bfloat16() for _ in range(2))
    times = []
    for _ in range(20):
        start_time = now(device)
        a @ b
        times.append(now(device)[0] - start_time[0])
    rate = 2 * MATRIX_SIZE**3 / statistics.median(times)
    flops = counter.get_total_flops()
    return {
        "operations_of_a_step": flops,
        "matrix_products_a_second": rate,
        **{
            name: flops / found[name]["median_seconds"] / rate for name in ("ours", "ours_compiled")
        },
    }


def trained(model: nn.Module) -> int:
    """Return how many numbers learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def write(name: str, row: dict[str, Any], path: Path, device: torch.device) -> None:
    """Put a row into the result file, beside those of other rows and devices."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    row["machine"] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "card": torch.cuda.get_device_name() if device.type == "cuda" else None,
    }
    row["packages"] = {package: version(package) for package in PACKAGES}
    found["rows"][f"{name} on {'a card' if device.type == 'cuda' else 'CPU'}"] = row
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """Return the processor's name and generation where the system has them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name'].strip()}, family{facts['cpu family']}, model{facts['model']}"


if __name__ == "__main__":
    main()
