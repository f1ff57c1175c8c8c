"""A small Hub on loopback, with the endpoints that huggingface_hub uses for up- and downloads.

Files are transferred by the Hub's LFS protocol, which huggingface_hub uses if HF_HUB_DISABLE_XET=1
is set.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest


def forget_connections() -> None:
    """Make huggingface_hub connect anew. Before version 1, connections keep the offline mode."""
    import huggingface_hub.utils  # tests/conftest.py sets the Hub's address first

    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put huggingface_hub into its offline mode, as HF_HUB_OFFLINE=1 does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    forget_connections()


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    private: bool = False
    commits: int = 0
    # Each test has another salt. With equal hashes, huggingface_hub would answer from its cache.
    salt: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.salt} {self.commits}".encode()).hexdigest()

    def etag(self, name: str) -> str:
        return hashlib.sha256(f"{self.salt} ".encode() + self.files[name]).hexdigest()


class Hub(ThreadingHTTPServer):
    """A Hub with its repositories in memory. The Hub listens after start()."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()
        self.salt = 0
        self.clear()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def clear(self) -> None:
        self.salt += 1
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.served_bytes = 0
        # Key "METHOD part-of-path": the number of requests of this kind to cut off halfway.
        self.cuts: dict[str, int] = {}

    def add(self, repo_id: str, files: dict[str, bytes]) -> None:
        repository = self.repositories.setdefault(repo_id, Repository(salt=self.salt))
        repository.files.update(files)
        repository.commits += 1

    def count(self, method: str, part: str) -> int:
        return sum(method == verb and part in path for verb, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the second write of an answer waits 40 ms for the first one to be acknowledged.
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((method, path))
        for pattern, serve in ROUTES.items():
            verb, _, rest = pattern.partition(" ")
            if verb in (method, "ANY") and (match := re.fullmatch(rest, path)):
                return serve(self, **match.groupdict())
        return self._json({"error": f"no route for {method} {path}"}, 404)

    def _cut(self) -> bool:
        for pattern, left in self.server.cuts.items():
            verb, _, part = pattern.partition(" ")
            if verb == self.command and part in self.path and left > 0:
                self.server.cuts[pattern] -= 1
                return True
        return False

    def _body(self) -> bytes:
        size = int(self.headers.get("Content-Length", 0))
        if self._cut():
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            raise ConnectionAbortedError
        return self.rfile.read(size)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        cut = self.command == "GET" and self._cut()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.served_bytes += len(body)
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _repository(self, repo: str) -> Repository | None:
        found = self.server.repositories.get(repo)
        if found is None:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return found

    def create(self) -> None:
        asked = json.loads(self._body())
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.server.repositories:
            return self._json({"error": "exists", "url": f"{self.server.url}/{repo}"}, 409)
        # huggingface_hub sends `private` before version 1, and `visibility` since.
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.server.repositories[repo] = Repository(private=private, salt=self.server.salt)
        return self._json({"url": f"{self.server.url}/{repo}"})

    def info(self, repo: str) -> None:
        if repository := self._repository(repo):
            files = [{"rfilename": name} for name in repository.files]
            self._json({"id": repo, "modelId": repo, "sha": repository.sha, "siblings": files})

    def tree(self, repo: str) -> None:
        if repository := self._repository(repo):
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": repository.etag(name)}
                    for name, data in repository.files.items()
                ]
            )

    def file(self, repo: str, name: str) -> None:
        repository = self._repository(repo)
        if repository is None:
            return
        data = repository.files.get(name)
        headers = {"X_Repo_Commit": repository.sha}
        if data is None:
            self._json({"error": "no such file"}, 404, X_Error_Code="EntryNotFound", **headers)
            return
        headers["ETag"] = f'"{repository.etag(name)}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, **headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(data) - 1)
        headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206, data[start : end + 1], **headers)

    def validate(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    def preupload(self, repo: str) -> None:
        asked = json.loads(self._body())["files"]
        if self._repository(repo) is not None:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in asked
            ]
            self._json({"files": modes})

    def batch(self, repo: str) -> None:
        objects = json.loads(self._body())["objects"]
        for one in objects:
            if one["oid"] not in self.server.objects:
                href = f"{self.server.url}/objects/{one['oid']}"
                one["actions"] = {"upload": {"href": href}}
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self._json({"error": "other content than announced"}, 400)
        self.server.objects[oid] = data
        return self._send(200, b"")

    def commit(self, repo: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        repository = self._repository(repo)
        if repository is None:
            return
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.objects[value["oid"]]
                repository.large.add(value["path"])
        repository.commits += 1
        url = f"{self.server.url}/{repo}/commit/{repository.sha}"
        self._json({"commitUrl": url, "commitOid": repository.sha, "success": True})


LARGE = (".safetensors", ".pt", ".pkl")
_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate,
    rf"GET /api/models/{_REPO}(/revision/[^/]+)?": _Handler.info,
    rf"GET /api/models/{_REPO}/tree/[^/]+": _Handler.tree,
    rf"POST /api/models/{_REPO}/preupload/[^/]+": _Handler.preupload,
    rf"POST /api/models/{_REPO}/commit/[^/]+": _Handler.commit,
    rf"POST /{_REPO}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /objects/(?P<oid>\w+)": _Handler.put,
    rf"ANY /{_REPO}/resolve/[^/]+/(?P<name>.+)": _Handler.file,
}
