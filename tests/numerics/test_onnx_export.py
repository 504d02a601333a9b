"""ONNX Runtime computes what torch computes, for windows and for songs."""

import csv
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import soxr
import torch
from mir_eval.beat import f_measure
from support.messages import raises
from support.models import PUBLISHED, SAMPLES

from m2v_finetune import threads
from m2v_finetune.calibration import PlattScaling
from m2v_finetune.cli import main as m2v
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.decoding.beats import decode_beats
from m2v_finetune.exporting import OnnxModel, export_onnx
from m2v_finetune.exporting.onnx_file import INPUT
from m2v_finetune.model import SECTION, TaskModel
from m2v_finetune.model.novelty import Novelty
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.tagging import Tagging

pytestmark = pytest.mark.slow

EXPORTED = [name for name in TASKS if name != "separation"]
BATCHES, LENGTHS = (1, 3, 40), (4000, 8000, 12345)
"""Windows of a batch, and their samples: half, one and more than a window of the models here."""
REPOSITORY = Path(__file__).parents[2]


def make_task(name: str) -> Any:
    if name == "tagging":
        return Tagging(
            labels=("drums", "flute", "minor"),
            label_column="tags",
            calibration=PlattScaling(slopes=(0.5, 2.0, 1.0), intercepts=(0.3, -1.0, 0.0)),
        )
    if name == "emotion":
        return Emotion(labels=("arousal", "valence"), means=(5.0, -2.0), stds=(0.5, 3.0))
    return TASKS[name].from_settings(TASKS[name].settings_class())


def build(
    name: str,
    *,
    source: str = "random-small",
    method: Any = "probe",
    num_layers: int | None = None,
    **head: Any,
) -> TaskModel:
    """Return a model with random weights, whose adapters and standardisation are not the identity."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=make_task(name),
        backbone=BackboneConfig(source=source, num_layers=num_layers),
        head=HeadConfig(**head),
        tuning=TuningConfig(method=method),
        window_seconds=0.5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        if hasattr(model.head, "standardization"):
            model.head.standardization.mean.normal_()
            model.head.standardization.std.uniform_(0.5, 2.0)
    return model.eval()


def largest_difference(model: TaskModel, file: Path) -> float:
    """Return the largest difference of ONNX Runtime from torch, at all batches and lengths."""
    session, largest = OnnxModel(file).session, 0.0
    for batch in BATCHES:
        for samples in LENGTHS:
            waveforms = 0.1 * torch.randn(batch, samples) + 0.02
            with torch.no_grad():
                expected = model(waveforms).numpy()
            found = session.run(None, {INPUT: waveforms.numpy()})[0]
            assert found.shape == expected.shape
            largest = max(largest, float(np.abs(found - expected).max()))
    return largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger and a beat tracker as model folders and ONNX files, and a song at their rate."""
    root = tmp_path_factory.mktemp("onnx")
    for name, method in (("tagging", "lora"), ("beats", "adapter")):
        model = build(name, method=method, num_layers=1)
        if name == "beats":
            with torch.no_grad():  # so that random weights find beats
                model.head.layers[-1].bias.fill_(0.0)
        else:
            model.novelty = Novelty.fit(torch.randn(60, model.backbone.hidden_size))
        model.save_pretrained(root / name)
        export_onnx(model, root / f"{name}.onnx")
    generator = np.random.default_rng(0)
    song = 0.1 * generator.standard_normal(16000 * 4 + 1234) * (np.sin(np.arange(65234) / 1273) > 0)
    soundfile.write(root / "song.wav", song, 16000, subtype="FLOAT")
    return root


@pytest.mark.parametrize("name", ["tagging", "beats"])
def test_onnx_runtime_equals_torch(name: str, folder: Path, record_property: Any) -> None:
    largest = largest_difference(TaskModel.from_pretrained(folder / name), folder / f"{name}.onnx")
    record_property(f"largest difference of ONNX Runtime, {name}", largest)
    assert largest < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", EXPORTED)
def test_every_task(name: str, tmp_path: Path) -> None:
    model = build(name)
    export_onnx(model, tmp_path / "model.onnx")
    assert largest_difference(model, tmp_path / "model.onnx") < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("checkpoint", PUBLISHED)
@pytest.mark.parametrize("pooling", ["attention", "mean_std"])
def test_every_checkpoint(checkpoint: str, pooling: str, shared_dir: Path, tmp_path: Path) -> None:
    source = str(shared_dir / "golden" / "checkpoints" / checkpoint)
    model = build("tagging", source=source, method="ssf", pooling=pooling)
    export_onnx(model, tmp_path / "model.onnx")
    assert largest_difference(model, tmp_path / "model.onnx") < 1e-4


def test_onnx_runtime_equals_torch_where_a_window_is_mostly_zeros(tmp_path: Path) -> None:
    """A head that is standardised by its training windows enlarges each difference, as trained ones do."""
    model = build("genre", standardize=True, kind="linear")
    samples = 8 * SAMPLES  # sums over long windows lose most
    inputs: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        model.head.standardization.register_forward_pre_hook(
            lambda _, given: inputs.append(given[0])
        ),
    ):
        model(0.1 * torch.randn(20, samples))
    for statistic, value in (("mean", inputs[0].mean(0)), ("std", inputs[0].std(0))):
        getattr(model.head.standardization, statistic).copy_(value)
    export_onnx(model, tmp_path / "model.onnx")
    exported = OnnxModel(tmp_path / "model.onnx")
    waveforms = 0.1 * torch.randn(8, samples)
    for row in range(8):
        waveforms[row, samples // 2**row :] = 0
    with torch.no_grad():
        expected = model(waveforms)
    assert expected.std() > 5  # far from the training windows
    torch.testing.assert_close(exported(waveforms), expected, rtol=0, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("source", ["random-small", "filterbank-small"])
def test_float16_is_near(source: str, tmp_path: Path) -> None:
    model = build("tagging", source=source)
    export_onnx(model, tmp_path / "half.onnx", precision="float16")
    export_onnx(model, tmp_path / "whole.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    assert largest_difference(model, tmp_path / "half.onnx") < 0.05
    samples, rate = soundfile.read(QUICKSTART_DIR / "audio" / "test-000.ogg", dtype="float32")
    samples = soxr.resample(samples, rate, model.backbone.sample_rate)[: model.window_samples]
    clip = torch.from_numpy(samples)[None]
    half = OnnxModel(tmp_path / "half.onnx")
    for level_db, limit in ((0, 0.05), (-20, 0.05), (-40, 0.05), (-60, 0.2)):
        quiet = clip * 10 ** (level_db / 20)
        with torch.no_grad():
            assert (half(quiet) - model(quiet)).abs().max() < limit, level_db


def test_float16_has_the_same_unknown_tracks(folder: Path, tmp_path: Path) -> None:
    model = TaskModel.from_pretrained(folder / "tagging")
    export_onnx(model, tmp_path / "half.onnx", precision="float16")
    half = OnnxModel(tmp_path / "half.onnx")
    assert half.measures_novelty
    for level in (1.0, 1e-3):
        waveforms = level * 0.1 * torch.randn(3, SAMPLES)
        with torch.no_grad():
            expected = model.score(waveforms)[:, -2:]
        torch.testing.assert_close(half.score(waveforms)[:, -2:], expected, rtol=0.02, atol=0)


def with_section(proto: Any, **changes: Any) -> Any:
    """Change settings of the model in the metadata of a file."""
    [entry] = [one for one in proto.metadata_props if one.key == SECTION]
    section = json.loads(entry.value)
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if inner:
            section[outer][inner] = value
        else:
            section[outer] = value
    entry.value = json.dumps(section)
    return proto


def with_identity(proto: Any, input_name: str) -> Any:
    """Replace the network of a file by one that returns its input."""
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", "samples"])
        for name in (input_name, "logits")
    ]
    node = onnx.helper.make_node("Identity", [input_name], ["logits"])
    graph = onnx.helper.make_graph([node], "identity", values[:1], values[1:])
    changed = onnx.helper.make_model(graph, opset_imports=proto.opset_import)
    changed.ir_version = proto.ir_version
    changed.metadata_props.extend(proto.metadata_props)
    return changed


def with_rate(proto: Any) -> Any:
    [entry] = [one for one in proto.metadata_props if one.key == "sample_rate"]
    entry.value = "44100"
    return proto


def without_novelty(proto: Any) -> Any:
    proto.graph.output.pop()
    return proto


OTHER_NETWORKS = {
    "another network": lambda proto: with_section(
        with_identity(proto, "waveforms"), novelty_windows=0
    ),
    "another input": lambda proto: with_section(with_identity(proto, "x"), novelty_windows=0),
    "another task": lambda proto: with_section(
        proto, task=TASKS["beats"].from_settings(TASKS["beats"].settings_class()).to_dict()
    ),
    "other labels": lambda proto: with_section(proto, task__labels=["a", "b", "c"]),
    "a short window": lambda proto: with_section(proto, window_seconds=0.001, hop_seconds=0.001),
    "a long window": lambda proto: with_section(proto, window_seconds=1e9),
    "another rate in the section": lambda proto: with_section(proto, backbone__sample_rate=44100),
    "another rate beside the section": with_rate,
    "no novelty": without_novelty,
}


@pytest.mark.parametrize("case", OTHER_NETWORKS)
def test_a_file_whose_network_is_not_that_of_its_metadata_is_refused(
    case: str, folder: Path, tmp_path: Path
) -> None:
    proto = OTHER_NETWORKS[case](onnx.load(folder / "tagging.onnx"))
    (tmp_path / "changed.onnx").write_bytes(proto.SerializeToString())
    with raises("onnx-unreadable", "changed.onnx"):
        OnnxModel(tmp_path / "changed.onnx")


def run_m2v(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        m2v([str(word) for word in words])
    return int(ended.value.code or 0)


def rows_of(words: list[object], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Run a command, and return the rows of the CSV that it prints."""
    assert run_m2v(*words) == 0
    return list(csv.reader(capsys.readouterr().out.splitlines()))


def test_predict_command_gives_the_same_labels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [folder / "song.wav", "--format", "csv", "--timeline"]
    header, *by_torch = rows_of(["predict", folder / "tagging", *words], capsys)
    onnx_words = ["predict", folder / "tagging.onnx", *words, "--runtime", "onnx"]
    onnx_header, *by_onnx = rows_of(onnx_words, capsys)
    assert onnx_header == header
    assert header == ["path", "start_seconds", "end_seconds", *make_task("tagging").labels]
    assert len(by_torch) == 9  # windows of half a second
    for first, second in zip(by_torch, by_onnx, strict=True):
        assert second[:3] == first[:3]
        scores = [np.array(one[3:], dtype=float) for one in (first, second)]
        np.testing.assert_allclose(*scores, atol=2e-4)


def test_predict_of_files_and_arrays(folder: Path) -> None:
    by_torch, by_onnx = (
        TaskModel.from_pretrained(folder / "beats"),
        OnnxModel(folder / "beats.onnx"),
    )
    expected = by_torch.predict(folder / "song.wav")
    assert len(expected.times_seconds) > 3
    samples, rate = soundfile.read(folder / "song.wav", dtype="float32")
    [of_many] = by_onnx.predict_many([folder / "song.wav"], show_progress=False)
    for found in (of_many, by_onnx.predict(samples, sample_rate=rate)):
        np.testing.assert_allclose(found.times_seconds, expected.times_seconds, atol=1e-3)
        np.testing.assert_allclose(found.activations, expected.activations, atol=1e-4)


def test_a_file_is_computed_one_batch_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_is_chosen", lambda: False)  # these tests set a number of threads
    monkeypatch.setattr(threads, "_cores", lambda: 4)
    # ONNX Runtime has threads of its own, whatever the size of the network.
    assert threads.batches_at_once(OnnxModel(folder / "tagging.onnx")) == 1
    assert threads.batches_at_once(TaskModel.from_pretrained(folder / "tagging")) == 4


WITHOUT = """
import runpy, sys
for name in sys.argv[1].split():
    sys.modules[name] = None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BLOCKED = "torch transformers peft huggingface_hub soxr scipy librosa m2v_finetune"
"""What the examples must not import."""


def example_process(name: str, model: Path, song: Path) -> "subprocess.CompletedProcess[str]":
    """Run an example in a process that cannot import more than the example names."""
    script = REPOSITORY / "examples" / f"onnx_{name}.py"
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, BLOCKED, script, model, song],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


def run_example(name: str, model: Path, song: Path) -> list[list[str]]:
    """Return the words of the lines of an example."""
    done = example_process(name, model, song)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def start_of_song(folder: Path, num_samples: int, to: Path) -> Path:
    samples, rate = soundfile.read(folder / "song.wav", dtype="float32")
    soundfile.write(to / f"{num_samples}.wav", samples[:num_samples], rate, subtype="FLOAT")
    return to / f"{num_samples}.wav"


def with_metadata(file: Path, changed: Path, **values: str) -> Path:
    """Write an ONNX file with other metadata."""
    proto = onnx.load(file)
    for one in proto.metadata_props:
        one.value = values.get(one.key, one.value)
    onnx.save(proto, changed)
    return changed


def test_novelty_is_the_same(folder: Path) -> None:
    expected = TaskModel.from_pretrained(folder / "tagging").predict(folder / "song.wav").distances
    found = OnnxModel(folder / "tagging.onnx").predict(folder / "song.wav").distances
    assert len(expected) == 2
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_example_of_tagging(is_calibrated: bool, folder: Path, tmp_path: Path) -> None:
    model, file = TaskModel.from_pretrained(folder / "tagging"), folder / "tagging.onnx"
    if not is_calibrated:
        model.task = replace(model.task, calibration=None)
        file = with_metadata(file, tmp_path / "plain.onnx", calibration="null")
    scores = model.predict(folder / "song.wav").scores
    lines = run_example("tagging", file, folder / "song.wav")
    assert {label: float(score) for score, label in lines} == pytest.approx(scores, abs=2e-4)


@pytest.mark.parametrize(
    ("window", "hop", "num_samples"),
    [(0.5, 0.25, 16000 * 4 + 1234), (2.0, 2.0, 16000 * 4 + 1234), (2.0, 1.0, 12345)],
    ids=["overlap", "side by side", "shorter than a window"],
)
def test_example_of_beats(
    window: float, hop: float, num_samples: int, folder: Path, tmp_path: Path
) -> None:
    model = TaskModel.from_pretrained(folder / "beats")
    model.window_seconds, model.hop_seconds = window, hop
    samples = {"window_samples": model.window_samples, "hop_samples": model.hop_samples}
    values = {key: str(value) for key, value in samples.items()}
    file = with_metadata(folder / "beats.onnx", tmp_path / "beats.onnx", **values)
    song = start_of_song(folder, num_samples, tmp_path)
    expected = model.predict(song)
    times, positions = np.array(run_example("beats", file, song), dtype=float).T
    assert f_measure(expected.times_seconds, times) > 0.9
    assert set(np.diff(positions)) <= {1, -2, -3}


def test_the_decoder_of_the_example_finds_annotated_beats() -> None:
    """From probabilities with noise, as often as the package's decoder, within a hundredth."""
    decode = runpy.run_path(str(REPOSITORY / "examples" / "onnx_beats.py"))["decode"]
    rng = np.random.default_rng(0)
    times = np.arange(0.0125, 8, 0.02)
    steps = np.arange(times[0], times[-1], 0.01)
    scores = []
    for file in sorted((QUICKSTART_DIR / "annotations").glob("*.beats"))[:20]:
        beats, positions = np.loadtxt(file).T
        rows = [
            np.exp(-0.5 * ((times[:, None] - one) / 0.02) ** 2).max(axis=1) * rng.uniform(0.5, 1)
            for one in (beats, beats[positions == 1])
        ]
        rows = [np.clip(row + 0.3 * rng.random(len(times)), 0, 1) for row in rows]
        found, counted = decode(*(np.interp(steps, times, row) for row in rows))
        expected, expected_counts = decode_beats(*rows, times, Fraction(50))
        downbeats = beats[positions == 1]
        scores.append(
            [
                f_measure(beats, steps[found]) - f_measure(beats, expected),
                f_measure(downbeats, steps[found][counted == 1])
                - f_measure(downbeats, expected[expected_counts == 1]),
                f_measure(beats, steps[found]),
            ]
        )
    beat, downbeat, level = np.mean(scores, axis=0)
    assert min(beat, downbeat) > -0.01
    assert level > 0.95


@pytest.mark.parametrize(("name", "other"), [("tagging", "beats"), ("beats", "tagging")])
def test_examples_refuse_other_tasks_and_empty_songs(
    name: str, other: str, folder: Path, tmp_path: Path
) -> None:
    of_other_task = example_process(name, folder / f"{other}.onnx", folder / "song.wav")
    empty = start_of_song(folder, 0, tmp_path)
    without_samples = example_process(name, folder / f"{name}.onnx", empty)
    assert (of_other_task.returncode, without_samples.returncode) == (1, 1)
    line = f"{folder / other}.onnx is a model of {other}. Give a model of {name}."
    assert of_other_task.stderr.splitlines() == [line]
    assert without_samples.stderr.splitlines() == [f"{empty} has no samples."]


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TaskModel.from_pretrained(folder / "tagging")
    with raises("export-exists", "tagging.onnx"):
        export_onnx(model, folder / "tagging.onnx")
    with raises("export-precision", "'int8'", "float32, float16"):
        export_onnx(model, tmp_path / "new.onnx", precision="int8")
    with raises("model-missing", "m2v export onnx"):
        OnnxModel(folder / "tagging")
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with raises("output-not-writable", "/proc/x"):
        export_onnx(model, "/proc/x/y.onnx")
    with raises("onnx-unreadable", "other.onnx"):
        OnnxModel(tmp_path / "other.onnx")
    with raises("model-missing"):
        OnnxModel(tmp_path / "none.onnx")
    loaded = OnnxModel(folder / "tagging.onnx")
    calls = [
        lambda: loaded.embed("x.wav"),
        lambda: loaded.save_pretrained(tmp_path),
        loaded.to_transformers,
        loaded.merge_and_unload,
        loaded.card_data,
        loaded.num_parameters,
        lambda: OnnxModel.from_pretrained(folder / "tagging"),
        lambda: setattr(loaded, "precision", "bfloat16"),
    ]
    for call in calls:
        with raises("onnx-predicts-only"):
            call()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with raises("extra-missing", "m2v-finetune[onnx]"):
        export_onnx(model, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_separation_is_refused_with_the_page_that_has_the_reason(tmp_path: Path) -> None:
    with raises("export-separation", "docs/exporting.md"):
        export_onnx(build("separation"), tmp_path / "new.onnx")
