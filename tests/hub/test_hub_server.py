"""The Hub on the loopback, asked by the real clients.

`huggingface_hub` and `datasets` read their settings when they are imported, so each client is a
small script in a process of its own. A script gets its arguments in `sys.argv` and prints its
answer as JSON.
"""

import http.client
import io
import json
import os
import wave
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import GITATTRIBUTES, LFS_THRESHOLD_BYTES, HubServer, lfs_oid
from support.forked import run_forked

PUSH = """
import json, sys
from huggingface_hub import create_repo, upload_folder

repo_id, folder = sys.argv[1:]
create_repo(repo_id, exist_ok=True)
print(json.dumps(upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Push").oid))
"""

PULL = """
import json, sys
from huggingface_hub import snapshot_download

print(json.dumps(snapshot_download(sys.argv[1], revision=sys.argv[2])))
"""

# Run every call and report what it raised.
RAISED = """
import json
import huggingface_hub as hub

raised = []
for call in CALLS:
    try:
        eval(call)
    except Exception as error:
        raised.append([f"{type(error).__module__}.{type(error).__name__}", str(error)])
print(json.dumps(raised))
"""

ERRORS = "huggingface_hub.errors"


def run(hub: HubServer, home: Path, script: str, *arguments: object, **variables: str) -> Any:
    """Run a client script; return what it printed as JSON on its last line."""
    process = run_forked(
        ["-c", script, *map(str, arguments)],
        environment=os.environ | hub.environment(home) | variables,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def raised_by(hub: HubServer, home: Path, *calls: str, **variables: str) -> list[tuple[str, str]]:
    """Class and message of what each call of `hub`, which is `huggingface_hub`, raised."""
    raised = run(hub, home, RAISED.replace("CALLS", repr(calls)), **variables)
    assert len(raised) == len(calls)
    return [(kind, message) for kind, message in raised]


def read_folder(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def make_model(folder: Path, *, version: int) -> dict[str, bytes]:
    """A folder with two files that go to git and one that goes to LFS by its name."""
    files = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n# A tagger\n",
        "config.json": b'{"version": %d}' % version,
        "adapter/model.safetensors": bytes([version]) * 1000,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def make_wav(value: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes([value, 0]) * 1600)
    return buffer.getvalue()


def test_a_pushed_folder_comes_back_equal(hub: HubServer, tmp_path: Path) -> None:
    files = make_model(tmp_path / "model", version=1)
    files["long.dat"] = bytes(range(250)) * (LFS_THRESHOLD_BYTES // 250 + 1)
    (tmp_path / "model" / "long.dat").write_bytes(files["long.dat"])
    oid = run(hub, tmp_path / "push", PUSH, "me/tagger", tmp_path / "model")

    expected = files | {".gitattributes": GITATTRIBUTES}
    assert hub.repos["model", "me/tagger"].files(oid) == expected
    in_lfs = {lfs_oid(files["adapter/model.safetensors"]), lfs_oid(files["long.dat"])}
    assert set(hub.lfs_objects) == in_lfs

    # The token went to the Hub in a header, and not to the storage of LFS files.
    senders = {r.method for r in hub.requests if f"Bearer {hub.token}" in r.headers.values()}
    assert senders == {"POST"}
    assert [request.method for request in hub.requests].count("PUT") == 2
    assert not any(hub.token in request.path for request in hub.requests)

    # Anyone may read, without a token.
    snapshot = run(hub, tmp_path / "pull", PULL, "me/tagger", "main", HF_TOKEN="")
    assert read_folder(snapshot) == expected


def test_a_second_push_makes_a_second_commit(hub: HubServer, tmp_path: Path) -> None:
    make_model(tmp_path / "first", version=1)
    make_model(tmp_path / "second", version=2)
    script = """
import json, sys
from huggingface_hub import create_repo, snapshot_download, upload_folder

create_repo("me/tagger")
oids = [upload_folder(repo_id="me/tagger", folder_path=path).oid for path in sys.argv[1:]]
print(json.dumps([[oid, snapshot_download("me/tagger", revision=oid)] for oid in oids]))
"""
    folders = [tmp_path / name for name in ["first", "first", "second"]]
    pushed = run(hub, tmp_path, script, *folders)

    # The same folder again is no commit.
    repo = hub.repos["model", "me/tagger"]
    oids = [oid for oid, _ in pushed]
    assert [oids[0], oids[2]] == [commit.oid for commit in repo.commits[1:]]
    assert oids[1] == oids[0]
    for (oid, snapshot), folder in zip(pushed, folders, strict=True):
        expected = read_folder(folder) | {".gitattributes": GITATTRIBUTES}
        assert read_folder(snapshot) == repo.files(oid) == expected
    assert repo.files() == repo.files(oids[2])


def test_what_a_client_can_ask_of_a_repository(hub: HubServer, tmp_path: Path) -> None:
    model = {"config.json": b"{}", "a/b/model.safetensors": b"weights", "a/notes.txt": b"n"}
    hub.add_repo("m-a-p/music2vec-v1", model)
    hub.add_repo("m-a-p/music2vec-v1", model | {"a/notes.txt": b"more"})
    script = """
import json
from huggingface_hub import HfApi, snapshot_download

api = HfApi()
repo_id = "m-a-p/music2vec-v1"
info = api.model_info(repo_id, files_metadata=True)
tree = lambda **where: sorted(entry.path for entry in api.list_repo_tree(repo_id, **where))
print(json.dumps({
    "user": api.whoami()["name"],
    "sha": info.sha,
    "sizes": {file.rfilename: file.size for file in info.siblings},
    "lfs": {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs},
    "files": api.list_repo_files(repo_id),
    "tree": tree(),
    "tree of a": tree(path_in_repo="a"),
    "tree of a, recursive": tree(path_in_repo="a", recursive=True),
    "paths": [entry.path for entry in api.get_paths_info(repo_id, ["a", "config.json", "none"])],
    "commits": len(api.list_repo_commits(repo_id)),
    "branches": [branch.name for branch in api.list_repo_refs(repo_id).branches],
    "exist": [api.file_exists(repo_id, "config.json"), api.file_exists(repo_id, "none"),
              api.revision_exists(repo_id, "main"), api.revision_exists(repo_id, "none"),
              api.repo_exists(repo_id), api.repo_exists("me/none")],
    "config": open(api.hf_hub_download(repo_id, "config.json")).read(),
    "snapshot": snapshot_download(repo_id, allow_patterns=["*.txt"]),
}))
"""
    answer = run(hub, tmp_path, script)
    assert read_folder(answer.pop("snapshot")) == {"a/notes.txt": b"more", "config.json": b"{}"}
    assert not any(r.path.endswith("model.safetensors") for r in hub.requests)
    assert answer == {
        "user": "me",
        "sha": hub.repos["model", "m-a-p/music2vec-v1"].commits[-1].oid,
        "sizes": {"config.json": 2, "a/b/model.safetensors": 7, "a/notes.txt": 4},
        "lfs": {"a/b/model.safetensors": lfs_oid(b"weights")},
        "files": ["a/b/model.safetensors", "a/notes.txt", "config.json"],
        "tree": ["a", "config.json"],
        "tree of a": ["a/b", "a/notes.txt"],
        "tree of a, recursive": ["a/b", "a/b/model.safetensors", "a/notes.txt"],
        "paths": ["a", "config.json"],
        "commits": 2,
        "branches": ["main"],
        "exist": [True, False, True, False, True, False],
        "config": "{}",
    }


def test_cards_are_validated_and_pushed(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/tagger", {"old.txt": b"old", "folder/old.txt": b"old"})
    script = """
import json, warnings
from huggingface_hub import HfApi, ModelCard

card = ModelCard("---\\nlicense: cc-by-nc-4.0\\n---\\n# A tagger")
card.validate()
card.push_to_hub("me/tagger")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    HfApi().upload_file(path_or_fileobj=b"bare", path_in_repo="README.md", repo_id="me/tagger")
HfApi().delete_file("old.txt", repo_id="me/tagger")
HfApi().delete_folder("folder", repo_id="me/tagger")
print(json.dumps([str(warning.message) for warning in caught]))
"""
    warned = run(hub, tmp_path, script)
    assert any("empty or missing yaml metadata" in message for message in warned)
    repo = hub.repos["model", "me/tagger"]
    assert len(repo.commits) == 5
    assert repo.files(repo.commits[1].oid)["README.md"].startswith(b"---\nlicense: cc-by-nc-4.0")
    assert repo.files() == {"README.md": b"bare"}


def test_a_wrong_token_is_refused_everywhere(hub: HubServer, tmp_path: Path) -> None:
    make_model(tmp_path / "model", version=1)
    hub.add_repo("me/tagger", {"config.json": b"{}"})
    raised = raised_by(
        hub,
        tmp_path,
        "hub.whoami()",
        "hub.create_repo('me/new')",
        "hub.create_repo('me/tagger', exist_ok=True)",
        f"hub.upload_folder(repo_id='me/tagger', folder_path={str(tmp_path / 'model')!r})",
        "hub.snapshot_download('me/tagger')",
        HF_TOKEN="hf_wrong",
    )
    assert {kind for kind, _ in raised} == {f"{ERRORS}.HfHubHTTPError"}
    assert raised[0][1].startswith("Invalid user token. The token from HF_TOKEN")
    assert all("Invalid credentials in Authorization header" in text for _, text in raised[1:])
    assert set(hub.repos) == {("model", "me/tagger")}
    assert len(hub.repos["model", "me/tagger"].commits) == 1


def test_writing_needs_a_token(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/tagger", {"config.json": b"{}"})
    upload = "hub.upload_file(path_or_fileobj=b'x', path_in_repo='x.txt', repo_id='me/tagger')"
    who, create, push = raised_by(
        hub, tmp_path, "hub.whoami()", "hub.create_repo('me/new')", upload, HF_TOKEN=""
    )
    assert who[0] == f"{ERRORS}.LocalTokenNotFoundError"
    assert create[0] == f"{ERRORS}.HfHubHTTPError"
    assert "401" in create[1]
    assert push[0] == f"{ERRORS}.RepositoryNotFoundError"
    assert "Invalid username or password" in push[1]
    assert len(hub.repos["model", "me/tagger"].commits) == 1


@pytest.mark.parametrize(("token", "status"), [("the right one", 404), ("", 401)])
def test_what_does_not_exist(hub: HubServer, tmp_path: Path, token: str, status: int) -> None:
    hub.add_repo("me/tagger", {"config.json": b"{}"})
    *no_repo, no_revision, no_entry = raised_by(
        hub,
        tmp_path,
        "hub.model_info('me/none')",
        "hub.dataset_info('me/tagger')",
        "hub.snapshot_download('me/none')",
        "hub.hf_hub_download('none', 'config.json')",
        "hub.upload_file(path_or_fileobj=b'x', path_in_repo='x.txt', repo_id='me/none')",
        "hub.snapshot_download('me/tagger', revision='none')",
        "hub.hf_hub_download('me/tagger', 'none.json')",
        HF_TOKEN=hub.token if token else "",
    )
    assert {kind for kind, _ in no_repo} == {f"{ERRORS}.RepositoryNotFoundError"}
    assert all(text.startswith(f"{status} Client Error") for _, text in no_repo)
    assert no_revision[0] == f"{ERRORS}.RevisionNotFoundError"
    assert no_entry[0] == f"{ERRORS}.RemoteEntryNotFoundError"


def test_names_that_are_taken_or_of_others(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/tagger", {})
    hub.add_repo("other/tagger", {})
    taken, others, write = raised_by(
        hub,
        tmp_path,
        "hub.create_repo('me/tagger')",
        "hub.create_repo('other/new')",
        "hub.upload_file(path_or_fileobj=b'x', path_in_repo='x.txt', repo_id='other/tagger')",
    )
    assert "409" in taken[1]
    assert "You don't have the rights to create a model under the namespace" in others[1]
    assert write[1].startswith("403 Forbidden")
    assert hub.repos["model", "other/tagger"].files() == {}
    # The same name is free for a data set, and a bare name is a name of the user.
    script = """
import json
from huggingface_hub import create_repo

print(json.dumps([create_repo("tagger", repo_type="dataset"),
                  create_repo("me/tagger", exist_ok=True)]))
"""
    urls = run(hub, tmp_path, script)
    assert urls == [f"{hub.url}/datasets/me/tagger", f"{hub.url}/me/tagger"]


@pytest.mark.parametrize(
    ("request_line", "status", "error"),
    [
        ("POST /api/models/me/tagger/commit/", 500, "HfHubHTTPError"),
        ("PUT /me/tagger.git/info/lfs/", 507, "RuntimeError"),
    ],
)
def test_a_push_that_fails_in_the_middle_changes_nothing(
    hub: HubServer, tmp_path: Path, request_line: str, status: int, error: str
) -> None:
    first = hub.add_repo("me/tagger", {"config.json": b"first"}).commits[-1]
    files = make_model(tmp_path / "model", version=1)
    fault = hub.fail_next(request_line, status=status)
    script = """
import json, sys
from huggingface_hub import list_repo_commits, snapshot_download, upload_folder

def push():
    return upload_folder(repo_id="me/tagger", folder_path=sys.argv[1]).oid

try:
    push()
except Exception as error:
    raised = type(error).__name__
commits = [commit.commit_id for commit in list_repo_commits("me/tagger")]
print(json.dumps([raised, commits, snapshot_download("me/tagger"), push()]))
"""
    raised, commits, snapshot, second = run(hub, tmp_path, script, tmp_path / "model")
    assert fault.remaining == 0
    assert raised == error
    assert commits == [first.oid]
    assert read_folder(snapshot) == {"config.json": b"first"}
    # The server is well again, and the same push goes through.
    assert hub.repos["model", "me/tagger"].files(second) == files


def test_a_connection_that_drops_in_the_middle_of_a_commit(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add_repo("me/tagger", {"config.json": b"first"})
    for during in ("request", "response"):
        hub.drop_connection_on("POST /api/models/me/tagger/commit/", during=during)
    upload = "hub.upload_file(path_or_fileobj=b'{}', path_in_repo='%s.txt', repo_id='me/tagger')"
    raised = raised_by(hub, tmp_path, upload % "a", upload % "b")

    lost = {"ReadError", "WriteError", "RemoteProtocolError"}
    assert {kind.rpartition(".")[2] for kind, _ in raised} <= lost
    # The first commit was never made. The second one was: only the news of it got lost.
    assert repo.files() == {"config.json": b"first", "b.txt": b"{}"}


@pytest.mark.slow
def test_transfers_that_drop_once_go_through_in_the_end(hub: HubServer, tmp_path: Path) -> None:
    files = make_model(tmp_path / "model", version=1)
    weights = "model.safetensors"
    faults = [
        hub.drop_connection_on("PUT ", during="request"),
        hub.drop_connection_on(lambda line: line[:4] == "GET " and line.endswith(weights)),
    ]
    script = f"{PUSH}\nfrom huggingface_hub import snapshot_download\n"
    script += "print(json.dumps(snapshot_download(repo_id)))"
    snapshot = run(hub, tmp_path, script, "me/tagger", tmp_path / "model")
    assert [fault.remaining for fault in faults] == [0, 0]
    assert read_folder(snapshot) == files | {".gitattributes": GITATTRIBUTES}


def test_the_head_of_a_file(hub: HubServer) -> None:
    commit = hub.add_repo("me/tagger", {"a.txt": b"hello\n", "a.bin": b"hello\n"}).commits[-1]
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_address[1], timeout=5)
    heads = []
    for name in ["a.txt", "a.bin", "none.txt"]:
        connection.request("HEAD", f"/me/tagger/resolve/main/{name}")
        answer = connection.getresponse()
        assert answer.read() == b""
        heads.append(answer.headers)
    connection.close()
    assert {head["X-Repo-Commit"] for head in heads} == {commit.oid}
    # What `git hash-object` and `sha256sum` say of the content.
    assert heads[0]["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'
    sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert (heads[1]["X-Linked-Etag"], heads[1]["X-Linked-Size"]) == (f'"{sha256}"', "6")
    assert heads[0]["Content-Length"] == heads[1]["Content-Length"] == "6"
    assert heads[2]["X-Error-Code"] == "EntryNotFound"


@pytest.mark.parametrize(
    ("wanted", "status", "content", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
    ],
)
def test_ranges(
    hub: HubServer, wanted: str, status: int, content: bytes, content_range: str
) -> None:
    hub.add_repo("me/tagger", {"digits.txt": b"0123456789"})
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_address[1], timeout=5)
    path = "/me/tagger/resolve/main/digits.txt"
    connection.request("GET", path, headers={"Range": wanted})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (status, content)
    assert answer.headers["Content-Range"] == content_range
    connection.close()


def test_the_environment_overrules_the_one_around_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("me/tagger", {"config.json": b"{}"})
    for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]:
        monkeypatch.setenv(name, "1")
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    snapshot = run(hub, tmp_path / "home", PULL, "me/tagger", "main")
    assert Path(snapshot).is_relative_to(tmp_path / "home")


@pytest.fixture
def music(hub: HubServer) -> None:
    """Three data sets of the same two sounds: two folders of files, and Parquet."""
    rows = [{"bytes": make_wav(n), "path": f"{n}.wav"} for n in [1, 2]]
    audio_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    audio = pyarrow.array(rows, audio_type)
    features = {
        "audio": {"_type": "Audio", "sampling_rate": 16_000},
        "mood": {"_type": "Value", "dtype": "string"},
    }
    table = pyarrow.table({"audio": audio, "mood": ["calm", "wild"]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    parquet = {"data/train-00000-of-00001.parquet": buffer.getvalue()}

    lines = b'{"file_name": "a.wav", "mood": "calm"}\n{"file_name": "sub/b.wav", "mood": "wild"}\n'
    wavs = {"train/a.wav": make_wav(1), "train/sub/b.wav": make_wav(2)}
    jsonl = wavs | {"train/metadata.jsonl": lines, "README.md": b"---\nlicense: cc0-1.0\n---\n"}
    csv = wavs | {"train/metadata.csv": b"file_name,mood\na.wav,calm\nsub/b.wav,wild\n"}
    for name, files in {"parquet": parquet, "jsonl": jsonl, "csv": csv}.items():
        hub.add_repo(f"me/{name}", files, repo_type="dataset")


SHOW = """
import json
import datasets

def show(splits):
    splits = splits.cast_column("audio", datasets.Audio(decode=False))
    content = lambda audio: (audio["bytes"] or open(audio["path"], "rb").read()).hex()
    return {
        name: [[content(row["audio"]), row["mood"]] for row in split]
        for name, split in splits.items()
    }
"""

SHOWN = {"train": [[make_wav(1).hex(), "calm"], [make_wav(2).hex(), "wild"]]}


@pytest.mark.usefixtures("music")
def test_datasets_loads_audio_inside_parquet(hub: HubServer, tmp_path: Path) -> None:
    script = f"""{SHOW}
try:
    datasets.load_dataset("me/none")
except datasets.exceptions.DatasetNotFoundError as error:
    missing = str(error)
print(json.dumps([show(datasets.load_dataset("me/parquet")), missing]))
"""
    shown, missing = run(hub, tmp_path, script)
    assert shown == SHOWN
    assert missing == "Dataset 'me/none' doesn't exist on the Hub or cannot be accessed."


@pytest.mark.usefixtures("music")
def test_datasets_loads_folders_of_audio_files(hub: HubServer, tmp_path: Path) -> None:
    # `load_dataset` alone needs torchcodec here: it asks for an encoder even of files that are
    # kept as they are. A builder with a feature that does not encode needs none.
    script = f"""{SHOW}
class KeptAudio(datasets.Audio):
    def encode_example(self, value):
        return {{"bytes": None, "path": value}} if isinstance(value, str) else value

def load(repo_id):
    builder = datasets.load_dataset_builder(repo_id)
    builder.BASE_FEATURE = KeptAudio
    builder.download_and_prepare()
    return builder.as_dataset()

print(json.dumps([show(load("me/csv")), show(load("me/jsonl"))]))
"""
    assert run(hub, tmp_path, script) == [SHOWN, SHOWN]
