"""A Hugging Face Hub on the loopback, in memory, for tests with the real `huggingface_hub`.

`HubServer` speaks the part of the Hub's protocol that `huggingface_hub`, `transformers` and
`datasets` use to create, write and read repositories of models, data sets and Spaces. It answers as the Hub
does where a client can tell the difference: the status, the `X-Error-Code` and `X-Error-Message`
headers, the ETags and the regular and LFS upload modes. It can also be told to fail.

`huggingface_hub` reads its settings when it is imported, so a client runs in a process of its own:

    with HubServer() as hub:
        hub.add_repo("me/tagger", {"config.json": b"{}"})
        subprocess.run([sys.executable, "push.py"], env=os.environ | hub.environment(tmp_path))
        assert hub.repos["model", "me/tagger"].files()["config.json"] == b"{}"

The user of the server is `me`. Repositories are public; writing needs the token. There is one
branch, `main`; every commit can be read by its id. Xet storage, pull requests, tags, gated and
private repositories are not served.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

USER = "me"

# The Hub stores a file in LFS by its name, as the .gitattributes of a new repository says, or when
# it is larger than 10 MB.
LFS_SUFFIXES = frozenset({".bin", ".npz", ".onnx", ".parquet", ".pt", ".safetensors", ".zip"})
LFS_THRESHOLD_BYTES = 10_000_000
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES)
).encode()

RepoType = Literal["model", "dataset", "space"]
Match = str | Callable[[str], bool]
"""Which requests: a prefix of "METHOD /path", or a function of that line."""


class Request(NamedTuple):
    """A request as the server received it.

    Attributes:
        method: For example `"GET"`.
        path: Path and query, as sent.
        headers: Names in lower case, for example `{"authorization": "Bearer hf_..."}`.
    """

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A state of a repository.

    Attributes:
        oid: Forty hexadecimal digits.
        title: First line of the commit message.
        date: When the server took it, in UTC.
        files: Every file of this state, by its path.
    """

    oid: str
    title: str
    date: datetime
    files: Mapping[str, bytes]


@dataclass
class Repo:
    """A repository: its commits on `main`, the oldest first."""

    repo_id: str
    repo_type: RepoType
    commits: list[Commit] = field(default_factory=list)

    def commit(self, title: str, files: Mapping[str, bytes]) -> Commit:
        """Make `files` the new state of `main`."""
        digest = hashlib.sha1(f"{self.repo_type} {self.repo_id} {len(self.commits)}".encode())
        for path, content in sorted(files.items()):
            digest.update(f"\n{path} {git_oid(content)}".encode())
        commit = Commit(
            oid=digest.hexdigest(), title=title, date=datetime.now(UTC), files=dict(files)
        )
        self.commits.append(commit)
        return commit

    def find(self, revision: str) -> Commit | None:
        """The commit that `main` or a commit id names; None if there is none."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)

    def files(self, revision: str = "main") -> Mapping[str, bytes]:
        """The files of a revision by path.

        Raises:
            KeyError: There is no such revision.
        """
        commit = self.find(revision)
        if commit is None:
            raise KeyError(revision)
        return commit.files


@dataclass
class Fault:
    """A failure to come.

    Attributes:
        match: The requests that it hits.
        remaining: How many more it hits. Zero when it is used up; set it to zero to call it off.
        status: What to answer; None to drop the connection instead.
        drop_during: Half of what is sent before the connection drops: half of the request is read
            and nothing is done, or the request is carried out and half of the answer is sent.
    """

    match: Match
    remaining: int
    status: int | None = None
    drop_during: Literal["request", "response"] | None = None

    def hits(self, line: str) -> bool:
        """Whether it hits the request with this "METHOD /path" line."""
        if self.remaining <= 0:
            return False
        return line.startswith(self.match) if isinstance(self.match, str) else self.match(line)


class HubServer(ThreadingHTTPServer):
    """The server; use it as a context manager.

    Attributes:
        token: The one access token it accepts, new for each server.
        repos: The repositories, by type and id.
        requests: Every request received, in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = f"hf_{secrets.token_hex(17)}"
        self.repos: dict[tuple[RepoType, str], Repo] = {}
        self.requests: list[Request] = []
        self.lfs_objects: dict[str, bytes] = {}
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        # The default poll would make every stop wait half a second.
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is to be, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a client: `subprocess.run(..., env=os.environ | hub.environment(home))`.

        Args:
            home: A folder for the client's caches; nothing outside it is read or written.
        """
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes], repo_type: RepoType = "model"
    ) -> Repo:
        """Put a repository on the server, or a new commit with exactly `files` on it.

        Args:
            repo_id: For example `"me/music"`; any namespace.
            files: Content by path.
            repo_type: `"model"`, `"dataset"` or `"space"`.
        """
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_id, repo_type))
            repo.commit("Add files", files)
        return repo

    def fail_next(self, match: Match, *, status: int = 500, times: int = 1) -> Fault:
        """Answer the next requests that match with an error; nothing is carried out.

        The client repeats most requests that get 408, 429, 500, 502, 503 or 504, after 1, 2, 4, 8
        and 8 seconds. It never repeats the creation of a repository, a commit, `whoami` or
        `model_info`, nor any request that gets another status, such as 507.

        Args:
            match: A prefix of "METHOD /path", such as `"POST /api/models/me/tagger/commit/"`, or a
                function of that line.
            status: The status to answer with, 400 to 599.
            times: How many requests fail.

        Returns:
            The fault; its `remaining` counts down.
        """
        return self._add(Fault(match, times, status=status))

    def drop_connection_on(
        self, match: Match, *, during: Literal["request", "response"] = "response", times: int = 1
    ) -> Fault:
        """Close the connection in the middle of the next requests that match.

        Args:
            match: As in `fail_next`.
            during: `"request"`: after half of the request's body, and nothing is carried out;
                `"response"`: after the request is carried out and half of the answer is sent.
            times: How many requests it hits.

        Returns:
            The fault; its `remaining` counts down.
        """
        return self._add(Fault(match, times, drop_during=during))

    def _add(self, fault: Fault) -> Fault:
        with self.lock:
            self._faults.append(fault)
        return fault

    def take_fault(self, line: str) -> Fault | None:
        """The oldest fault that hits this "METHOD /path", which then has one hit less."""
        with self.lock:
            fault = next((fault for fault in self._faults if fault.hits(line)), None)
            if fault is not None:
                fault.remaining -= 1
            return fault


def git_oid(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_oid(content: bytes) -> str:
    """The id that LFS gives a file."""
    return hashlib.sha256(content).hexdigest()


def uses_lfs(path: str, num_bytes: int) -> bool:
    """Whether the Hub stores a file of this name and size in LFS; empty files never are."""
    by_name = PurePosixPath(path).suffix in LFS_SUFFIXES
    return num_bytes > 0 and (by_name or num_bytes > LFS_THRESHOLD_BYTES)


@dataclass(frozen=True)
class _Reply:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> _Reply:
    content_type = {"Content-Type": "application/json; charset=utf-8"}
    return _Reply(json.dumps(value).encode(), status, content_type | dict(headers or {}))


def _error(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> _Reply:
    named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    body = {"error": message, "errors": [{"message": message}]}
    return _json(body, status, named | dict(headers or {}))


class _RefusedError(Exception):
    def __init__(self, reply: _Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class _DroppedError(Exception):
    """The connection is to be closed as it is."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    body: bytes
    query: dict[str, list[str]]

    # -- one request, from the socket to the socket -------------------------------------------

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.command, self.path, headers))
        fault = self.server.take_fault(f"{self.command} {self.path}")
        try:
            self.body = self._read_body(half=fault is not None and fault.drop_during == "request")
            if fault is not None and fault.status is not None:
                reply = _error(fault.status, "The server was told to fail")
            else:
                try:
                    reply = self._answer()
                except _RefusedError as refused:
                    reply = refused.reply
            self._send(reply, half=fault is not None and fault.drop_during == "response")
        except _DroppedError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while num_bytes := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(num_bytes // 2 if half else num_bytes))
                if half:
                    break
                self.rfile.readline()
            else:
                self.rfile.readline()
            body = b"".join(chunks)
        else:
            num_bytes = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(num_bytes // 2 if half else num_bytes)
        if half:
            raise _DroppedError
        return body

    def _send(self, reply: _Reply, *, half: bool) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if half else reply.body)
        if half:
            raise _DroppedError

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `HubServer.requests` is the log."""

    # -- who is asking, for what ----------------------------------------------------------------

    def _answer(self) -> _Reply:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        wanted = "GET" if self.command == "HEAD" else self.command
        with self.server.lock:
            # The Hub refuses a wrong token even where none is needed.
            if self._sent_token() not in (None, self.server.token):
                raise _RefusedError(_error(401, "Invalid credentials in Authorization header"))
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if method == wanted and match is not None:
                    groups = match.groupdict(default="")
                    return answer(self, **{name: unquote(groups[name]) for name in groups})
        return _error(404, f"This server does not answer {self.command} {url.path}")

    def _sent_token(self) -> str | None:
        header = self.headers.get("Authorization")
        return None if header is None else header.removeprefix("Bearer ")

    def _require_token(self, code: str | None = None) -> None:
        if self._sent_token() is None:
            raise _RefusedError(_error(401, "Invalid username or password.", code))

    def _repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.server.repos.get((_repo_type(kind), repo_id))
        if repo is None:
            # To a stranger, the Hub does not tell a missing repository from a private one.
            status, message = (404, "Repository not found")
            if self._sent_token() is None:
                status, message = (401, "Invalid username or password.")
            raise _RefusedError(_error(status, message, "RepoNotFound"))
        return repo

    def _writable_repo(self, kind: str, repo_id: str) -> Repo:
        # The client reads a bare 401 of a repository as "not found", but from https only.
        self._require_token("RepoNotFound")
        repo = self._repo(kind, repo_id)
        if not repo_id.startswith(f"{USER}/"):
            raise _RefusedError(_error(403, "Authorization error."))
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            message = f"Invalid rev id: {revision}"
            raise _RefusedError(_error(404, message, "RevisionNotFound"))
        return commit

    # -- accounts and repositories ----------------------------------------------------------------

    def _whoami(self) -> _Reply:
        self._require_token()
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return _json({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": access})

    def _create(self) -> _Reply:
        self._require_token()
        wanted = json.loads(self.body)
        repo_type: RepoType = wanted.get("type") or "model"
        if repo_type == "space" and not wanted.get("sdk"):
            raise _RefusedError(_error(400, "A Space needs an sdk"))
        namespace = wanted.get("organization") or USER
        if namespace != USER:
            rights = f"You don't have the rights to create a {repo_type} under the namespace"
            raise _RefusedError(_error(403, f'{rights} "{namespace}"'))
        repo_id = f"{namespace}/{wanted['name']}"
        url = f"{self.server.url}/{_page_path(repo_type, repo_id)}"
        if (repo_type, repo_id) in self.server.repos:
            return _json({"error": f"You already created this {repo_type} repo", "url": url}, 409)
        repo = self.server.repos[repo_type, repo_id] = Repo(repo_id, repo_type)
        repo.commit("initial commit", {".gitattributes": GITATTRIBUTES})
        return _json({"url": url, "name": repo_id})

    def _validate_yaml(self) -> _Reply:
        content = json.loads(self.body)["content"]
        has_metadata = re.match(r"---[ \t]*\r?\n.*?\n---", content, re.DOTALL)
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return _json({"errors": [], "warnings": [] if has_metadata else [warning]})

    # -- reading ------------------------------------------------------------------------------

    def _info(self, kind: str, repo_id: str, revision: str = "main") -> _Reply:
        repo = self._repo(kind, repo_id)
        commit = self._commit(repo, revision)
        siblings: list[dict[str, Any]] = []
        for path, content in sorted(commit.files.items()):
            entry = _file_entry(path, content)
            details = {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                details["lfs"] = {"sha256": entry["lfs"]["oid"]} | entry["lfs"]
            siblings.append({"rfilename": path} | (details if "blobs" in self.query else {}))
        return _json(
            {
                "id": repo_id,
                "author": repo_id.rpartition("/")[0],
                "sha": commit.oid,
                "lastModified": _timestamp(commit.date),
                "createdAt": _timestamp(repo.commits[0].date),
                "private": False,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _refs(self, kind: str, repo_id: str) -> _Reply:
        head = self._commit(self._repo(kind, repo_id), "main")
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": head.oid}
        return _json({"branches": [branch], "converts": [], "tags": [], "pullRequests": []})

    def _commits(self, kind: str, repo_id: str, revision: str) -> _Reply:
        repo = self._repo(kind, repo_id)
        newest = repo.commits.index(self._commit(repo, revision))
        return _json(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": "",
                    "authors": [{"user": USER}],
                    "date": _timestamp(commit.date),
                }
                for commit in reversed(repo.commits[: newest + 1])
            ]
        )

    def _tree(self, kind: str, repo_id: str, revision: str, folder: str = "") -> _Reply:
        commit = self._commit(self._repo(kind, repo_id), revision)
        entries = _entries(commit)
        if folder and entries.get(folder, {}).get("type") != "directory":
            message = f"{folder} does not exist on {revision!r}"
            raise _RefusedError(_error(404, message, "EntryNotFound"))
        is_recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix)]
        return _json(
            [e for e in inside if is_recursive or "/" not in e["path"].removeprefix(prefix)]
        )

    def _paths_info(self, kind: str, repo_id: str, revision: str) -> _Reply:
        entries = _entries(self._commit(self._repo(kind, repo_id), revision))
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        return _json([entries[path] for path in paths if path in entries])

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> _Reply:
        commit = self._commit(self._repo(kind, repo_id), revision)
        named = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise _RefusedError(_error(404, "Entry not found", "EntryNotFound", named))
        content = commit.files[path]
        is_lfs = uses_lfs(path, len(content))
        etag = f'"{lfs_oid(content) if is_lfs else git_oid(content)}"'
        named |= {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if is_lfs:
            named |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return _Reply(content, 200, named)
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return _Reply(b"", 416, named | {"Content-Range": f"bytes */{len(content)}"})
        named["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return _Reply(content[first : last + 1], 206, named)

    # -- writing ------------------------------------------------------------------------------

    def _preupload(self, kind: str, repo_id: str, revision: str) -> _Reply:
        files = self._commit(self._writable_repo(kind, repo_id), revision).files
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            is_lfs = uses_lfs(path, wanted["size"])
            answer = {"path": path, "uploadMode": "lfs" if is_lfs else "regular"}
            if path in files:
                # By this id the client sees that a file has not changed.
                answer["oid"] = (lfs_oid if is_lfs else git_oid)(files[path])
            answers.append(answer | {"shouldIgnore": False})
        return _json({"files": answers})

    def _lfs_batch(self, kind: str, repo_id: str) -> _Reply:
        self._writable_repo(kind, repo_id)
        base = f"{self.server.url}/{_page_path(kind, repo_id)}.git/info/lfs/objects"
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.lfs_objects:
                answer["actions"] = {
                    "upload": {"href": f"{base}/{wanted['oid']}"},
                    "verify": {"href": f"{base}/verify"},
                }
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, kind: str, repo_id: str, oid: str) -> _Reply:
        # No token here: on the Hub this address is a signed one of a storage service.
        if lfs_oid(self.body) != oid:
            return _error(400, f"{len(self.body)} bytes that do not hash to {oid}")
        self.server.lfs_objects[oid] = self.body
        return _Reply()

    def _lfs_verify(self, kind: str, repo_id: str) -> _Reply:
        self._writable_repo(kind, repo_id)
        oid = json.loads(self.body)["oid"]
        if oid not in self.server.lfs_objects:
            return _error(404, f"No LFS object {oid}")
        return _json({})

    def _push(self, kind: str, repo_id: str, revision: str) -> _Reply:
        repo = self._writable_repo(kind, repo_id)
        files = dict(self._commit(repo, revision).files)
        if revision != "main":
            return _error(400, f"Commits go to the branch main, not to {revision}")
        title = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.server.lfs_objects:
                        return _error(400, f"LFS pointer to a missing object: {value['path']}")
                    files[value["path"]] = self.server.lfs_objects[value["oid"]]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        message = f"A file with this name doesn't exist: {value['path']}"
                        return _error(404, message, "EntryNotFound")
                case "deletedFolder":
                    folder = value["path"].rstrip("/") + "/"
                    files = {p: content for p, content in files.items() if not p.startswith(folder)}
        commit = repo.commit(title, files)
        page = f"{self.server.url}/{_page_path(kind, repo_id)}/commit/{commit.oid}"
        return _json({"success": True, "commitOid": commit.oid, "commitUrl": page})


def _timestamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _repo_type(kind: str) -> RepoType:
    """Return the type of a repository from a part of an address, such as "datasets/", or from itself."""
    if kind.startswith("dataset"):
        return "dataset"
    return "space" if kind.startswith("space") else "model"


def _page_path(kind: str, repo_id: str) -> str:
    repo_type = _repo_type(kind)
    return repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}"


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if uses_lfs(path, len(content)):
        sha256 = lfs_oid(content)
        spec = "https://git-lfs.github.com/spec/v1"
        pointer = f"version {spec}\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry["oid"] = git_oid(pointer)
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return entry


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """The files and folders of a commit by path, as the tree of the Hub describes them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in commit.files.items():
        for parent in PurePosixPath(path).parents[:-1]:
            folder = str(parent)
            entries[folder] = {
                "type": "directory",
                "path": folder,
                "size": 0,
                "oid": git_oid(f"{commit.oid} {folder}".encode()),
            }
        entries[path] = _file_entry(path, content)
    return dict(sorted(entries.items()))


# A repository id is "name" or "namespace/name". Revisions and folders come with quoted slashes.
_ID = r"(?P<repo_id>[^/]+(?:/[^/]+)??)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_PAGE = rf"/(?P<kind>datasets/|spaces/|){_ID}"
_LFS = rf"{_PAGE}\.git/info/lfs/objects"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., _Reply]], ...] = (
    ("GET", r"/api/whoami-v2", _Handler._whoami),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate_yaml),
    ("GET", rf"{_API}/revision/{_REVISION}", _Handler._info),
    ("GET", rf"{_API}/refs", _Handler._refs),
    ("GET", rf"{_API}/commits/{_REVISION}", _Handler._commits),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler._tree),
    ("POST", rf"{_API}/paths-info/{_REVISION}", _Handler._paths_info),
    ("POST", rf"{_API}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", _Handler._push),
    ("GET", _API, _Handler._info),
    ("GET", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", _Handler._resolve),
    ("POST", rf"{_LFS}/batch", _Handler._lfs_batch),
    ("POST", rf"{_LFS}/verify", _Handler._lfs_verify),
    ("PUT", rf"{_LFS}/(?P<oid>[0-9a-f]{{64}})", _Handler._lfs_put),
)
