"""How fast is ONNX Runtime beside torch? CPU seconds of one thread for a window, waveform to logits.

    python benchmarks/onnx_speed.py [BACKBONE ...]

writes benchmarks/results/onnx_speed.json and prints a table. A tagger with random weights and the layout of
the backbone is exported in float32; windows of 5 s are noise. Both libraries have one thread and take turns.
CPU seconds, not those of the clock, so that other programs on the machine matter less; the median of the
rounds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.exporting import OnnxModel, export_onnx
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging

RESULT = Path(__file__).parent / "results" / "onnx_speed.json"
BATCHES = (1, 8)
ROUNDS = 5


def main() -> None:
    """Measure the backbones of the command line, and print all that were measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbones", nargs="*", default=["filterbank-small"])
    torch.set_num_threads(1)
    for source in parser.parse_args().backbones:
        rows = measure(source)
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"backbones": {}}
        found["backbones"][source] = rows
        found |= {
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(RESULT.read_text())["backbones"]))


def measure(source: str) -> dict[str, Any]:
    """Return the seconds of each batch size, and those of the export."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Tagging(labels=tuple(f"tag {n}" for n in range(50)), label_column="tags"),
        backbone=BackboneConfig(source=source),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=5.0,
        with_weights=False,
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        start = time.process_time()
        export_onnx(model, file)
        seconds = time.process_time() - start
        loaded = OnnxModel(file)
        rows = {}
        for batch in BATCHES:
            waveforms = 0.1 * torch.randn(batch, model.window_samples)
            with torch.inference_mode():
                torch.testing.assert_close(
                    loaded(waveforms), model(waveforms), atol=1e-4, rtol=1e-3
                )
                torch_seconds, onnx_seconds = alternate(model, loaded, waveforms)
            rows[str(batch)] = {
                "torch_seconds": torch_seconds / batch,
                "onnx_seconds": onnx_seconds / batch,
            }
        return {"export_cpu_seconds": seconds, "file_bytes": file.stat().st_size, "batches": rows}


def alternate(*arguments: Any) -> list[float]:
    """Return the median CPU seconds of two models on the same waveforms, called in turns."""
    *models, waveforms = arguments
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for model, own in zip(models, times, strict=True):
            own.append(timed(lambda model=model: model(waveforms)))
    return [median(own) for own in times]


def timed(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def table(backbones: dict[str, Any]) -> str:
    """Return the measured values as a Markdown table."""
    lines = [
        "| backbone | windows in a batch | torch, ms a window | ONNX Runtime, ms a window | torch / ONNX |",
        "|---|---|---|---|---|",
    ]
    for source, found in backbones.items():
        for batch, row in found["batches"].items():
            one, other = (1000 * row[f"{name}_seconds"] for name in ("torch", "onnx"))
            lines.append(f"| {source} | {batch} | {one:.1f} | {other:.1f} | {one / other:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
