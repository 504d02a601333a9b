"""Which files of a checkpoint are fetched where a repository has its weights several times over."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save
from support.forked import run_forked
from support.messages import raises

from m2v_finetune.backbones import load_backbone
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR

SMALL = SHIPPED_DIR / "random_small"
BESIDE = ("config.json", "preprocessor_config.json")
# What else lies in repositories of such networks; none of it is read here.
JUNK = (
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "onnx/model.onnx",
    "model.onnx",
    "optimizer.pt",
    "scheduler.pt",
    "training_args.bin",
    "pytorch_model.fp16.bin",
    "model.fp16.safetensors",
    "adapter_model.safetensors",
    "events.out.tfevents",
)
LOAD = """
import json, sys
from m2v_finetune.backbones import load_backbone
from m2v_finetune.errors import UserError

for source in sys.argv[1:]:
    try:
        print(json.dumps([source, load_backbone(source).fingerprint()]), flush=True)
    except UserError as error:
        print(json.dumps([source, [error.code, str(error)]]), flush=True)
"""


def as_bin(tensors) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def sharded(name: str, write) -> dict[str, bytes]:
    """Return weights in two files and their index, as transformers writes them."""
    tensors = load_file(SMALL / "model.safetensors")
    stem, suffix = name.rsplit(".", 1)
    names = sorted(tensors)
    places, files = {}, {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        files[file] = write({one: tensors[one] for one in part})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    return {f"{name}.index.json": json.dumps(index).encode(), **files}


SAFETENSORS = {"model.safetensors": (SMALL / "model.safetensors").read_bytes()}
BIN = {"pytorch_model.bin": as_bin(load_file(SMALL / "model.safetensors"))}
SHARDED = sharded("model.safetensors", save)
SHARDED_BIN = sharded("pytorch_model.bin", as_bin)
REPOSITORIES = {
    "both": (SAFETENSORS | BIN, SAFETENSORS),
    "bin": (BIN, BIN),
    "shards": (SHARDED, SHARDED),
    "shards-of-bin": (SHARDED_BIN, SHARDED_BIN),
    "both-sharded": (SHARDED | SHARDED_BIN, SHARDED),
    "shards-and-bin": (SHARDED | BIN, SHARDED),
    "whole-and-shards-of-bin": (SAFETENSORS | SHARDED_BIN, SAFETENSORS),
    "all": (SAFETENSORS | SHARDED | BIN | SHARDED_BIN, SAFETENSORS),
}


def load(hub: HubServer, home: Path, *sources: str, **variables: str) -> dict[str, Any]:
    environment = os.environ | hub.environment(home) | variables
    done = run_forked(["-c", LOAD, *sources], environment=environment)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def fetched(hub: HubServer, repo_id: str) -> list[str]:
    """Return the files whose content was sent."""
    pattern = re.compile(rf"/{re.escape(repo_id)}/resolve/[^/]+/(.+?)(\?.*)?$")
    found = [pattern.match(one.path) for one in hub.requests if one.method == "GET"]
    return sorted(match[1] for match in found if match)


@pytest.mark.slow
def test_one_format_is_fetched_once(hub: HubServer, tmp_path: Path) -> None:
    beside = {name: (SMALL / name).read_bytes() for name in BESIDE}
    for name, (files, _) in REPOSITORIES.items():
        hub.add_repo(f"me/{name}", beside | files | dict.fromkeys(JUNK, b"junk"))
    sources = [f"me/{name}" for name in REPOSITORIES]
    expected = dict.fromkeys(sources, load_backbone("random-small").fingerprint())
    assert load(hub, tmp_path, *sources) == expected
    for name, (_, wanted) in REPOSITORIES.items():
        assert fetched(hub, f"me/{name}") == sorted([*BESIDE, *wanted]), name
    # Nothing is fetched again, and nothing is missing where the Hub cannot be reached.
    num_requests = len(hub.requests)
    assert load(hub, tmp_path, *sources, HF_HUB_OFFLINE="1") == expected
    assert len(hub.requests) == num_requests
    assert load(hub, tmp_path, *sources[:2]) == {one: expected[one] for one in sources[:2]}
    for name in list(REPOSITORIES)[:2]:
        assert fetched(hub, f"me/{name}") == sorted([*BESIDE, *REPOSITORIES[name][1]]), name


def test_a_repository_without_weights_or_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/none", {name: (SMALL / name).read_bytes() for name in BESIDE})
    found = load(hub, tmp_path, "me/none", "me/nobody")
    for source, code in {
        "me/none": "checkpoint-missing-weights",
        "me/nobody": "hub-not-found",
    }.items():
        assert found[source][0] == code
        assert source.removeprefix("me/") in found[source][1]


def write_folder(folder: Path, files) -> Path:
    for name in BESIDE:
        (folder / name).write_bytes((SMALL / name).read_bytes())
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_folder_is_read_in_the_same_order(tmp_path: Path, name: str) -> None:
    files, wanted = REPOSITORIES[name]
    spoilt = {file: content if file in wanted else b"junk" for file, content in files.items()}
    backbone = load_backbone(write_folder(tmp_path, spoilt))
    assert backbone.fingerprint() == load_backbone("random-small").fingerprint()


@pytest.mark.parametrize(
    ("index", "code"),
    [
        (b"{", "json-unreadable"),
        (b"[]", "json-not-an-object"),
        (b"{}", "weights-index-invalid"),
        (b'{"weight_map": {}}', "weights-index-invalid"),
        (b'{"weight_map": []}', "weights-index-invalid"),
        (b'{"weight_map": {"a": 1}}', "weights-index-invalid"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', "weights-index-invalid"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "weights-index-invalid"),
        (
            b'{"weight_map": {"a": "model-00009-of-00009.safetensors"}}',
            "checkpoint-missing-weights",
        ),
        (b'{"weight_map": {"a": "config.json"}}', "weights-unreadable"),
        (
            b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
            "checkpoint-tensors-mismatch",
        ),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, index: bytes, code: str) -> None:
    write_folder(tmp_path, SHARDED | {"model.safetensors.index.json": index})
    with raises(code):
        load_backbone(tmp_path)
