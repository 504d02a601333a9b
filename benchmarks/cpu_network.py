"""Time the hidden states of a network on a CPU beside transformers' own class, in float32 and bfloat16.

    python benchmarks/cpu_network.py

writes benchmarks/results/cpu_network.json, beside the results of other processors. Both sides have the same
RANDOM weights and windows, in turns; bfloat16 is measured where the CPU has units for it. Seconds are those
of the clock: the machine should be idle. `speedup` is the ratio of the medians to transformers in float32,
`speedup_of_fastest` that of the minima.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_step import processor
from transformers import Data2VecAudioModel, HubertModel

from m2v_finetune.backbones import build_architecture

RESULT = Path(__file__).parent / "results" / "cpu_network.json"
NETWORKS = {"music2vec-v1": (Data2VecAudioModel, 1.3), "MERT-v1-95M": (HubertModel, 1.2)}
"""Class of transformers, and the goal without matrix units for bfloat16."""


def in_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:
                found[name].append(time.perf_counter() - start)
    return found


def measure(name: str, windows: int, rounds: int, *, in_bfloat16: bool) -> dict[str, object]:
    """Measure a network and its conv encoder."""
    network_class, goal = NETWORKS[name]
    torch.manual_seed(0)
    backbone = build_architecture(name).eval()
    theirs = network_class(backbone.network.config).eval()
    theirs.load_state_dict(backbone.network.state_dict(), strict=False)
    waveforms = torch.randn(windows, 5 * backbone.sample_rate)

    def largest_difference(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max())

    def bfloat16(run: Callable[[], object]) -> Callable[[], object]:
        def run_in_bfloat16() -> object:
            with torch.autocast("cpu", torch.bfloat16):
                return run()

        return run_in_bfloat16

    sides: dict[str, Callable[[], object]] = {
        "transformers": lambda: theirs(waveforms, output_hidden_states=True),
        "this program": lambda: backbone(waveforms),
        "conv encoder, transformers": lambda: theirs.feature_extractor(waveforms),
        "conv encoder, this program": lambda: backbone.encode(waveforms),
    }
    if in_bfloat16:
        for name_of_side in tuple(sides):
            sides[f"{name_of_side}, bfloat16"] = bfloat16(sides[name_of_side])
    with torch.inference_mode():
        states = theirs(waveforms[:1], output_hidden_states=True).hidden_states
        difference = max(map(largest_difference, states, backbone(waveforms[:1])))
        assert difference < 1e-4, f"the two sides are not the same network: {difference}"
        seconds = in_turns(sides, rounds)
    row: dict[str, object] = {
        "network": f"{name}, RANDOM WEIGHTS",
        "windows": f"{windows} of 5 s at {backbone.sample_rate} Hz",
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


def main() -> None:
    """Measure each network with one thread and with all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8, help="windows of 5 s")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    capabilities = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        load = os.getloadavg()[0]
        rows = [
            measure(name, arguments.windows, arguments.rounds, in_bfloat16=bool(units))
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
