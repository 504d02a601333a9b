"""Is int8 faster in prediction? Processor seconds of a window, and what changes, beside float32 and bfloat16.

    python benchmarks/int8.py [--networks BACKBONE ...] [--runs RUN_FOLDER ...] [--without-onnx]

Linear layers are quantised dynamically: by PyTorch (`torch.ao.quantization.quantize_dynamic`), and by ONNX
Runtime in an exported file. All ways have one thread and take turns; windows of 5 s are noise, networks have
random weights. Processor seconds, as other programs change them less. Finished runs, such as of a quickstart,
give the change of their metric on the test tracks. Written to benchmarks/results/int8.json.
"""

import argparse
import copy
import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import yaml
from onnx_speed import timed
from onnxruntime.quantization import QuantType, quantize_dynamic
from precision import metric
from songs import spread
from torch import Tensor, nn
from training_step import processor

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.checking import check_tracks
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.exporting import OnnxModel, export_onnx
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging

RESULT = Path(__file__).parent / "results" / "int8.json"
SECONDS = 5.0


def main() -> None:
    """Measure, and write the result beside what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=["filterbank-small", "music2vec-v1"])
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="folders of finished runs")
    parser.add_argument("--without-onnx", action="store_true", help="measure PyTorch alone")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"networks": {}, "tasks": {}}
    for source in arguments.networks:
        row = measure(source, arguments.rounds, with_onnx=not arguments.without_onnx)
        found["networks"].setdefault(source, {}).update(row)
        write(found)
    for run in arguments.runs:
        found["tasks"] |= compare(run)
        write(found)


def write(found: dict[str, Any]) -> None:
    """Write the result."""
    found |= {
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "machine": f"{platform.machine()}, {torch.cpu.get_capabilities()['cpu_name']}, "
        f"{os.cpu_count()} cores, {processor()}",
        "vnni": bool(torch.cpu.get_capabilities().get("avx512_vnni")),
        "load_average": os.getloadavg(),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def in_int8(model: TaskModel) -> TaskModel:
    """Return a copy of a model whose linear layers compute in int8."""
    quantised: TaskModel = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
    )
    return quantised


def in_bfloat16(model: TaskModel, waveforms: Tensor) -> Tensor:
    """Return the logits of a model in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        logits: Tensor = model(waveforms)
    return logits.float()


def measure(source: str, rounds: int, *, with_onnx: bool) -> dict[str, Any]:
    """Return processor seconds of a window, and the relative difference of its logits."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Tagging(labels=tuple(f"tag {n}" for n in range(50)), label_column="tags"),
        backbone=BackboneConfig(source=source),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=SECONDS,
        with_weights=False,
    ).eval()
    waveforms = 0.1 * torch.randn(1, model.window_samples)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "torch": model,
        "torch bfloat16": partial(in_bfloat16, model),
        "torch int8": in_int8(model),
    }
    with tempfile.TemporaryDirectory() as folder:
        if with_onnx:
            file, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
            export_onnx(model, file)
            quantize_dynamic(file, small, weight_type=QuantType.QInt8, per_channel=True)
            ways |= {"ONNX Runtime": OnnxModel(file), "ONNX Runtime int8": OnnxModel(small)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        with torch.inference_mode():
            logits = {name: way(waveforms) for name, way in ways.items()}
            for _ in range(rounds):
                for name, way in ways.items():
                    times[name].append(timed(lambda way=way: way(waveforms)))
    exact = logits["torch"]
    row = {
        name: {
            "processor_seconds": spread(own),
            "relative_difference": float((logits[name] - exact).norm() / exact.norm()),
        }
        for name, own in times.items()
    }
    print(source, json.dumps(row), flush=True)
    return row


def compare(run: Path) -> dict[str, Any]:
    """Return the headline metric of a run's model on its test tracks, in float32 and int8."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    model = TaskModel.from_pretrained(run / "model")
    tracks, _ = load_tracks(settings["data"]["source"], label_column=model.task.label_column)
    test, _ = check_tracks([t for t in tracks if t.split == "test"], on_bad_track="stop")
    row = {
        "metric": model.task.selection_metric,
        "backbone": model.backbone.source,
        "float32": metric(model, test),
        "int8": metric(in_int8(model), test),
        "test_tracks": len(test),
    }
    print(run, row, flush=True)
    return {model.task.name: row}


if __name__ == "__main__":
    main()
