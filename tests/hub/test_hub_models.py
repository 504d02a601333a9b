"""Models and backbones on a Hub: push, load back, failures; with the real `huggingface_hub`.

Each client is a process of its own with its own home. A `Client` runs one snippet of Python after the other.
"""

import json
import os
import pickle
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.forked import Forked, run_forked
from support.models import build_tagger
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from m2v_finetune.backbones.checkpoints import SHIPPED_DIR

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "tagging.py"
AUDIO = REPOSITORY / "m2v_finetune" / "data" / "quickstart" / "audio"
SONG = AUDIO / "test-000.ogg"

# Runs snippets of Python, one JSON line each; answers with exit code, output and `answer`.
WORKER = """
import contextlib, io, json, logging, os, sys, traceback
import m2v_finetune.cli, m2v_finetune.model, m2v_finetune.runs
from support.messages import noting_run_command
from m2v_finetune import errors

noting = noting_run_command(codes := [])
errors.run_command = m2v_finetune.cli.run_command = noting
replies = os.fdopen(os.dup(1), "w")
for stream in (1, 2):  # only replies go out
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
for line in sys.stdin:
    request = json.loads(line)
    os.environ.update(request["variables"])
    sys.argv = request["argv"]
    codes.clear()
    code, output, logged = 0, io.StringIO(), io.StringIO()
    names = {"__name__": "__main__", "answer": None}
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(logged):
        try:
            exec(request["script"], names)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            code = 1
            traceback.print_exc()
    reply = [code, output.getvalue(), logged.getvalue(), names["answer"], *codes]
    print(json.dumps(reply), file=replies, flush=True)
"""
M2V = "import sys; from m2v_finetune.cli import main; main(sys.argv[1:])"
RUN_RECIPE = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"


class Reply(NamedTuple):
    """What became of a snippet or a process."""

    code: int
    stdout: str
    stderr: str
    answer: Any
    error: str | None = None

    @property
    def message(self) -> str:
        """What a refusal says: one message, exit code 2, no traceback."""
        assert self.code == 2, self
        assert "Traceback" not in self.stderr
        assert self.stderr.count("error: ") == 1, self.stderr
        return self.stderr[self.stderr.index("error: ") :]

    def assert_refused(self, error: str, *values: object) -> None:
        """Assert that an error of this code ended it, whose message names these values."""
        assert self.error == error, self
        for value in values:
            assert str(value) in self.message


class Client:
    """A process with the settings of one user.

    Args:
        variables: Its environment, beside that of the tests.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        (reads, sends), (gets, replies) = os.pipe(), os.pipe()
        self._snippets, self._replies = os.fdopen(sends, "w"), os.fdopen(gets)
        with os.fdopen(reads) as stdin, os.fdopen(replies, "w") as stdout:
            self.process = Forked(
                ["-c", WORKER], environment=environment(variables), input=stdin, output=stdout
            )

    def run(self, script: str, *argv: object, program: object = "m2v", **variables: str) -> Reply:
        """Run a snippet with these arguments; it may leave a result in `answer`."""
        request = {
            "script": script,
            "argv": [str(word) for word in (program, *argv)],
            "variables": variables,
        }
        self._snippets.write(json.dumps(request) + "\n")
        self._snippets.flush()
        return Reply(*json.loads(self._replies.readline()))

    def ask(self, script: str, *argv: object) -> Any:
        """Run a snippet that must succeed; return its `answer`."""
        reply = self.run(script, *argv)
        assert reply.code == 0, reply.stderr
        return reply.answer

    def m2v(self, *argv: object, **variables: str) -> Reply:
        """Run the command line."""
        return self.run(M2V, *argv, **variables)

    def train(self, *arguments: object, **variables: str) -> Reply:
        """Run the recipe."""
        return self.run(RUN_RECIPE, *arguments, program=RECIPE, **variables)

    def close(self) -> None:
        self.process.kill()  # it waits for the next snippet; leaving by itself takes torch seconds
        self.process.wait()
        self._snippets.close()
        self._replies.close()


def environment(variables: dict[str, str]) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "COLUMNS": "300"} | variables


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    """One server for all tests of this module; each uses repositories of its own."""
    with HubServer() as running:
        yield running


@pytest.fixture(scope="module")
def start_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Client]]:
    """Start clients that are ended after the tests."""
    clients = []

    def start(variables: dict[str, str]) -> Client:
        clients.append(Client(variables))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def me(server: HubServer, start_client: Callable[..., Client], homes: Path) -> Client:
    """The client of a user who may write."""
    return start_client(server.environment(homes / "me"))


@pytest.fixture(scope="module")
def stranger(server: HubServer, start_client: Callable[..., Client], homes: Path) -> Client:
    """A client with another home, and without a token."""
    return start_client(server.environment(homes / "stranger") | {"HF_TOKEN": ""})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve quickstart clips by absolute path; each tag has both classes in each split."""
    path = tmp_path_factory.mktemp("data") / "songs.jsonl"
    tags = [["drums"], ["piano"], ["drums", "piano"], []]
    rows = [
        {"path": str(AUDIO / f"{split}-{i:03d}.ogg"), "split": split, "tags": tags[i]}
        for split in ("train", "validation", "test")
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "name": "twelve",
        "title": "Twelve clips",
        "licence": "cc0-1.0",
        "citation": "Nobody, 2026",
    }
    (path.parent / "dataset.json").write_text(json.dumps(facts))
    return path


def recipe_arguments(manifest: Path, folder: Path, repo_id: str) -> list[str]:
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1.0,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "head.kind": "linear",
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 4,
        "run.output_dir": folder,
        "publish.repo_id": repo_id,
    }
    return [str(word) for key, value in settings.items() for word in (f"--{key}", value)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- a model of each tuning method ----------------------------------------------------------------

LOAD_BACKBONES = """
import sys
import torch
from m2v_finetune.backbones import load_backbone

answer = []
for source in sys.argv[1:]:
    with torch.no_grad():
        states = load_backbone(source)(torch.linspace(-1, 1, 16_000).sin()[None])
    answer.append([float(state.abs().sum()) for state in states])
"""

PUSH_EVERY_METHOD = """
import sys
import torch
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging

answer = {}
for case in ("probe-auto", "lora-auto", "lora-all", "adapter-all", "full-auto"):
    name, weights = case.split("-")
    torch.manual_seed(1)
    model = TaskModel.build(
        task=Tagging(labels=("drums", "piano", "slow"), label_column="tags"),
        backbone=BackboneConfig(source=sys.argv[1]),
        head=HeadConfig(),
        tuning=TuningConfig(method=name),
        window_seconds=2.0,
        hop_seconds=1.0,
    )
    # As if it had been trained: LoRA changes nothing before.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    model.eval()
    repo_id = f"me/{case}"
    url = model.push_to_hub(repo_id, weights=weights)
    prediction = model.predict(sys.argv[2])
    windows = [list(window.scores.values()) for window in prediction.timeline]
    answer[repo_id] = [url, prediction.scores, windows]
"""
LOAD_MODELS = """
import sys
from m2v_finetune.model import TaskModel

answer = {}
for repo_id in sys.argv[2:]:
    model = TaskModel.from_pretrained(repo_id)
    prediction = model.predict(sys.argv[1])
    windows = [list(window.scores.values()) for window in prediction.timeline]
    answer[repo_id] = [prediction.scores, windows, model.tuning.method, model.training]
"""


@pytest.fixture(scope="module")
def pushed(me: Client) -> dict[str, Any]:
    """Address, tags and tags of the windows of five models, by the repositories they were pushed to."""
    models: dict[str, Any] = me.ask(PUSH_EVERY_METHOD, "random-small", SONG)
    assert len(models) == 5
    return models


@pytest.mark.slow
def test_every_method_comes_back_from_the_hub(
    server: HubServer, stranger: Client, pushed: dict[str, Any]
) -> None:
    loaded = stranger.ask(LOAD_MODELS, SONG, *pushed)
    predictions = {json.dumps(tags) for _, tags, _ in pushed.values()}
    assert len(predictions) == 4  # the methods differ; LoRA is the same model twice
    for repo_id, (url, tags, windows) in pushed.items():
        assert url == f"{server.url}/{repo_id}"
        same_tags, same_windows, method, is_training = loaded[repo_id]
        assert len(windows) > 3
        assert method == repo_id.removeprefix("me/").partition("-")[0]
        assert not is_training
        if repo_id == "me/lora-all":
            assert same_tags == pytest.approx(tags, abs=1e-6, rel=0)
            np.testing.assert_allclose(same_windows, windows, atol=1e-6, rtol=0)
        else:
            assert same_tags == tags
            assert same_windows == windows


LOAD_WITH_ACCESS = """
import sys
from m2v_finetune import TaskModel, load_backbone
from m2v_finetune.errors import UserError

model, backbone = sys.argv[1:]
options = {
    "local before": {"local_files_only": True},
    "wrong token": {"token": "hf_wrong"},
    "no token": {"token": False},
    "local after": {"local_files_only": True},
}
answer = {}
for name, given in options.items():
    for load, source in ((TaskModel.from_pretrained, model), (load_backbone, backbone)):
        try:
            load(source, **given)
            code = "loaded"
        except UserError as error:
            code = error.code
        answer.setdefault(name, []).append(code)
"""


def test_token_and_local_files_are_those_of_the_call(
    server: HubServer,
    start_client: Callable[..., Client],
    homes: Path,
    pushed: dict[str, Any],
) -> None:
    """In a home that has downloaded nothing yet, whose user is not logged in."""
    files = {path.name: path.read_bytes() for path in (SHIPPED_DIR / "random_small").iterdir()}
    server.add_repo("me/access", files)
    client = start_client(server.environment(homes / "other") | {"HF_TOKEN": ""})
    assert client.ask(LOAD_WITH_ACCESS, "me/full-auto", "me/access") == {
        "local before": ["hub-unreachable"] * 2,
        "wrong token": ["hub-no-access"] * 2,
        "no token": ["loaded"] * 2,
        "local after": ["loaded"] * 2,
    }


PUSH_WITH_TOKEN = """
import sys
from huggingface_hub import ModelHubMixin
from m2v_finetune import TaskModel
from m2v_finetune.errors import UserError

source, token = sys.argv[1:]
model = TaskModel.from_pretrained(source)
assert isinstance(model, ModelHubMixin)
codes = []
for given in (None, "hf_wrong"):
    try:
        model.push_to_hub("me/with-token", token=given)
    except UserError as error:
        codes.append(error.code)
model.push_to_hub("me/with-token", token=token, commit_message="Second try")
answer = [codes, str(model.generate_model_card())]
"""


def test_a_push_takes_the_token_and_the_message_of_the_call(
    server: HubServer,
    start_client: Callable[..., Client],
    homes: Path,
    pushed: dict[str, Any],
) -> None:
    client = start_client(server.environment(homes / "another") | {"HF_TOKEN": ""})
    codes, card = client.ask(PUSH_WITH_TOKEN, "me/full-auto", server.token)
    assert codes == ["hub-not-logged-in", "hub-no-access"]
    commit = server.repos["model", "me/with-token"].commits[-1]
    assert commit.title == "Second try"
    assert commit.files["README.md"].decode() == card
    saved = server.repos["model", "me/full-auto"].files()["model.safetensors"]
    assert commit.files["model.safetensors"] == saved


def test_only_what_others_lack_is_pushed(server: HubServer, pushed: dict[str, Any]) -> None:
    """Who can get the backbone by its name gets what was trained; a fully tuned model goes whole."""
    sizes = {}
    for name in ("probe-auto", "lora-auto", "lora-all", "full-auto"):
        files = server.repos["model", f"me/{name}"].files()
        assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        settings = json.loads(files["config.json"])
        is_valid = name in ("lora-all", "full-auto")
        assert settings["weights"] == ("all" if is_valid else "trained")
        sizes[name] = len(files["model.safetensors"])
        assert ModelCard(files["README.md"].decode()).data.license == "apache-2.0"
    assert sizes["probe-auto"] < sizes["lora-auto"] < sizes["lora-all"] / 3
    assert sizes["lora-all"] == pytest.approx(sizes["full-auto"], rel=0.01)


# -- the whole recipe -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(
    me: Client, manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Reply]:
    """The run folder of a recipe that pushed to me/my-tagger, and what the run printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    reply = me.train(*recipe_arguments(manifest, folder, "me/my-tagger"))
    assert reply.code == 0, reply.stderr
    return folder, reply


def test_recipe_publishes_model_card_and_plots(
    server: HubServer, published: tuple[Path, Reply]
) -> None:
    folder, reply = published
    files = dict(server.repos["model", "me/my-tagger"].files())
    assert f"{server.url}/me/my-tagger" in reply.stderr
    plots = {f"plots/{path.name}": path.read_bytes() for path in (folder / "plots").glob("*.png")}
    assert {"plots/layer_weights.png", "plots/training.png", "plots/per_label_roc_auc.png"} <= set(
        plots
    )
    del files[".gitattributes"]
    assert set(files) == {"config.json", "model.safetensors", "README.md", *plots}
    assert files == files_below(folder / "model")
    assert plots.items() <= files.items()
    tensors = folder / "model" / "model.safetensors"
    names = {name.partition(".")[0] for name in load_file(tensors)}
    assert names == {"head", "layer_weighting"}


def test_card_states_what_the_hub_reads(server: HubServer, published: tuple[Path, Reply]) -> None:
    folder, _ = published
    text = server.repos["model", "me/my-tagger"].files()["README.md"].decode()
    card = ModelCard(text)
    data = card.data
    results = json.loads((folder / "results.json").read_text())
    assert data.license == "apache-2.0"
    assert data.library_name == "m2v-finetune"
    assert data.pipeline_tag == "audio-classification"
    assert {"music", "tagging"} <= set(data.tags)
    assert data.eval_results is not None
    reported = {result.metric_type: result.metric_value for result in data.eval_results}
    assert reported == {
        name: pytest.approx(entry["value"], abs=1e-4) for name, entry in results["metrics"].items()
    }
    assert set(reported) == {"roc_auc", "average_precision"}
    assert all(result.dataset_name == "Twelve clips" for result in data.eval_results)
    assert "model-index" in yaml.safe_load(text.split("---")[1])
    for words in ("me/my-tagger", "random", "cc0-1.0", "Nobody, 2026", "plots/layer_weights.png"):
        assert words in text
    assert str(folder) not in text


def test_token_is_nowhere(server: HubServer, published: tuple[Path, Reply]) -> None:
    folder, reply = published
    token = server.token.encode()
    assert any(server.token in r.headers.get("authorization", "") for r in server.requests)
    written = files_below(folder)
    assert {"config.yaml", "environment.json", "metrics.jsonl", "results.json"} <= set(written)
    assert [name for name, content in written.items() if token in content] == []
    uploaded = server.repos["model", "me/my-tagger"].files()
    assert [name for name, content in uploaded.items() if token in content] == []
    assert server.token not in reply.stdout + reply.stderr


def test_anyone_predicts_with_the_published_model(
    stranger: Client, me: Client, published: tuple[Path, Reply]
) -> None:
    folder, _ = published
    reply = stranger.m2v("predict", "me/my-tagger", SONG)
    assert reply.code == 0, reply.stderr
    first, *tags = reply.stdout.splitlines()
    assert first == str(SONG)
    assert {line.split()[1] for line in tags} == {"drums", "piano"}
    assert all(0 <= float(line.split()[0]) <= 1 for line in tags)
    remote = json.loads(stranger.m2v("predict", "me/my-tagger", SONG, "--format", "json").stdout)
    local = json.loads(me.m2v("predict", folder / "model", SONG, "--format", "json").stdout)
    assert remote == local


# -- pushes that fail -----------------------------------------------------------------------------


def assert_is_safe(
    reply: Reply, *, folder: Path, repo_id: str, me: Client, server: HubServer
) -> None:
    """Assert that a run whose push failed kept its model, and that the advice in its message works."""
    command = f"m2v push {folder / 'model'} {repo_id}"
    assert command in reply.message
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]
    loaded = me.ask(LOAD_MODELS, SONG, folder / "model")
    assert loaded[str(folder / "model")][0].keys() == {"drums", "piano"}
    if not repo_id.startswith("me/"):
        return
    again = me.m2v(*command.split()[1:])
    assert again.code == 0, again.stderr
    assert again.stdout.split()[-1] == f"{server.url}/{repo_id}"
    files = dict(server.repos["model", repo_id].files())
    del files[".gitattributes"]
    assert files == files_below(folder / "model")


@pytest.mark.slow
def test_recipe_whose_commit_fails(
    server: HubServer, me: Client, manifest: Path, tmp_path: Path, homes: Path
) -> None:
    """The recipe as a process of its own: it exits with 2."""
    folder = tmp_path / "run"
    fault = server.fail_next("POST /api/models/me/failed/commit/", status=500, times=100)
    process = run_forked(
        [RECIPE, *recipe_arguments(manifest, folder, "me/failed")],
        environment=environment(server.environment(homes / "me")),
        folder=tmp_path,
        timeout=300,
    )
    assert fault.remaining == 99
    fault.remaining = 0
    reply = Reply(process.returncode, process.stdout, process.stderr, None)
    assert re.search(r"\bme/failed: .*\b500\b", reply.message)
    assert server.token not in process.stdout + process.stderr
    assert set(server.repos["model", "me/failed"].files()) == {".gitattributes"}
    assert_is_safe(reply, folder=folder, repo_id="me/failed", me=me, server=server)


@pytest.mark.slow
def test_recipe_with_a_refused_token(
    server: HubServer, me: Client, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    refused = "hf_thisTokenOpensNothing"
    reply = me.train(*recipe_arguments(manifest, folder, "me/refused"), HF_TOKEN=refused)
    me.run("", HF_TOKEN=server.token)
    reply.assert_refused("hub-no-access", "me/refused", "(401)", "hf auth login")
    assert refused not in reply.stdout + reply.stderr
    assert not any(refused.encode() in content for content in files_below(folder).values())
    assert ("model", "me/refused") not in server.repos
    assert_is_safe(reply, folder=folder, repo_id="me/refused", me=me, server=server)


@pytest.mark.slow
def test_recipe_with_a_namespace_of_others(
    server: HubServer, me: Client, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    reply = me.train(*recipe_arguments(manifest, folder, "others/tagger"))
    reply.assert_refused("hub-no-access", "others/tagger", "(403)", "hf auth login")
    assert ("model", "others/tagger") not in server.repos
    assert_is_safe(reply, folder=folder, repo_id="others/tagger", me=me, server=server)


@pytest.mark.parametrize(
    ("token", "error", "value"),
    [("hf_wrong", "hub-no-access", "(401)"), ("", "hub-not-logged-in", "HF_TOKEN")],
)
def test_push_without_a_valid_token(
    server: HubServer,
    me: Client,
    published: tuple[Path, Reply],
    token: str,
    error: str,
    value: str,
) -> None:
    commits = len(server.repos["model", "me/my-tagger"].commits)
    reply = me.m2v("push", published[0] / "model", "me/my-tagger", HF_TOKEN=token)
    me.run("", HF_TOKEN=server.token)
    reply.assert_refused(error, "me/my-tagger", value, "hf auth login")
    assert len(server.repos["model", "me/my-tagger"].commits) == commits


def test_upload_that_fails_in_the_middle(
    server: HubServer, me: Client, published: tuple[Path, Reply]
) -> None:
    """The storage refuses the weights: no commit is made, and the next push is whole."""
    model = published[0] / "model"
    # The weights of the other pushes are in the storage already.
    server.lfs_objects.clear()
    fault = server.fail_next(
        lambda line: line.startswith("PUT /me/middle.git/"), status=507, times=100
    )
    reply = me.m2v("push", model, "me/middle")
    assert fault.remaining < 100
    fault.remaining = 0
    reply.assert_refused("hub-server-error", "me/middle", "507")
    assert set(server.repos["model", "me/middle"].files()) == {".gitattributes"}
    assert me.m2v("push", model, "me/middle").code == 0
    assert files_below(model).items() <= server.repos["model", "me/middle"].files().items()


def test_upload_whose_connection_drops_once_resumes(
    server: HubServer, me: Client, published: tuple[Path, Reply]
) -> None:
    server.lfs_objects.clear()
    fault = server.drop_connection_on("PUT /me/dropped.git/", during="request")
    reply = me.m2v("push", published[0] / "model", "me/dropped")
    assert fault.remaining == 0
    assert reply.code == 0, reply.stderr
    files = server.repos["model", "me/dropped"].files()
    assert files_below(published[0] / "model").items() <= files.items()


def test_commit_whose_connection_drops(
    server: HubServer, me: Client, published: tuple[Path, Reply]
) -> None:
    fault = server.drop_connection_on("POST /api/models/me/cut/commit/", during="request", times=9)
    reply = me.m2v("push", published[0] / "model", "me/cut")
    fault.remaining = 0
    reply.assert_refused("hub-unreachable", "me/cut", "HF_HUB_OFFLINE")
    assert "copy" not in reply.message  # a push needs none
    assert me.m2v("push", published[0] / "model", "me/cut").code == 0


@pytest.mark.slow
def test_a_pretrained_backbone_is_pushed_and_comes_back(
    server: HubServer, me: Client, stranger: Client, manifest: Path, tmp_path: Path
) -> None:
    """By the recipe; and where that fails, by the command in its message."""
    folder = tmp_path / "run"
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1.0,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "pretrain.num_target_layers": 4,
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 4,
        "run.output_dir": folder,
        "publish.repo_id": "me/backbone",
    }
    arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
    fault = server.fail_next("POST /api/models/me/backbone/commit/", status=500, times=100)
    recipe = REPOSITORY / "recipes" / "pretrain.py"
    reply = me.run(RUN_RECIPE, *arguments, program=recipe)
    fault.remaining = 0
    command = f"m2v push {folder / 'model'} me/backbone"
    reply.assert_refused("hub-server-error", "me/backbone", "500", command)
    pushed = me.m2v(*command.split()[1:])
    assert pushed.code == 0, pushed.stderr
    assert pushed.stdout.split()[-1] == f"{server.url}/me/backbone"
    # The same run again: what it makes is pushed at once.
    again = {**settings, "run.output_dir": tmp_path / "again", "publish.repo_id": "me/second"}
    arguments = [word for key, value in again.items() for word in (f"--{key}", value)]
    assert me.run(RUN_RECIPE, *arguments, program=recipe).code == 0
    loaded = stranger.ask(LOAD_BACKBONES, folder / "model", "me/backbone", "me/second")
    assert loaded[0] == loaded[1] == loaded[2]
    card = dict(server.repos["model", "me/backbone"].files())["README.md"].decode()
    assert "license: apache-2.0" in card
    assert 'load_backbone("me/backbone")' in card

    (folder / "model" / "model.safetensors").unlink()
    broken = me.m2v(*command.split()[1:])
    broken.assert_refused("checkpoint-missing-weights", folder / "model", "model.safetensors")


def test_push_of_what_is_no_model(server: HubServer, me: Client, tmp_path: Path) -> None:
    """A folder that is not there is never looked for on the Hub, whatever its name."""
    num_requests = len(server.requests)
    reply = me.m2v("push", "runs/modle", "me/nothing")
    reply.assert_refused("model-not-found", "runs/modle", "model/")
    reply = me.m2v("push", tmp_path, "me/nothing")
    reply.assert_refused("model-missing", tmp_path, "config.json")
    assert len(server.requests) == num_requests


def test_model_that_is_not_on_the_hub(server: HubServer, stranger: Client, me: Client) -> None:
    server.add_repo("me/of-another-kind", {"config.json": b'{"model_type": "bert"}'})
    for client in (stranger, me):
        reply = client.m2v("predict", "me/nothing-here", SONG)
        reply.assert_refused("hub-not-found", "me/nothing-here", "hf auth login")
    reply = stranger.m2v("predict", "me/of-another-kind", SONG)
    reply.assert_refused("model-config-damaged", "config.json")


# -- backbones ------------------------------------------------------------------------------------

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.1,
}
LEGACY_NAMES = {"parametrizations.weight.original0": "weight_g"} | {
    "parametrizations.weight.original1": "weight_v"
}
LOAD_BACKBONE = """
import sys
import numpy as np
import torch
from m2v_finetune.backbones import load_backbone
from m2v_finetune.errors import run_command

def main():
    global answer
    backbone = load_backbone(sys.argv[1], revision=sys.argv[3] if len(sys.argv) > 3 else None)
    with torch.inference_mode():
        states = backbone(torch.from_numpy(np.load(sys.argv[2])))
    answer = {
        "revision": backbone.revision,
        "licence": backbone.licence,
        "sample_rate": backbone.sample_rate,
        "states": [state.tolist() for state in states],
    }

run_command(main)
"""


class Checkpoint(NamedTuple):
    """A checkpoint in the published layout, and what its network says."""

    files: dict[str, bytes]
    hidden_states: list[np.ndarray]


def checkpoint(
    folder: Path,
    network: PreTrainedModel,
    input_values: np.ndarray,
    *,
    settings: dict[str, Any],
    sample_rate: int,
    legacy_names: bool = False,
    card: str | None = None,
) -> Checkpoint:
    """Lay a network out as the published checkpoints are: pytorch_model.bin, no safetensors."""
    network.eval()
    with torch.inference_mode():
        states = network(torch.from_numpy(input_values), output_hidden_states=True).hidden_states
    tensors = network.state_dict()
    if legacy_names:
        for new, old in LEGACY_NAMES.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        assert any(name.endswith("weight_g") for name in tensors)
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    config = network.config.to_dict() | settings
    (folder / "config.json").write_text(json.dumps(config))
    audio = {"do_normalize": False, "sampling_rate": sample_rate}
    (folder / "preprocessor_config.json").write_text(json.dumps(audio))
    if card is not None:
        (folder / "README.md").write_text(card)
    return Checkpoint(files_below(folder), [state.numpy() for state in states])


@pytest.fixture(scope="module")
def audio_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "input.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def checkpoints(
    server: HubServer, audio_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Checkpoint]:
    """Small checkpoints with each one's quirks, on the Hub under the published names."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("checkpoints")
    input_values = np.load(audio_file)
    remote_code = {
        "AutoConfig": "configuration_MERT.MERTConfig",
        "AutoModel": "modeling_MERT.MERTModel",
    }
    made = {
        "m-a-p/MERT-v0": checkpoint(
            folder / "mert",
            HubertModel(HubertConfig(**TINY)),
            input_values,
            settings={
                "model_type": "mert_model",
                "architectures": ["MERTModel"],
                "auto_map": remote_code,
                "feature_extractor_cqt": False,
                "deepnorm": False,
                "attention_relax": -1.0,
            },
            sample_rate=16000,
            legacy_names=True,
        ),
        "m-a-p/music2vec-v1": checkpoint(
            folder / "music2vec",
            Data2VecAudioModel(Data2VecAudioConfig(**TINY, conv_pos_kernel_size=7)),
            input_values,
            settings={"vocab_size": "/home/someone/dict.txt"},
            sample_rate=16000,
        ),
        "lab/speech": checkpoint(
            folder / "speech",
            Wav2Vec2Model(Wav2Vec2Config(**TINY)),
            input_values,
            settings={},
            sample_rate=8000,
            card="---\nlicense: mit\n---\n\n# Speech\n",
        ),
        "lab/no-card": checkpoint(
            folder / "bare",
            Wav2Vec2Model(Wav2Vec2Config(**TINY)),
            input_values,
            settings={},
            sample_rate=16000,
        ),
    }
    # Code that must never run lies beside the weights.
    mine = b"raise SystemExit('remote code was executed')\n"
    for name in ("configuration_MERT.py", "modeling_MERT.py"):
        made["m-a-p/MERT-v0"].files[name] = mine
    for repo_id, made_checkpoint in made.items():
        server.add_repo(repo_id, made_checkpoint.files)
    return made


@pytest.mark.parametrize(
    ("source", "repo_id", "licence", "sample_rate"),
    [
        ("m-a-p/MERT-v0", "m-a-p/MERT-v0", "cc-by-nc-4.0", 16000),
        ("MERT-v0", "m-a-p/MERT-v0", "cc-by-nc-4.0", 16000),
        ("m-a-p/music2vec-v1", "m-a-p/music2vec-v1", "cc-by-nc-4.0", 16000),
        ("lab/speech", "lab/speech", "mit", 8000),
        ("lab/no-card", "lab/no-card", "", 16000),
    ],
)
def test_backbone_by_its_hub_id(
    server: HubServer,
    stranger: Client,
    checkpoints: dict[str, Checkpoint],
    audio_file: Path,
    source: str,
    repo_id: str,
    licence: str,
    sample_rate: int,
) -> None:
    loaded = stranger.ask(LOAD_BACKBONE, source, audio_file)
    assert loaded["revision"] == server.repos["model", repo_id].commits[0].oid
    assert loaded["licence"] == licence
    assert loaded["sample_rate"] == sample_rate
    expected = checkpoints[repo_id].hidden_states
    assert len(loaded["states"]) == len(expected) == 3
    for state, wanted in zip(loaded["states"], expected, strict=True):
        np.testing.assert_allclose(state, wanted, atol=1e-5, rtol=0)


def test_remote_code_is_not_even_fetched(
    stranger: Client, checkpoints: dict[str, Checkpoint], audio_file: Path, homes: Path
) -> None:
    stranger.ask(LOAD_BACKBONE, "m-a-p/MERT-v0", audio_file)
    fetched = {path.name for path in (homes / "stranger" / "hub").rglob("*MERT*")}
    assert "models--m-a-p--MERT-v0" in fetched
    assert not fetched & {"configuration_MERT.py", "modeling_MERT.py"}


def test_revision_of_a_backbone(
    server: HubServer, stranger: Client, checkpoints: dict[str, Checkpoint], audio_file: Path
) -> None:
    """A branch moves on, a commit stays: whatever was asked for, the commit is recorded."""
    first = server.add_repo("lab/moving", checkpoints["lab/speech"].files).commits[-1].oid
    second = server.add_repo("lab/moving", checkpoints["lab/no-card"].files).commits[-1].oid
    by_commit = stranger.ask(LOAD_BACKBONE, "lab/moving", audio_file, first)
    by_branch = stranger.ask(LOAD_BACKBONE, "lab/moving", audio_file, "main")
    assert by_commit["revision"] == first
    assert by_branch["revision"] == second
    assert by_commit["states"] != by_branch["states"]
    reply = stranger.run(LOAD_BACKBONE, "lab/moving", audio_file, "release-9")
    reply.assert_refused("hub-no-revision", "lab/moving", "release-9")


@pytest.mark.slow
def test_model_stays_on_the_commit_of_its_backbone(
    server: HubServer, me: Client, stranger: Client, checkpoints: dict[str, Checkpoint]
) -> None:
    """What was trained on a backbone of the Hub finds the same one after the backbone has changed."""
    server.add_repo("lab/base", checkpoints["lab/speech"].files)
    pushed = me.ask(PUSH_EVERY_METHOD.replace("me/{", "me/based-{"), "lab/base", SONG)
    server.add_repo("lab/base", checkpoints["lab/no-card"].files)
    loaded = stranger.ask(LOAD_MODELS, SONG, *pushed)
    assert loaded["me/based-probe-auto"][:2] == pushed["me/based-probe-auto"][1:]
    assert loaded["me/based-lora-auto"][:2] == pushed["me/based-lora-auto"][1:]
    card = ModelCard(server.repos["model", "me/based-lora-auto"].files()["README.md"].decode())
    assert card.data.base_model == "lab/base"
    assert card.data.license == "mit"


def test_backbone_that_is_not_there(stranger: Client, audio_file: Path) -> None:
    reply = stranger.run(LOAD_BACKBONE, "lab/nothing", audio_file)
    reply.assert_refused("hub-not-found", "lab/nothing", "hf auth login")


class Touch:
    """A pickle of it touches a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_with_code_is_refused_and_not_executed(
    server: HubServer,
    stranger: Client,
    checkpoints: dict[str, Checkpoint],
    audio_file: Path,
    tmp_path: Path,
) -> None:
    traces = {"plain": tmp_path / "plain", "torch": tmp_path / "torch"}
    torch.save({"weight": torch.zeros(1), "extra": Touch(traces["torch"])}, tmp_path / "evil.bin")
    evil = {
        "plain": pickle.dumps({"extra": Touch(traces["plain"])}),
        "torch": (tmp_path / "evil.bin").read_bytes(),
    }
    for kind, content in evil.items():
        files = checkpoints["lab/speech"].files | {"pytorch_model.bin": content}
        server.add_repo(f"lab/evil-{kind}", files)
        reply = stranger.run(LOAD_BACKBONE, f"lab/evil-{kind}", audio_file)
        reply.assert_refused("weights-unreadable", "pytorch_model.bin")
        assert not traces[kind].exists()
    # The pickles are real: whoever trusts them is caught.
    pickle.loads(evil["plain"])
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert all(trace.exists() for trace in traces.values())


# -- without a network ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_network_what_was_fetched_still_works(
    server: HubServer,
    start_client: Callable[..., Client],
    stranger: Client,
    checkpoints: dict[str, Checkpoint],
    published: tuple[Path, Reply],
    audio_file: Path,
    homes: Path,
    how: str,
) -> None:
    online = stranger.ask(LOAD_BACKBONE, "m-a-p/MERT-v0", audio_file)
    model_online = stranger.m2v("predict", "me/my-tagger", SONG, "--format", "json")
    assert model_online.code == 0
    home = homes / how
    shutil.copytree(homes / "stranger", home, symlinks=True)
    variables = server.environment(home)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        variables |= {"HF_HUB_OFFLINE": "1"} if how == "offline" else {"HF_ENDPOINT": closed}
        client = start_client(variables)
        num_requests = len(server.requests)
        assert client.ask(LOAD_BACKBONE, "m-a-p/MERT-v0", audio_file) == online
        assert (
            client.m2v("predict", "me/my-tagger", SONG, "--format", "json").stdout
            == model_online.stdout
        )
        for source in ("m-a-p/MERT-v1-95M", "lab/never-fetched"):
            reply = client.run(LOAD_BACKBONE, source, audio_file)
            reply.assert_refused("hub-unreachable", source, "HF_HUB_OFFLINE")
        reply = client.m2v("push", published[0] / "model", "me/my-tagger")
        reply.assert_refused("hub-unreachable", "me/my-tagger", "HF_HUB_OFFLINE")
    assert len(server.requests) == num_requests


@pytest.mark.exhaustive
def test_a_space_is_pushed(server: HubServer, me: Client, stranger: Client, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    build_tagger(method="probe").save_pretrained(tmp_path / "model")
    files = [path for path in (tmp_path / "model").iterdir() if path.is_file()]
    server.add_repo("me/shown-tagger", {path.name: path.read_bytes() for path in files})
    package = "m2v-finetune[demo] @ git+https://example.org/m2v-finetune"

    reply = me.m2v("demo", "me/shown-tagger", "--push", "me/page", "--package", package)
    assert reply.code == 0, reply.stderr
    assert f"{server.url}/spaces/me/page" in reply.stdout
    assert package in reply.stdout
    pushed = server.repos["space", "me/page"].files()
    assert set(pushed) == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    assert pushed["requirements.txt"].decode() == f"{package}\n"
    metadata = ModelCard(pushed["README.md"].decode()).data.to_dict()
    assert metadata["sdk"] == "gradio"
    assert metadata["app_file"] == "app.py"
    assert metadata["models"] == ["me/shown-tagger"]
    assert metadata["license"] == "apache-2.0"

    # The app itself, but for serving: it loads the model by its id, without a token.
    app = f"""
import m2v_finetune.demo
launched = []
m2v_finetune.demo.launch_page = lambda page, host: launched.append([page.title, host])
exec({pushed["app.py"].decode()!r})
answer = launched
"""
    assert stranger.ask(app) == [["tagging: me/shown-tagger", "0.0.0.0"]]

    reply = stranger.m2v("demo", "me/shown-tagger", "--push", "me/page", "--package", package)
    reply.assert_refused("hub-not-logged-in", "me/page")
