"""A stand-in for the Hugging Face hub: the part of its HTTP interface that huggingface_hub uses for models.

    with HubServer() as server:           # server.url, for HF_ENDPOINT
        server.put("user/repo", {"a.safetensors": b"..."})

It has repositories with commits, branches, private and gated ones, large files (LFS) with range requests, and checks of
a model card's metadata. It can cut a connection in the middle of a file. The hub's Xet storage is not part of it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"
Files = dict[str, bytes]


@dataclass
class Repo:
    """A repository: the files of each commit, the commit of each branch, and its messages."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict[str, Files])
    branches: dict[str, str] = field(default_factory=dict[str, str])
    messages: list[str] = field(default_factory=list[str])

    def commit(self, files: Mapping[str, bytes], message: str, branch: str = "main") -> str:
        """Add a commit with these files on top of a branch; returns its id."""
        everything = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        digest = hashlib.sha1(f"{len(self.commits)} {message} {sorted(everything)}".encode()).hexdigest()
        self.commits[digest] = everything
        self.branches[branch] = digest
        self.messages.append(message)
        return digest

    def at(self, revision: str) -> str | None:
        """The commit of a branch, or a commit that there is."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """The server, running in a thread within a `with` block.

    Attributes:
        repos: repositories by `user/repo`.
        large: contents of large files by their SHA-256.
        cuts: for each coming answer with a file, the bytes after which its connection breaks; None: no more answers.
        requests: methods and paths, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(
        self,
        repo: str,
        files: Mapping[str, bytes],
        branch: str = "main",
        *,
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Add a commit to a repository, new if there is none; returns its id."""
        return self.repos.setdefault(repo, Repo(private, gated)).commit(files, "put", branch)

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for verb, pattern, function in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in verb.split():
                    function(self, *found.groups(), body=body, query=parse_qs(url.query))
                    return
            raise _Refusal(404, message=f"no route {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(
                json.dumps({"error": refusal.message}).encode(), refusal.status, {k: v for k, v in headers.items() if v}
            )

    def _send(self, data: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    # who asks

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token != TOKEN:
            raise _Refusal(401, message="Invalid credentials in Authorization header")
        return token

    def _writer(self, owner: str) -> None:
        if self._token() is None:
            raise _Refusal(401, message="Invalid username or password.")
        if owner != "user":
            raise _Refusal(403, message=f"You don't have the rights to create a model under the namespace {owner}")

    def _repo(self, name: str) -> Repo:
        token = self._token()
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and token is None):
            if token is None:  # the hub does not say whether there is one
                raise _Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        commit = repo.at(revision)
        if commit is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # reading

    def info(self, name: str, revision: str | None, body: bytes, query: Mapping[str, list[str]]) -> None:
        repo = self._repo(name)
        commit = self._commit_of(repo, revision or "main") if repo.commits or revision else ""
        files = [{"rfilename": path} for path in sorted(repo.commits.get(commit, {}))]
        self._json({"id": name, "modelId": name, "sha": commit, "private": repo.private, "tags": [], "siblings": files})

    def tree(self, name: str, revision: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        repo = self._repo(name)
        files = repo.commits[self._commit_of(repo, revision)]
        self._json([self._entry(path, data) for path, data in sorted(files.items())])

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
        if _is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def file(self, name: str, revision: str, path: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        repo = self._repo(name)
        if repo.gated:
            raise _Refusal(403, "GatedRepo", f"Access to model {name} is restricted")
        commit = self._commit_of(repo, revision)
        data = repo.commits[commit].get(path)
        if data is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(data).hexdigest() if _is_large(path) else _blob_id(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, end, status = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, end, status = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(data), len(data)), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        headers |= {"Content-Length": str(end - start), "Content-Type": "application/octet-stream"}
        if self.command == "GET" and self.server.cuts and path.endswith(".safetensors") and not asked_for_header(asked):
            cut = self.server.cuts.pop(0)
            self._send(data[start : min(start + cut, end)], status, headers)
            self.close_connection = True
            return
        self._send(data[start:end], status, headers)

    # writing

    def create(self, body: bytes, query: Mapping[str, list[str]]) -> None:
        asked = json.loads(body)
        owner = asked.get("organization") or "user"
        self._writer(owner)
        name = f"{owner}/{asked['name']}"
        if name in self.server.repos:
            self._json({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.server.repos[name] = Repo(private=private)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        self._json({"url": f"{self.server.url}/{name}", "name": name})

    def branch(self, name: str, branch: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        self._writer(name.partition("/")[0])
        repo = self._repo(name)
        if branch in repo.branches:
            raise _Refusal(409, message=f"Reference already exists: {branch}")
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def preupload(self, name: str, revision: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        self._writer(name.partition("/")[0])
        repo = self._repo(name)
        there = repo.commits[self._commit_of(repo, revision)]
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], there[file["path"]]) if file["path"] in there else None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, name: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        self._writer(name.partition("/")[0])
        objects: list[dict[str, Any]] = []
        for one in json.loads(body)["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}"
            there = one["oid"] in self.server.large
            objects.append({**one, **({} if there else {"actions": {"upload": {"href": href}}})})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, message="the content is not that of its id")
        self.server.large[oid] = body
        self._json({})

    def commit(self, name: str, revision: str, body: bytes, query: Mapping[str, list[str]]) -> None:
        self._writer(name.partition("/")[0])
        repo = self._repo(name)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        files: Files = {}
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                raise _Refusal(400, message=f"unknown operation {one['key']}")
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != self._commit_of(repo, revision):
            raise _Refusal(412, message="A commit has happened since. Please refresh and try again.")
        commit = repo.commit(files, header["value"]["summary"], revision)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def validate(self, body: bytes, query: Mapping[str, list[str]]) -> None:
        errors = list(card_errors(json.loads(body)["content"]))
        self._json({"errors": [{"message": one} for one in errors], "warnings": []}, 400 if errors else 200)


def asked_for_header(asked: re.Match[str] | None) -> bool:
    """Whether a range is the first bytes of a file, which its header is read from."""
    return asked is not None and asked[1] == "0" and bool(asked[2])


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{_REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.upload),
    ("GET", rf"/api/models/{_REPO}/tree/(.+)", _Handler.tree),
    ("GET", rf"/api/models/{_REPO}(?:/revision/(.+))?", _Handler.info),
    ("GET HEAD", rf"/{_REPO}/resolve/([^/]+|refs/pr/\d+)/(.+)", _Handler.file),
)


def card_errors(content: str) -> Iterable[str]:
    """Yield what the hub refuses in a model card's metadata, as far as its documentation says."""
    found = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        yield "metadata is missing"
        return
    relations = ("adapter", "merge", "quantized", "finetune")
    if data.get("base_model_relation") not in (None, *relations):
        yield f'"base_model_relation" must be one of {relations}'
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(data.get("base_model", "a/b"))):
        yield '"base_model" with value is not valid. Use a model id from https://hf.co/models'
    if data.get("license") not in (None, "apache-2.0", "cc-by-nc-4.0", "mit", "other"):
        yield '"license" must be one of the licenses of the hub'
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        yield '"tags" must be strings'


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png", ".jpg"))


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_large(path) else _blob_id(data)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
