"""bfloat16 on a CPU: chosen where it is fast, visible, and a setting of predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from support.messages import raises
from support.models import SAMPLES, build_tagger

from m2v_finetune import cli, cpu_precision
from m2v_finetune.catalogue.predictions import NamedModel, Predictions
from m2v_finetune.cpu_precision import has_fast_bfloat16, inference_precision
from m2v_finetune.training.summary import precision_note

CPU = torch.device("cpu")
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "precision.json"
WAVE = np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLES).astype(np.float32)


XEON, EPYC = "Intel(R) Xeon(R) Processor", "AMD EPYC"
CPUS = {
    "AVX2": (EPYC, ()),
    "Zen 3": ("AMD EPYC-Milan Processor", ()),
    "Xeon": (XEON, ("avx512_bf16",)),
    "AMX": (XEON, ("avx512_bf16", "amx_bf16")),
    "Zen 4": ("AMD Ryzen 9 7950X 16-Core Processor", ("avx512_bf16",)),
    "Zen 5": (EPYC, ("avx512_bf16", "avx512_vp2intersect")),
}
"""Name and capabilities of CPUs, as torch reports them."""


@pytest.fixture(params=CPUS)
def cpu(request, monkeypatch):
    """Name of the CPU that torch reports."""
    name, capabilities = CPUS[request.param]
    found = {"avx2": True, "cpu_name": name, **dict.fromkeys(capabilities, True)}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    return request.param


def scores(model):
    return np.array(list(model.predict(WAVE, sample_rate=16000).scores.values()))


def test_the_cpu_decides_and_the_run_summary_names_the_reason(cpu):
    is_fast = cpu in ("AMX", "Zen 4", "Zen 5")
    assert has_fast_bfloat16() == is_fast
    for setting, task, device, chosen in (
        ("auto", "tagging", CPU, "bfloat16" if is_fast else "float32"),
        ("auto", "no-such-task", CPU, "float32"),
        ("auto", "tagging", torch.device("cuda"), "float32"),
        ("float32", "tagging", CPU, "float32"),
        ("bfloat16", "no-such-task", CPU, "bfloat16"),
    ):
        assert inference_precision(setting, task=task, device=device) == chosen
    reason = "with" if is_fast else "without"
    assert precision_note(Accelerator(cpu=True)) == f"float32 (CPU {reason} fast bfloat16)"


def test_instructions_that_pytorch_does_not_use_do_not_count(cpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not has_fast_bfloat16()


def test_the_tasks_are_those_within_the_bound():
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    within = {
        name for name, row in found["tasks"].items() if abs(row["difference"]) <= found["bound"]
    }
    assert within == cpu_precision.TASKS


def test_predictions_in_bfloat16_are_close_and_autocast_of_the_caller_counts():
    model = build_tagger(method="probe").eval()
    exact = scores(model)
    with torch.autocast("cpu", torch.bfloat16):
        of_caller = scores(model)
    model.precision = "bfloat16"
    rounded = scores(model)
    assert np.array_equal(rounded, of_caller)
    difference = np.abs(rounded - exact).max()
    assert 0 < difference < 0.01
    with raises("precision-unknown", "'fp32'", "bfloat16"):
        model.precision = "fp32"
    assert np.array_equal(scores(model), rounded)


def test_a_table_computes_in_the_precision_and_is_of_it():
    model = build_tagger(method="probe").eval()
    window = torch.from_numpy(WAVE[None, :SAMPLES])
    tables = {}
    for precision in ("float32", "bfloat16"):
        model.precision = precision
        tables[precision] = Predictions([NamedModel(name="m", source="m", model=model)])
        with torch.inference_mode():
            [(output,)] = [one.compute(window) for one in tables[precision].passes]
            with model.autocast():
                assert torch.equal(output, model.score(window))
    assert tables["float32"].identity != tables["bfloat16"].identity


@pytest.mark.parametrize("cpu", ["Zen 5"], indirect=True)
def test_the_command_reports_that_it_rounds(cpu, tmp_path, capsys):
    build_tagger(method="probe").save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "song.wav", WAVE, 16000)

    def predict(*options):
        words = ["predict", tmp_path / "model", tmp_path / "song.wav", "--format", "json", *options]
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, words)])
        assert ended.value.code == 0
        stdout, stderr = capsys.readouterr()
        return json.loads(stdout)["scores"], stderr

    by_default, said = predict()
    assert "bfloat16" in said
    assert "fast on this CPU" in said
    rounded, said = predict("--precision", "bfloat16")
    assert rounded == by_default
    assert "bfloat16" in said
    assert "fast on this CPU" not in said
    exact, said = predict("--precision", "float32")
    assert exact != by_default
    assert "bfloat16" not in said


def test_an_onnx_file_has_its_precision():
    words = ["predict", "x.onnx", "song.wav", "--runtime", "onnx", "--precision", "bfloat16"]
    arguments = cli.build_parser().parse_args([*words, "--on-bad-file", "skip"])
    with raises("settings-conflict", "bfloat16", "float16"):
        arguments.command(arguments)
