"""A Hugging Face hub in miniature: what `huggingface_hub` asks for to create repositories, upload and download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory: every commit holds all files; ``main`` is the last.

    Attributes
    ----------
    commits : dict
        Repository to its commits, in order: (hash, files).
    fetched : list of str
        Names of the files that were sent.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.fetched: list[str] = []
        self.url = ""

    def commit(self, repo: str, changes: dict[str, bytes]) -> str:
        history = self.commits.setdefault(repo, [])
        files = {**(history[-1][1] if history else {}), **changes}
        name = hashlib.sha1(repr((len(history), sorted(files.items()))).encode()).hexdigest()
        history.append((name, files))
        return name

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        history = self.commits[repo]
        return history[-1] if revision == "main" else next((c for c in history if c[0] == revision), None)


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve a hub of its own."""
    served = Hub()

    class Handler(_Handler):
        hub = served

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path):
            found = self._found(match[1], match[3] or "main")
            if found is None:
                return
            name, files = found
            if match[2] == "tree":
                self._json([{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()])
            else:
                self._json({"id": match[1], "sha": name, "siblings": [{"rfilename": n} for n in files]})
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        assert match is not None, path
        found = self._found(match[1], match[2])
        if found is None:
            return
        name, files = found
        if match[3] not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": name})
            return
        data = files[match[3]]
        if self.command == "GET":
            self.hub.fetched.append(match[3])
        self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": name})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            table = json.loads(body)
            repo = f"{table['organization']}/{table['name']}"
            self.hub.commits.setdefault(repo, [])
            self._json({"url": f"{self.hub.url}/{repo}", "id": repo})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in files]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files_ = [line["value"] for line in lines if line["key"] == "file"]
            name = self.hub.commit(match[1], {f["path"]: base64.b64decode(f["content"]) for f in files_})
            self._json({"commitUrl": f"{self.hub.url}/{match[1]}/commit/{name}", "commitOid": name})
        else:
            raise AssertionError(path)

    def _found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.commits:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        found = self.hub.at(repo, revision)
        if found is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return found

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
