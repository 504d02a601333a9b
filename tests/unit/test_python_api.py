"""A model in Python: every form of input, many files, embeddings, and what the model says of itself."""

import gc
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.messages import raises

import m2v_finetune
from m2v_finetune import TaskModel, load_backbone
from m2v_finetune.audio.decode import read_audio
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.errors import AudioError
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.clip_prediction import ClipPrediction
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.separation import Separation

RATE = 22_050
LABELS = ("calm", "fast", "wild")


def build(task=None, *, method: str = "probe", seed: int = 0) -> TaskModel:
    """A model with random weights on windows of one second."""
    torch.manual_seed(seed)
    return TaskModel.build(
        task=task or Genre(labels=LABELS, label_column="genre"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method=method),
        window_seconds=1.0,
    ).eval()


@pytest.fixture(scope="module")
def stereo() -> np.ndarray:
    """(samples, channels), 2.3 s, with another sound on each side."""
    seconds = np.arange(int(2.3 * RATE)) / RATE
    noise = np.random.default_rng(0).normal(0, 0.1, (len(seconds), 2))
    tones = np.stack([np.sin(440 * 2 * np.pi * seconds), np.sin(660 * 2 * np.pi * seconds)], axis=1)
    return (noise + 0.3 * tones).astype(np.float32)


@pytest.fixture(scope="module")
def wav(stereo: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "song.wav"
    soundfile.write(path, stereo, RATE, subtype="FLOAT")
    return path


class Decoder:
    """The parts of torchcodec's decoder in a row of datasets that stand for a mapping."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def get_all_samples(self) -> None:
        raise AssertionError("not needed")

    def __getitem__(self, key: str):
        return {"array": self.array, "sampling_rate": RATE}[key]


def at_its_middle(file: io.BytesIO) -> io.BytesIO:
    file.seek(len(file.getvalue()) // 2)
    return file


def forms(stereo: np.ndarray, wav: Path) -> dict[str, tuple]:
    """The same sound in every form: input, and options."""
    rated = {"sample_rate": RATE}
    return {
        "path": (wav, {}),
        "text": (str(wav), {}),
        "array": (stereo.T, rated),
        "float64": (stereo.T.astype(np.float64), rated),
        "list": (stereo.T.tolist(), rated),
        "rate of numpy": (stereo.T, {"sample_rate": np.float64(RATE)}),
        "tensor": (torch.from_numpy(stereo.T), rated),
        "tensor with gradient": (torch.from_numpy(stereo.T.copy()).requires_grad_(), rated),
        "mapping": ({"path": None, "array": stereo.T, "sampling_rate": RATE}, {}),
        "row of numpy": ({"array": stereo.T, "sampling_rate": np.array(RATE)}, {}),
        "row of torch": (
            {"array": torch.from_numpy(stereo.T), "sampling_rate": torch.tensor(RATE)},
            {},
        ),
        "decoder": (Decoder(stereo.T), {}),
        "row with bytes": ({"bytes": wav.read_bytes(), "path": "elsewhere.wav"}, {}),
        "row with path": ({"bytes": None, "path": str(wav)}, {}),
        "open file": (io.BytesIO(wav.read_bytes()), {}),
        "file at its middle": (at_its_middle(io.BytesIO(wav.read_bytes())), {}),
    }


@pytest.mark.parametrize("form", forms(np.zeros((2, 2)), Path(__file__)))
def test_every_form_of_input_gives_the_same_answer(
    form: str, stereo: np.ndarray, wav: Path
) -> None:
    model = build()
    audio, options = forms(stereo, wav)[form]
    prediction = model.predict(audio, **options)
    assert isinstance(prediction, ClipPrediction)
    expected = model.predict(wav)
    assert isinstance(expected, ClipPrediction)
    assert prediction.scores == expected.scores
    assert [one.scores for one in prediction.timeline] == [one.scores for one in expected.timeline]
    audio, options = forms(stereo, wav)[form]
    np.testing.assert_array_equal(model.embed(audio, **options), model.embed(wav))


def test_public_names_are_there_and_those_of_predictions_are_returned(wav: Path) -> None:
    for name in m2v_finetune.__all__:
        assert getattr(m2v_finetune, name).__doc__ or name == "__version__", name
    assert isinstance(build().predict(wav), m2v_finetune.ClipPrediction)
    beats = build(BeatTracking(label_column="beats"))
    assert isinstance(beats.predict(wav), m2v_finetune.BeatsPrediction)
    with pytest.raises(AttributeError):
        m2v_finetune.Prediction  # noqa: B018
    assert set(m2v_finetune.__all__) <= set(dir(m2v_finetune))


def test_half_precision_is_read(stereo: np.ndarray) -> None:
    model = build()
    rounded = torch.from_numpy(stereo.T).to(torch.bfloat16)
    expected = model.predict(rounded.float(), sample_rate=RATE)
    assert model.predict(rounded, sample_rate=RATE).scores == expected.scores


def test_an_array_is_separated_with_its_channels(stereo: np.ndarray, wav: Path) -> None:
    task = Separation(
        stems=("left", "right"), label_column="stems", sample_rate=RATE, num_channels=2
    )
    model = build(task)
    given, expected = model.predict(stereo.T, sample_rate=RATE), model.predict(wav)
    [many] = model.predict_many([wav], show_progress=False)
    for stems in (given, many):  # computed while they are read
        arrays, of_file = stems.arrays(), model.predict(wav).arrays()
        assert arrays.keys() == {"left", "right"}
        for name, array in arrays.items():
            assert array.shape == (2, len(stereo))
            np.testing.assert_array_equal(array, of_file[name])
    assert expected.arrays().keys() == {"left", "right"}
    with raises("stems-read-twice"):
        expected.arrays()


@pytest.mark.slow
def test_no_file_is_left_of_an_array(
    stereo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = Separation(
        stems=("left", "right"), label_column="stems", sample_rate=RATE, num_channels=2
    )
    unread = build(task).predict(stereo.T, sample_rate=RATE)
    assert len(list(tmp_path.iterdir())) == 1
    del unread
    gc.collect()
    assert not list(tmp_path.iterdir())
    build(task).predict(stereo.T, sample_rate=RATE).arrays()
    build().predict(stereo.T, sample_rate=RATE)
    build().embed(stereo.T, sample_rate=RATE)
    with pytest.raises(AudioError):
        build().predict(io.BytesIO(b"no audio"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TASKS)
def test_a_label_is_that_of_its_output(name: str) -> None:
    settings = TASKS[name].settings_class()
    task = TASKS[name].from_settings(settings)
    labels = build(task).id2label
    assert not labels or list(labels) == list(range(task.num_outputs))
    assert bool(labels) == issubclass(TASKS[name], ClipTask)


def test_frames_of_an_array(stereo: np.ndarray, wav: Path) -> None:
    model = build(BeatTracking(label_column="beats"))
    given, expected = model.predict(stereo.T, sample_rate=RATE), model.predict(wav)
    assert given.activations.tolist() == expected.activations.tolist()


SOUND = np.zeros(RATE, dtype=np.float32)


@pytest.mark.parametrize(
    ("audio", "options", "code", "values"),
    [
        (SOUND, {}, "audio-input-rate", ("None", "44100")),
        (SOUND, {"sample_rate": 0}, "audio-input-rate", ("0",)),
        (SOUND, {"sample_rate": -RATE}, "audio-input-rate", (-RATE,)),
        (SOUND, {"sample_rate": "22050"}, "audio-input-rate", ("'22050'",)),
        (SOUND, {"sample_rate": True}, "audio-input-rate", ("True",)),
        (SOUND, {"sample_rate": 22050.5}, "audio-input-rate", ("22050.5",)),
        (SOUND, {"sample_rate": float("nan")}, "audio-input-rate", ("nan",)),
        ([[0.0, 0.1], [0.0]], {"sample_rate": RATE}, "audio-input-shape", ("inhomogeneous",)),
        (torch.zeros(9, dtype=torch.int16), {"sample_rate": RATE}, "audio-input-type", ("int16",)),
        ("song.wav", {"sample_rate": RATE}, "audio-input-rate", (RATE,)),
        (io.BytesIO(b"x"), {"sample_rate": RATE}, "audio-input-rate", (RATE,)),
        (
            {"array": SOUND, "sampling_rate": RATE},
            {"sample_rate": 44_100},
            "audio-input-rate",
            (44_100,),
        ),
        ({"array": SOUND, "sampling_rate": None}, {}, "audio-input-rate", ("None",)),
        ({"array": SOUND}, {}, "audio-input-type", ("'sampling_rate'",)),
        ({"bytes": b"", "path": None}, {}, "audio-input-type", ("'array'", "bytes, path")),
        (SOUND, {"sample_rate": 22.05}, "audio-input-rate", ("22.05",)),
        (SOUND, {"sample_rate": 44}, "audio-input-rate", ("44", "Hz")),
        (SOUND, {"sample_rate": 10**400}, "audio-input-rate", ("Hz",)),
        (SOUND * 0 + 20_000, {"sample_rate": RATE}, "audio-input-range", ("20000", "32768")),
        (
            np.ma.masked_array(SOUND, SOUND > 0),
            {"sample_rate": RATE},
            "audio-input-type",
            ("Masked",),
        ),
        (torch.zeros(9).to_sparse(), {"sample_rate": RATE}, "audio-input-type", ("dense",)),
        (torch.zeros(9, device="meta"), {"sample_rate": RATE}, "audio-input-type", ("dense",)),
        (io.BytesIO(), {}, "audio-empty", ("no bytes",)),
        (
            SOUND.astype(np.int16),
            {"sample_rate": RATE},
            "audio-input-type",
            ("int16", "32768"),
        ),
        (SOUND.astype(bool), {"sample_rate": RATE}, "audio-input-type", ("bool",)),
        (SOUND.astype(complex), {"sample_rate": RATE}, "audio-input-type", ("complex128",)),
        (None, {}, "audio-input-type", ("NoneType",)),
        (7, {"sample_rate": RATE}, "audio-input-type", ("int",)),
        (io.StringIO("x"), {}, "audio-input-type", ("'rb'",)),
        (np.zeros((RATE, 2)), {"sample_rate": RATE}, "audio-input-shape", (f"({RATE}, 2)",)),
        (np.zeros((3, 2)), {"sample_rate": RATE}, "audio-input-shape", ("(3, 2)",)),
        ([SOUND, SOUND, SOUND], {"sample_rate": RATE}, "audio-input-shape", ("3 sounds",)),
        (
            (torch.zeros(9), torch.zeros(8)),
            {"sample_rate": RATE},
            "audio-input-shape",
            ("2 sounds",),
        ),
        (np.zeros((16, RATE)), {"sample_rate": RATE}, "audio-input-shape", (f"(16, {RATE})",)),
        (np.zeros((1, 2, 9)), {"sample_rate": RATE}, "audio-input-shape", ("(1, 2, 9)",)),
        (np.float32(1), {"sample_rate": RATE}, "audio-input-type", ("float32",)),
        (np.zeros(0), {"sample_rate": RATE}, "audio-input-shape", ("(0,)",)),
        (np.zeros((2, 0)), {"sample_rate": RATE}, "audio-input-shape", ("(2, 0)",)),
        (SOUND * np.nan, {"sample_rate": RATE}, "audio-input-not-finite", ("NaN",)),
        (SOUND + np.inf, {"sample_rate": RATE}, "audio-input-not-finite", ("NaN",)),
    ],
)
def test_input_that_is_no_sound_is_refused(audio, options, code, values) -> None:
    with raises(code, *values):
        build().predict(audio, **options)


def test_a_model_in_half_precision_states_how_to_predict(wav: Path) -> None:
    model = build().half()
    for call in (model.predict, model.embed, lambda one: model.predict_many([one])):
        with raises("model-weights-not-float32", "torch.float16", "model.float()"):
            call(wav)
    assert model.float().predict(wav).top(1)


def test_files_that_cannot_be_read_from(tmp_path: Path) -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    with (tmp_path / "new").open("wb") as writable:
        for file in (closed, writable):
            with raises("audio-input-type", "'rb'"):
                build().predict(file)


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", None, True])
def test_counts_that_are_none(value, wav: Path) -> None:
    model = build()
    for call in (model.predict, model.embed, load_backbone("random-small").embed):
        with raises("settings-range", "batch_size", repr(value)):
            call(wav, batch_size=value)
    with raises("settings-range", "batch_size", repr(value)):
        model.predict_many([wav], batch_size=value)
    if value != 0:
        with raises("settings-range", "num_workers", repr(value)):
            model.predict_many([wav], num_workers=value)


def test_numbers_of_numpy_are_numbers(wav: Path) -> None:
    backbone = load_backbone("random-small")
    found = backbone.embed(wav, layer=np.int64(2), window_seconds=np.float32(1.0))
    np.testing.assert_array_equal(found, backbone.embed(wav, layer=2, window_seconds=1.0))


def test_options_of_embeddings_that_are_none(wav: Path) -> None:
    backbone = load_backbone("random-small")
    for pool in ("mean", None):
        with raises("embed-no-such-pool", repr(pool), "track, windows"):
            backbone.embed(wav, pool=pool)
    for seconds in (float("nan"), float("inf"), "1", -1.0, 1e9):
        with raises("settings-range", "window_seconds", seconds):
            backbone.embed(wav, window_seconds=seconds)


@pytest.mark.parametrize(
    "files", ["song.wav", Path("song.wav"), b"song.wav", [SOUND], ["a.wav", None], [{}], None, 5]
)
def test_many_files_are_a_list_of_paths(files) -> None:
    with raises("audio-input-type", "list of paths"):
        build().predict_many(files)


def test_a_place_of_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with raises("model-is-a-file", "model.onnx", "--runtime onnx"):
        TaskModel.from_pretrained(tmp_path / "model.onnx")
    with raises("model-is-a-file", "model.onnx"):
        load_backbone(str(tmp_path / "model.onnx"))
    build().save_pretrained(tmp_path / "model")
    with raises("device-unavailable", "'gpu'", "cuda"):
        TaskModel.from_pretrained(tmp_path / "model", device="gpu")


def test_a_file_object_that_is_no_audio(tmp_path: Path) -> None:
    with pytest.raises(AudioError) as raised:
        build().predict(io.BytesIO(b"no audio at all" * 100))
    assert "m2v-audio-" not in str(raised.value)  # the temporary file means nothing to the caller


@pytest.mark.slow
def test_many_files_in_batches_with_errors_as_results(
    stereo: np.ndarray, wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, broken, silent = (tmp_path / name for name in ("short.wav", "broken.wav", "nan.wav"))
    soundfile.write(short, stereo[: RATE // 3], RATE, subtype="FLOAT")
    broken.write_bytes(b"RIFF")
    spoiled = np.concatenate([stereo, stereo])
    spoiled[RATE // 2] = np.nan
    soundfile.write(silent, spoiled, RATE, subtype="FLOAT")
    model = build()
    files = [wav, tmp_path / "missing.wav", short, silent, broken, str(wav)]
    results = model.predict_many(files, batch_size=4)
    assert [isinstance(one, ClipPrediction) for one in results] == [
        *(True, False, True, False, False, True)
    ]
    for path, one in zip(files, results, strict=True):
        if isinstance(one, ClipPrediction):
            assert one.scores == pytest.approx(model.predict(path).scores, abs=1e-6)
    codes = [one.code for one in results if isinstance(one, AudioError)]
    assert codes[0] == "audio-not-found"
    assert codes[1] == "audio-not-finite"
    assert len(codes) == 3
    assert "Predicting" in capsys.readouterr().err
    assert model.predict_many([], show_progress=False) == []
    [first, _, _] = model.predict_many(files[:3], num_workers=1, show_progress=False)
    assert first.scores == pytest.approx(results[0].scores, abs=1e-6)


def test_an_output_that_is_not_finite_is_the_error_of_its_file(wav: Path) -> None:
    model = build()
    with torch.no_grad():
        model.head.layers[-1].bias[0] = torch.nan
    [error, _] = model.predict_many([wav, wav], show_progress=False)
    assert error.code == "model-output-not-finite"
    with raises("model-output-not-finite") as caught:
        model.predict(SOUND, sample_rate=RATE)
    assert "m2v-audio-" not in str(caught.value)  # the temporary file means nothing to the caller


def test_embeddings_are_means_of_hidden_states(wav: Path) -> None:
    """Against transformers' own hidden states of the windows."""
    backbone = load_backbone("random-small")
    samples = read_audio(wav, sample_rate=16_000)
    windows = np.stack(
        [samples[start : start + 16_000] for start in (0, 16_000, len(samples) - 16_000)]
    )
    with torch.inference_mode():
        states = backbone.network(
            backbone.prepare(torch.from_numpy(windows)), output_hidden_states=True
        ).hidden_states
    expected = torch.stack([state.mean(dim=1) for state in states], dim=1).numpy()
    embedded = backbone.embed(wav, window_seconds=1.0, pool="windows", batch_size=2)
    assert embedded.shape == (3, backbone.num_hidden_states, backbone.hidden_size)
    np.testing.assert_allclose(embedded, expected, rtol=0, atol=1e-5)
    track = backbone.embed(wav, window_seconds=1.0, layer=2)
    np.testing.assert_allclose(track, expected[:, 2].mean(axis=0), rtol=0, atol=1e-5)

    model = build()
    weights = model.layer_weighting.weights().detach().numpy()
    weighted = np.einsum("l,wld->wd", weights, expected).mean(axis=0)
    np.testing.assert_allclose(model.embed(wav), weighted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.embed(wav, layer=2), track, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 5, 1.5, "last", True])
def test_a_layer_that_is_not_there(layer, wav: Path) -> None:
    with raises("embed-no-such-layer", repr(layer), "0 to 4"):
        load_backbone("random-small").embed(wav, layer=layer)
    with raises("embed-no-such-layer", repr(layer), "0 to 4"):
        build().embed(wav, layer=layer)


def test_the_description_of_a_model() -> None:
    model = build(method="lora")
    assert model.id2label == {0: "calm", 1: "fast", 2: "wild"}
    assert model.label2id == {"calm": 0, "fast": 1, "wild": 2}
    assert build(BeatTracking(label_column="beats")).id2label == {}
    assert model.device == torch.device("cpu")
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    trainable = model.num_parameters(trainable=True)
    assert trainable == sum(model.trained_parts().values()) < model.num_parameters()


def test_a_merged_model_gives_the_same_and_is_saved_whole(tmp_path: Path, wav: Path) -> None:
    model = build(method="lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    before = model.predict(wav).scores
    assert before != pytest.approx(build(method="probe").predict(wav).scores, abs=1e-4)
    assert model.merge_and_unload() is model
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert model.predict(wav).scores == pytest.approx(before, abs=1e-5)
    model.save_pretrained(tmp_path)
    loaded = TaskModel.from_pretrained(tmp_path, device="cpu")
    assert loaded.predict(wav).scores == model.predict(wav).scores


@pytest.mark.parametrize("method", ["probe", "lora", "bitfit", "adapter"])
def test_a_loaded_model_trains_what_its_method_trains(method: str, tmp_path: Path) -> None:
    model = build(method=method)
    model.save_pretrained(tmp_path / "model", weights="all")
    loaded = TaskModel.from_pretrained(tmp_path / "model")
    # Modules of LoRA are merged, so that head and layer weights are left.
    expected = build(method="probe") if method == "lora" else model
    assert loaded.trained_parts() == expected.trained_parts()
    assert loaded.num_parameters(trainable=True) == expected.num_parameters(trainable=True)


@pytest.mark.parametrize("method", ["probe", "lora", "bitfit"])
def test_a_frozen_model_is_saved_whole(method: str, tmp_path: Path, wav: Path) -> None:
    model = build(method=method, seed=1)
    with torch.no_grad():  # also what starts at zero, such as adapters
        for parameter in model.trained_tensors().values():
            parameter.add_(0.01)
    model.requires_grad_(False)
    model.save_pretrained(tmp_path / "model")
    assert TaskModel.from_pretrained(tmp_path / "model").predict(wav) == model.predict(wav)


def test_what_a_loop_trained_beyond_the_tuning_method_is_saved(tmp_path: Path, wav: Path) -> None:
    model = build(seed=1)
    norm = model.backbone.layers[-1].final_layer_norm.weight.requires_grad_(True)
    with torch.no_grad():
        norm.mul_(2)
    with raises("model-trains-more", "weights='all'"):
        model.save_pretrained(tmp_path / "trained", weights="trained")
    assert not (tmp_path / "trained").exists()
    model.save_pretrained(tmp_path / "model")
    assert TaskModel.from_pretrained(tmp_path / "model").predict(wav) == model.predict(wav)


@pytest.mark.parametrize("method", ["probe", "lora"])
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_what_a_loop_trained_and_froze_again_is_saved(
    method: str, mode: str, tmp_path: Path, wav: Path
) -> None:
    model = build(method=method, seed=1)
    norm = model.backbone.layers[-1].final_layer_norm.weight.requires_grad_(True)
    if mode == "training":
        model.train()
    else:
        model(torch.zeros(1, model.window_samples))
    with torch.no_grad():
        norm.mul_(2)
    model.requires_grad_(False).eval()
    model.save_pretrained(tmp_path / "model")
    assert TaskModel.from_pretrained(tmp_path / "model").predict(wav) == model.predict(wav)


def test_a_device_is_chosen_when_a_model_is_loaded(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    assert TaskModel.from_pretrained(tmp_path, device="meta").device == torch.device("meta")
