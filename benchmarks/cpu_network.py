"""Time the hidden states of a network on a CPU beside transformers' own class, in float32 and bfloat16.

    python benchmarks/cpu_network.py

writes benchmarks/results/cpu_network.json, beside the results of other processors. Both sides have the same
RANDOM weights and windows, in turns, each in a process of its own (own_process.py). bfloat16 is measured
where the CPU has units for it. Seconds are those of the clock: the machine should be idle. `speedup` is the
ratio of the medians to transformers in float32, `speedup_of_fastest` that of the minima.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from own_process import OwnProcess
from torch import Tensor
from training_step import processor
from transformers import Data2VecAudioModel, HubertModel

from m2v_finetune.backbones import Backbone, build_architecture

RESULT = Path(__file__).parent / "results" / "cpu_network.json"
NETWORKS = {"music2vec-v1": (Data2VecAudioModel, 1.3), "MERT-v1-95M": (HubertModel, 1.2)}
"""Class of transformers, and the goal without matrix units for bfloat16."""


def our_side(name: str, windows: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Return what this program measures."""
    backbone, waveforms = drawn(name, windows)
    return without_gradients(
        threads,
        {
            "this program": lambda: backbone(waveforms),
            "conv encoder, this program": lambda: backbone.encode(waveforms),
            "states": lambda: list(backbone(waveforms[:1])),
        },
    )


def their_side(name: str, windows: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Return what is measured of transformers."""
    backbone, waveforms = drawn(name, windows)
    config = copy.deepcopy(backbone.network.config)
    config._attn_implementation = "sdpa"  # the default of transformers
    theirs = NETWORKS[name][0](config).eval()
    theirs.load_state_dict(backbone.network.state_dict(), strict=False)
    return without_gradients(
        threads,
        {
            "transformers": lambda: theirs(waveforms, output_hidden_states=True),
            "conv encoder, transformers": lambda: theirs.feature_extractor(waveforms),
            "states": lambda: theirs(waveforms[:1], output_hidden_states=True).hidden_states,
        },
    )


def drawn(name: str, windows: int) -> tuple[Backbone, Tensor]:
    """Return a network with random weights, and windows; the same in each process."""
    torch.manual_seed(0)
    backbone = build_architecture(name).eval()
    return backbone, torch.randn(windows, 5 * backbone.sample_rate)


def without_gradients(
    threads: int, functions: dict[str, Callable[[], Any]]
) -> dict[str, Callable[[], Any]]:
    """Return functions without gradients, also in bfloat16; those of states return them."""
    torch.set_num_threads(threads)

    def run(function: Callable[[], Any], returns: bool, in_bfloat16: bool) -> Any:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16),
        ):
            found = function()
        return [state.numpy() for state in found] if returns else None

    return {
        f"{name}{', bfloat16' if in_bfloat16 else ''}": partial(
            run, function, name == "states", in_bfloat16
        )
        for name, function in functions.items()
        for in_bfloat16 in (False, True)
    }


def measure(
    name: str, windows: int, rounds: int, *, threads: int, in_bfloat16: bool
) -> dict[str, object]:
    """Measure a network and its conv encoder."""
    _, goal = NETWORKS[name]
    rate = build_architecture(name).sample_rate
    with (
        OwnProcess(our_side, name, windows, threads) as ours,
        OwnProcess(their_side, name, windows, threads, keeps_memory=False) as theirs,
    ):
        sides = {
            f"{part}{side}{precision}": process
            for precision in ("", ", bfloat16")[: 1 + in_bfloat16]
            for part in ("", "conv encoder, ")
            for side, process in (("transformers", theirs), ("this program", ours))
        }
        states = zip(ours.run("states")[2], theirs.run("states")[2], strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in states)
        assert difference < 1e-4, f"the two sides are not the same network: {difference}"
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(rounds + 1):
            for side, process in sides.items():
                elapsed, _, _ = process.run(side)
                if number:
                    seconds[side].append(elapsed)
    row: dict[str, object] = {
        "network": f"{name}, RANDOM WEIGHTS",
        "windows": f"{windows} of 5 s at {rate} Hz",
        "largest_difference_of_hidden_states": difference,
        "goal_without_units": goal,
    }
    for side, times in seconds.items():
        row[side] = {
            "median_seconds": round(statistics.median(times), 3),
            "fastest_seconds": round(min(times), 3),
            "slowest_seconds": round(max(times), 3),
        }
    for what, choose in (("speedup", statistics.median), ("speedup_of_fastest", min)):
        for part in ("", "conv encoder, "):
            for precision in ("", ", bfloat16") if in_bfloat16 else ("",):
                ratio = choose(seconds[f"{part}transformers"]) / choose(
                    seconds[f"{part}this program{precision}"]
                )
                row[f"{part}{what}{precision}"] = round(ratio, 2)
    return row


def gflops_of_products(threads: int, dtype: torch.dtype) -> float:
    """Return the rate of a matrix product of the size of a feed-forward layer, in GFLOP/s: the best of 20."""
    torch.set_num_threads(threads)
    rows, inputs, outputs = 8 * 249, 768, 3072
    left, right = torch.randn(rows, inputs).to(dtype), torch.randn(inputs, outputs).to(dtype)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return round(2 * rows * inputs * outputs / min(seconds) / 1e9)


def main() -> None:
    """Measure each network with one thread and with all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8, help="windows of 5 s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, torch.get_num_threads()}),
        help="(default: 1, and all)",
    )
    arguments = parser.parse_args()
    capabilities = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    for threads in arguments.threads:
        load = os.getloadavg()[0]
        rows = [
            measure(
                name,
                arguments.windows,
                arguments.rounds,
                threads=threads,
                in_bfloat16=bool(units),
            )
            for name in NETWORKS
        ]
        measured = {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "units_for_bfloat16": units,
            "threads": threads,
            "torch": torch.__version__,
            "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
            "rounds": arguments.rounds,
            "gflops_of_products": {
                name: gflops_of_products(threads, getattr(torch, name))
                for name in ("float32", "bfloat16")
            },
            "rows": rows,
        }
        write(measured)
        print(json.dumps(measured, indent=2))


def write(measured: dict[str, Any]) -> None:
    """Write a measurement beside those of other processors and numbers of threads."""
    machine = ("processor", "instructions", "units_for_bfloat16", "threads")
    others = [
        one
        for one in json.loads(RESULT.read_text(encoding="utf-8"))
        if any(one[key] != measured[key] for key in machine)
    ]
    RESULT.write_text(json.dumps([*others, measured], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
