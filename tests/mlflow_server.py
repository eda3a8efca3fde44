"""A real MLflow server on loopback, and a proxy before it that loses requests or answers when it is told to."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pretrain.ports import free_port

START_S = 300


class MLflow:
    """``mlflow server``, by default with SQLite, which can be killed and started again on the same port."""

    def __init__(
        self,
        folder: Path,
        *,
        store: str | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.port = folder, free_port()
        self.store = store or f"sqlite:///{folder}/server.db"
        # six processes of background jobs, which no test asks for, take as long to start as all the rest
        jobs = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.options, self.env = list(options), {**os.environ, **jobs, **(env or {})}
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.store, "--workers", "1", *self.options]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=self.env)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).read()
                return
            time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """End it and its workers at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path, **options: Any) -> Iterator[MLflow]:
    """Run a server that is started already."""
    server = MLflow(folder, **options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Proxy:
    """Hands requests on; ``losing`` says what it loses of the POST requests whose path ends in ``of``.

    ``request``: the server never sees it; ``answer``: the server acts on it, and the client does not learn of it.
    """

    def __init__(self, port: int) -> None:
        self.losing, self.of, self.lost = "", "", 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                lose = proxy.losing if self.command == "POST" and self.path.endswith(proxy.of) else ""
                if lose != "request":
                    upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    answer = upstream.getresponse()
                    data = answer.read()
                    upstream.close()
                if lose:
                    proxy.lost += 1
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(ConnectionError, ValueError, OSError):
                    super().handle()

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler._handle)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
