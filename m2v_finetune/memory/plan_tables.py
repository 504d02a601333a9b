"""Human-readable tables of a memory plan."""

from typing import Any

from rich.console import Group
from rich.table import Table

from m2v_finetune.memory.counting import PARTS, Part
from m2v_finetune.memory.plan import MemoryPlan
from m2v_finetune.memory.run_memory import Split, spare_bytes
from m2v_finetune.training.sizes import gigabytes

MEANING: dict[Part, str] = {
    "weights": "parameters and buffers, in float32",
    "gradients": "of trainable parameters, in float32",
    "optimizer": "moments and other state of the optimizer",
    "activations": "tensors saved for the backward pass, with windows and half-precision weights",
    "workspace": "other tensors: intermediate results, recomputed layers, cuBLAS",
}


def show_plan(plan: MemoryPlan, *, assumed: str = "") -> Group:
    """Return the plan as tables and sentences.

    If nothing fits, `MemoryPlan.refusal` has the reason.
    """
    machine = plan.machine
    split, peak = plan.chosen or plan.configured, plan.chosen_peak or plan.peak
    columns = {f"{split.batch_size} x {split.accumulation}": peak}
    if split != plan.configured:
        configured = plan.configured
        columns = {
            f"settings: {configured.batch_size} x {configured.accumulation}": plan.peak,
            **{f"fits: {name}": value for name, value in columns.items()},
        }
    table = Table(title="Peak memory of a step, windows x accumulation", title_justify="left")
    table.add_column("part")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("content")
    for part in PARTS:
        table.add_row(part, *(gigabytes(peak[part]) for peak in columns.values()), MEANING[part])
    table.add_section()
    table.add_row(
        "peak", *(gigabytes(sum(peak.values())) for peak in columns.values()), "largest sum"
    )
    lines = [
        f"Counted for {'a CUDA GPU' if machine.on_gpu else 'a CPU'} in "
        f"{'float32' if machine.precision == 'no' else machine.precision}.{assumed}",
    ]
    if plan.eval_peak is not None:
        peak_bytes = sum(plan.eval_peak.values())
        lines.append(
            f"Evaluation with a batch size of {plan.eval_batch_size} takes {gigabytes(peak_bytes)}."
        )
    if plan.chosen is not None:
        lines.append(_verdict(plan, plan.chosen))
    parts: list[Any] = [table, *lines]
    if plan.changes:
        parts.append(_changes_table(plan))
    return Group(*parts)


def _verdict(plan: MemoryPlan, chosen: Split) -> str:
    assert plan.memory_bytes is not None
    spare = gigabytes(spare_bytes(plan.peak_bytes, plan.machine))
    total = chosen.batch_size * chosen.accumulation * plan.machine.num_processes
    return (
        f"These settings fit in {gigabytes(plan.memory_bytes)}, with {spare} reserved: "
        f"--training.per_device_batch_size {chosen.batch_size} "
        f"--training.gradient_accumulation_steps {chosen.accumulation} "
        f"--training.eval_batch_size {plan.eval_batch_size} (the total batch of {total} stays)."
    )


def _changes_table(plan: MemoryPlan) -> Table:
    table = Table(title="Settings that take less, with a batch of one window", title_justify="left")
    table.add_column("setting")
    table.add_column("saves", justify="right")
    table.add_column("peak", justify="right")
    table.add_column("fits")
    for change in (*plan.changes, *([plan.combined] if plan.combined else [])):
        table.add_row(
            change.setting,
            gigabytes(change.saved_bytes),
            gigabytes(change.peak_bytes),
            "yes" if plan.has_memory(change.peak_bytes) else "no",
        )
    return table
