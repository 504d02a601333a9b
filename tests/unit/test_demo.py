"""The parts of the demo that need no browser: clicks, what is shown, and the files of a Space."""

import json
import socket
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from support.messages import raises
from support.models import build_tagger

from m2v_finetune import __version__
from m2v_finetune.audio.clicks import ACCENT_HZ, CLICK_HZ, RECORDING_PEAK, add_clicks
from m2v_finetune.cli import build_parser
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.demo import build_page, launch_page, space_files
from m2v_finetune.demo import page as page_module
from m2v_finetune.demo.page import LOOPBACK, heading
from m2v_finetune.demo.space import installed_from
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.shown import escaped

RATE = 8000


@pytest.fixture(scope="module")
def model() -> TaskModel:
    return build_tagger(method="probe")


def test_clicks_start_at_their_times_and_accents_are_higher() -> None:
    mixed = add_clicks(
        np.zeros(RATE, dtype=np.float32),
        RATE,
        np.array([0.25, 0.5, 0.99]),
        np.array([True, False, True]),
    )
    assert len(mixed) == RATE
    assert not mixed[: RATE // 4].any()
    for start, hertz in ((0.25, ACCENT_HZ), (0.5, CLICK_HZ)):
        click = mixed[round(start * RATE) : round((start + 0.04) * RATE)]
        spectrum = np.abs(np.fft.rfft(click, n=RATE))
        assert abs(spectrum.argmax() - hertz) < 30
    assert mixed[round(0.99 * RATE) :].any()  # cut at the end of the song


def test_the_recording_below_clicks_has_one_level() -> None:
    quiet = np.sin(np.arange(RATE, dtype=np.float32)) * np.float32(1e-3)
    mixed = add_clicks(quiet, RATE, np.zeros(0), np.zeros(0, dtype=bool))
    assert np.abs(mixed).max() == pytest.approx(RECORDING_PEAK, rel=1e-5)
    np.testing.assert_allclose(mixed / np.abs(mixed).max(), quiet / np.abs(quiet).max(), atol=1e-6)
    assert not add_clicks(0 * quiet, RATE, np.zeros(0), np.zeros(0, dtype=bool)).any()


@pytest.mark.parametrize("is_ranking", [True, False])
def test_numbers_are_a_table_and_labels_are_ranked(is_ranking: bool, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.wav", np.zeros(RATE), RATE)
    windows = [(0.0, {"a|b": 0.25, "c": 2.0}), (0.5, {"a|b": 0.75, "c": 3.0})]
    prediction = ClipPrediction(
        scores={"a|b": 0.5, "c": 2.5},
        timeline=[
            WindowPrediction(start_seconds=start, end_seconds=start + 0.5, scores=scores)
            for start, scores in windows
        ],
        is_ranking=is_ranking,
    )
    shown = prediction.show(tmp_path / "song.wav")
    assert shown.scores == (prediction.scores if is_ranking else None)
    assert ("**c**" in shown.text) == is_ranking
    assert ("| a&#124;b | 0.500 |" in shown.text) != is_ranking
    [picture] = shown.pictures.values()
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_labels_have_no_markup() -> None:
    assert escaped("<b>*x*") == "&#60;b&#62;&#42;x&#42;"


def test_the_heading_names_model_backbone_and_licence(model: TaskModel, tmp_path: Path) -> None:
    on_hub = heading(model, "me/my-tagger")
    assert "https://huggingface.co/me/my-tagger" in on_hub
    assert "random-small" in on_hub
    assert "apache-2.0" in on_hub
    (tmp_path / "README.md").write_text("A card.")
    assert "huggingface.co" not in heading(model, str(tmp_path))
    assert "README.md" in heading(model, str(tmp_path))


def test_without_gradio_the_message_names_the_extra(
    model: TaskModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with raises("demo-not-installed", "m2v-finetune[demo]"):
        build_page(model, "me/my-tagger")


def test_options_of_a_push_need_one() -> None:
    arguments = build_parser().parse_args(["demo", "me/my-tagger", "--private"])
    with raises("demo-push-options", "--push"):
        arguments.command(arguments)


@pytest.mark.parametrize("port", [-5, 0, 99_999_999])
def test_a_port_that_is_none(port: int) -> None:
    arguments = build_parser().parse_args(["demo", "me/my-tagger", f"--port={port}"])
    with raises("demo-port", port):
        arguments.command(arguments)


def test_a_port_that_another_program_uses(model: TaskModel) -> None:
    pytest.importorskip("gradio")
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with raises("demo-port", port, "--port"):
            launch_page(build_page(model, "mine"), port=port)


def test_a_space_needs_a_model_on_the_hub(model: TaskModel, tmp_path: Path) -> None:
    with raises("space-model-not-on-hub", tmp_path, "m2v push"):
        space_files(model, str(tmp_path), package="m2v-finetune")


def test_a_space_has_the_python_of_its_model_and_page(model: TaskModel) -> None:
    readme = space_files(model, "me/tagger", package="m2v-finetune[demo]")["README.md"]
    metadata = ModelCard(readme).data.to_dict()
    assert metadata["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert metadata["sdk_version"] == version("gradio")


def test_files_of_a_prediction_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio")
    model = TaskModel.build(
        task=BeatTracking(label_column="beats"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=1.0,
    ).eval()
    soundfile.write(tmp_path / "song.wav", np.zeros(RATE), RATE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = build_page(model, "mine")
    assert page.delete_cache
    with gradio.Blocks():
        page_module._show(gradio, model, tmp_path / "song.wav")
    assert list((tmp_path / "gradio").rglob("song.beats"))
    assert not list((tmp_path / "temporary").glob("m2v-demo-*"))


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, f"m2v-finetune[demo]=={__version__}"),
        (
            {
                "url": "https://example.org/m2v.git",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "ab12"},
            },
            "m2v-finetune[demo] @ git+https://example.org/m2v.git@ab12",
        ),
        (
            {"url": "https://example.org/m2v_finetune-0.1.0-py3-none-any.whl", "archive_info": {}},
            "m2v-finetune[demo] @ https://example.org/m2v_finetune-0.1.0-py3-none-any.whl",
        ),
    ],
)
def test_a_space_installs_what_was_installed(
    origin: object, requirement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, origin, monkeypatch)
    assert installed_from() == requirement


def test_a_local_installation_cannot_go_to_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, {"url": "file:///home/me/m2v", "dir_info": {"editable": True}}, monkeypatch)
    with raises("space-package-is-local", "--package"):
        installed_from()


def install(folder: Path, origin: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write what pip records of an installation, before all others on the path."""
    info = folder / f"m2v_finetune-{__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: m2v-finetune\nVersion: {__version__}\n"
    )
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(folder))
