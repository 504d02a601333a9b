"""The page of `m2v demo` in a headless Chromium: a song goes in, and what the page shows comes out.

The models have random weights. With `M2V_DEMO_RUNS`, a folder with a trained run for each task and
song.flac, the same test takes the pictures of docs/demo.md:

    M2V_DEMO_RUNS=FOLDER python -m pytest tests/demo
"""

import importlib.util
import io
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.matrix import exhaustive
from support.models import TAGGING

from m2v_finetune.cli import main
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.demo.page import MAX_LABELS
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import TASKS

pytest.importorskip("selenium")
from browser import CHROMIUM, DRIVER, Browser

if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

# Found, not imported: it takes seconds.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio"),
]
RUNS = os.environ.get("M2V_DEMO_RUNS")
IMAGES = Path(__file__).parents[2] / "docs" / "images"
SHOWN_TASKS = ("tagging", "beats", "chords", "transcription", "separation")
SECONDS = 6.0


def save_random_model(name: str, folder: Path) -> None:
    """Save a model of a task with random weights."""
    torch.manual_seed(0)
    kind = TASKS[name]
    task = TAGGING if name == "tagging" else kind.from_settings(kind.settings_class())
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=2.0,
    )
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/TASK/model and song.flac."""
    if RUNS:
        return Path(RUNS).absolute()
    folder = tmp_path_factory.mktemp("demo")
    generator = np.random.default_rng(0)
    soundfile.write(
        folder / "song.flac", 0.2 * generator.standard_normal(round(SECONDS * 22050)), 22050
    )
    for name in SHOWN_TASKS:
        save_random_model(name, folder / "runs" / name / "model")
    return folder


def serve(model: str) -> str:
    """Run `m2v demo` in a thread, which ends with the tests; return the address of the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["demo", model, "--port", str(port)]
    threading.Thread(target=main, args=(command,), daemon=True).start()
    return f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


def answers(address: str) -> bool:
    with urllib.request.urlopen(address) as reply:
        return reply.status == 200


def fetched_sound(address: str) -> tuple[np.ndarray, int]:
    with urllib.request.urlopen(address) as reply:
        return soundfile.read(io.BytesIO(reply.read()), always_2d=True)


@pytest.mark.parametrize("name", [SHOWN_TASKS[0], *exhaustive(*SHOWN_TASKS[1:])])
def test_the_page_shows_what_predict_returns(
    name: str, folder: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    source = f"runs/{name}/model"
    address = serve(source)
    model = TaskModel.from_pretrained(source)
    shown = model.predict("song.flac").show(Path("song.flac"))
    browser.wait_for(lambda: answers(address))
    browser.open(address)
    browser.wait_for(lambda: name.capitalize() in browser.text("h1"))
    heading = browser.text("body")
    assert source in heading
    assert model.backbone.licence
    assert model.backbone.licence in heading

    browser.drop(folder / "song.flac")
    answer = browser.wait_for(lambda: browser.text("#answer"))
    assert answer == shown.text.replace("*", "")
    browser.wait_for(lambda: len(browser.elements(".picture img")) == len(shown.pictures))
    scores = shown.scores or {}
    for label in sorted(scores, key=lambda one: -scores[one])[:MAX_LABELS]:
        assert label in browser.text("body")

    # The sounds can be played, and are those of the prediction, in 16 bits.
    assert len(shown.sounds) == {"beats": 1, "separation": 4}.get(name, 0)
    links = browser.wait_for(
        lambda: browser.sources(".sound a[download]", "href") or not shown.sounds
    )
    for link, (sample_rate, samples) in zip(
        links if shown.sounds else (), shown.sounds.values(), strict=True
    ):
        played, rate = fetched_sound(link)
        assert rate == sample_rate
        np.testing.assert_allclose(
            played, samples.reshape(len(played), -1).clip(-1, 1), atol=2.0**-14
        )

    picture = browser.screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    assert pixels.shape[0] > 500
    assert pixels.std() > 5  # not one colour
    if RUNS:
        Image.open(io.BytesIO(picture)).convert(
            "P", palette=Image.Palette.ADAPTIVE, colors=128
        ).save(IMAGES / f"demo_{name}.png", optimize=True)
    assert browser.other_hosts() == set(), "a page works without a network"


def test_a_file_that_cannot_be_read_is_a_message(
    folder: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    (tmp_path / "broken.flac").write_bytes((folder / "song.flac").read_bytes()[:40] + b"x" * 400)
    address = serve("runs/tagging/model")
    browser.wait_for(lambda: answers(address))
    browser.open(address)
    browser.drop(tmp_path / "broken.flac")
    message = browser.wait_for(lambda: browser.text("#error"))
    assert message.startswith("Error: broken.flac")
    assert "Traceback" not in browser.text("body")
    assert not browser.elements(".picture")
