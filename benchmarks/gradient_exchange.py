"""Time the exchange of gradients between two processes: as it is, in buckets, and within the backward pass.

    python benchmarks/gradient_exchange.py

Two processes on the loopback, one thread each, train all weights of a network of music2vec's size (random
weights) on noise, in bfloat16 where the CPU is fast in it. Each round takes one step by each way, in turns:

- after the backward pass, each gradient in place (`step.sum_gradients`);
- after the backward pass, in buckets of 25 MB, which are copied into and out of;
- within the backward pass, in the same buckets, by DistributedDataParallel of PyTorch.

The last cannot keep the agreement about memory: a process that runs out of memory in its backward pass leaves
the other one waiting. Median, quartiles and range of seconds go to benchmarks/results/gradient_exchange.json.
"""

import argparse
import copy
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from songs import environment, spread
from torch import Tensor, nn
from training_step import processor

from m2v_finetune.allocation import keep_freed_memory
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.cpu_precision import has_fast_bfloat16
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.step import sum_gradients

RESULT = Path(__file__).parent / "results" / "gradient_exchange.json"
NUM_PROCESSES = 2
BUCKET_BYTES = 25 * 2**20  # the default of DistributedDataParallel


def build(window_seconds: float) -> TaskModel:
    """Return a model of music2vec's size with random weights, all trainable."""
    torch.manual_seed(0)
    return TaskModel.build(
        task=Genre(labels=tuple("abcdef"), label_column="genre"),
        backbone=BackboneConfig(source="music2vec-v1"),
        head=HeadConfig(dropout=0.0),
        tuning=TuningConfig(method="full", train_conv_encoder=True),
        window_seconds=window_seconds,
        with_weights=False,
    ).train()


def sum_in_buckets(model: nn.Module) -> None:
    """Sum the gradients over all processes by copies of several of them."""
    buckets: list[list[Tensor]] = [[]]
    size = 0
    for gradient in (one.grad for one in model.parameters() if one.grad is not None):
        if size + gradient.nbytes > BUCKET_BYTES and buckets[-1]:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.nbytes
    flat = [torch.cat([one.flatten() for one in bucket]) for bucket in buckets]
    for exchange in [dist.all_reduce(one, async_op=True) for one in flat]:
        exchange.wait()
    for bucket, one in zip(buckets, flat, strict=True):
        parts = one.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def work(rank: int, port: int, arguments: argparse.Namespace) -> None:
    """Take the steps of one process; the first writes the result."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))  # as every run does
    dist.init_process_group("gloo", rank=rank, world_size=NUM_PROCESSES)
    model = build(arguments.seconds)
    # A copy, as its hooks would exchange gradients in all backward passes.
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model), bucket_cap_mb=25)
    waveforms = torch.randn(arguments.windows, model.window_samples)
    targets = torch.zeros(arguments.windows, dtype=torch.long)

    def step(exchange: Callable[[nn.Module], None] | None) -> tuple[float, float]:
        dist.barrier()
        start = time.perf_counter()
        module = wrapped if exchange is None else model
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            loss = model.task.loss(module(waveforms), targets)
        loss.backward()
        dist.barrier()  # waits for the slower process, and is part of the step
        passed = time.perf_counter()
        if exchange is not None:
            exchange(model)
        end = time.perf_counter()
        module.zero_grad()
        return end - start, end - passed

    ways: dict[str, Callable[[nn.Module], None] | None] = {
        "each gradient, after the backward pass": sum_gradients,
        "buckets, after the backward pass": sum_in_buckets,
        "buckets, within the backward pass": None,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, exchange in ways.items():
            seconds = step(exchange)
            if number:  # the first round allocates
                taken[name].append(seconds)
        if rank == 0:
            print(number, {name: steps[-1:] for name, steps in taken.items()}, flush=True)
    if rank == 0:
        result: dict[str, Any] = {
            "windows": arguments.windows,
            "window_seconds": arguments.seconds,
            "processor": processor(),
            "precision": "bfloat16" if has_fast_bfloat16() else "float32",
            "gradient_bytes": sum(
                4 * one.numel() for one in model.parameters() if one.requires_grad
            ),
            "step_seconds": {
                name: spread([step for step, _ in steps]) for name, steps in taken.items()
            },
            "exchange_seconds": {
                name: spread([exchange for _, exchange in steps])
                for name, steps in taken.items()
                if ways[name] is not None
            },
            "environment": environment(),
        }
        arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Start the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=2, help="of a step (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of a window (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, arguments), nprocs=NUM_PROCESSES)


if __name__ == "__main__":
    main()
