"""A server that speaks the file interface of a model hub: what `huggingface_hub` asks to settle revisions, list and fetch."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_right"


@dataclass
class FakeHub:
    """`repositories[name][commit][path]` are contents; `revisions[name]` names commits; who asks for one in `private` gets 401."""

    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    """Paths whose content arrives with a byte changed."""
    lies: dict[str, str | None] = field(default_factory=dict)
    """Headers that files are announced with in place of the true ones; None: left out."""
    sha: object = ""
    """Where given: what a revision is said to be, in place of the commit."""
    raw: dict[str, bytes] = field(default_factory=dict)
    """Answers to `revision` and `tree`, in place of the true ones."""
    endless: bool = False
    """Whether the content of files never ends."""
    asked: list[str] = field(default_factory=list)
    """Method and address of every request."""
    url: str = ""

    def put(self, repo: str, files: dict[str, bytes], revision: str = "main") -> str:
        """A commit with `files`, which `revision` names from now on."""
        texts = [f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(files.items())]
        commit = hashlib.sha1("\n".join(texts).encode(), usedforsecurity=False).hexdigest()
        self.repositories.setdefault(repo, {})[commit] = files
        self.revisions.setdefault(repo, {})[revision] = commit
        return commit


def files_below(directory: Path, prefix: str = "") -> dict[str, bytes]:
    """Contents by their paths, as `FakeHub.put` takes them."""
    return {
        prefix + path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, place: Path) -> None:
    """Let `huggingface_hub` in this process ask it, without a token, and keep its cache in `place`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextlib.contextmanager
def fake_hub() -> Generator[FakeHub]:
    """The server on a port of 127.0.0.1."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            _answer(self, hub)

        def do_POST(self) -> None:
            _take(self, hub)

        def do_HEAD(self) -> None:
            _answer(self, hub)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _answer(handler: BaseHTTPRequestHandler, hub: FakeHub) -> None:
    parts = [unquote(part) for part in urlsplit(handler.path).path.strip("/").split("/")]
    hub.asked.append(f"{handler.command} /{'/'.join(parts)}")
    repo = "/".join(parts[2:4]) if parts[:2] == ["api", "models"] else "/".join(parts[:2])
    if repo in hub.private or repo not in hub.repositories:
        _send(
            handler,
            401,
            b"Invalid username or password.",
            {"X-Error-Code": "RepoNotFound"},
        )
        return
    if repo in hub.gated:
        _send(handler, 403, b"gated", {"X-Error-Code": "GatedRepo"})
        return
    rest = parts[4:] if parts[0] == "api" else parts[2:]
    what, revision = (rest[0], rest[1]) if rest else ("revision", "main")
    commit = hub.revisions[repo].get(revision, revision)
    files = hub.repositories[repo].get(commit)
    if files is None:
        _send(handler, 404, b"Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
    elif what in hub.raw:
        _send(handler, 200, hub.raw[what])
    elif what == "revision":
        siblings = [{"rfilename": name} for name in files]
        _send(
            handler, 200, json.dumps({"_id": "1", "id": repo, "sha": hub.sha or commit, "siblings": siblings}).encode()
        )
    elif what == "tree":
        listing = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()
        ]
        _send(handler, 200, json.dumps(listing).encode())
    else:
        _send_file(handler, hub, files, "/".join(rest[2:]), commit)


def _take(handler: BaseHTTPRequestHandler, hub: FakeHub) -> None:
    """A repository is made, or a commit of files in one JSON line each; only who has the token may."""
    content = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
    parts = [unquote(part) for part in urlsplit(handler.path).path.strip("/").split("/")]
    hub.asked.append(f"{handler.command} /{'/'.join(parts)}")
    if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
        _send(handler, 401, b'{"error": "Invalid username or password."}')
        return
    if parts == ["api", "repos", "create"]:
        asked = json.loads(content)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if repo in hub.repositories:
            _send(handler, 409, json.dumps({"url": f"{hub.url}/{repo}", "error": "exists"}).encode())
            return
        hub.put(repo, {".gitattributes": b""})
        _send(handler, 200, json.dumps({"url": f"{hub.url}/{repo}"}).encode())
    elif parts == ["api", "validate-yaml"]:
        _send(handler, 200, b'{"errors": [], "warnings": []}')
    elif parts[4] == "preupload":
        modes = [
            {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
            for one in json.loads(content)["files"]
        ]
        _send(handler, 200, json.dumps({"files": modes}).encode())
    else:
        repo, revision = "/".join(parts[2:4]), parts[5]
        files = dict(hub.repositories[repo][hub.revisions[repo][revision]])
        for line in content.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = hub.put(repo, files, revision)
        answer = {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit, "success": True}
        _send(handler, 200, json.dumps(answer).encode())


def _send_file(handler: BaseHTTPRequestHandler, hub: FakeHub, files: dict[str, bytes], name: str, commit: str) -> None:
    if name not in files:
        _send(handler, 404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return
    content = files[name]
    digest = hashlib.sha256(content).hexdigest()
    if name in hub.damaged:
        content = bytes([content[0] ^ 1]) + content[1:]
    large = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
    headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', **large, **hub.lies}
    if hub.endless and handler.command == "GET":
        _send_for_ever(handler, headers)
    else:
        _send(handler, 200, content, headers)


def _send_for_ever(handler: BaseHTTPRequestHandler, headers: dict[str, str | None]) -> None:
    """A megabyte after another, until the client has hung up."""
    handler.close_connection = True
    handler.send_response(200)
    for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        while True:
            handler.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")


def _send(
    handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str | None] | None = None
) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        if value is not None:
            handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)
