"""Servers on loopback that tests read from: HTTP with range requests, with faults on request, and S3."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROKEN = ("stall", "reset", "short")
FAULTS = (*BROKEN, "416", "429", "503", "wrong", "whole")


@dataclass
class Faults:
    """What goes wrong: each request fails with ``rate``, in one of ``kinds``, drawn from ``seed``.

    stall: half of the answer, then silence; reset: a part, then the connection is reset; short: a part, then
    it is closed; 416, 429, 503: that answer (the last two with Retry-After); wrong: every 16th byte has a
    flipped bit; whole: the range is ignored.
    """

    seed: int = 0
    rate: float = 0.0
    kinds: Sequence[str] = FAULTS
    only: str = ""
    most: int | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self, name: str) -> tuple[str, float]:
        """Return the fault of a request, or an empty string, and a number in [0, 1)."""
        with self._lock:
            kind, where = self._random.choice(list(self.kinds)), self._random.random()
            spent = self.most is not None and self.counts.total() >= self.most
            if spent or self._random.random() >= self.rate or not re.search(self.only, name):
                return "", where
            self.counts[kind] += 1
            return kind, where


@dataclass
class HttpServer:
    """A running server: its URL, and the requests that it saw as (file, first byte or None, bytes sent)."""

    url: str
    requests: list[tuple[str, int | None, int]]
    faults: Faults


@contextmanager
def http_server(
    folder: Path, faults: Faults | None = None, *, stall_s: float = 60.0, address: str = "127.0.0.1"
) -> Iterator[HttpServer]:
    """Serve the files of a folder, on loopback by default, range requests included."""
    state = HttpServer("", [], faults or Faults())
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            path = folder / name
            if ".." in name or not path.is_file():
                self._answer(404)
                return
            kind, where = state.faults.draw(name)
            if kind.isdigit():
                self._answer(int(kind), retry_after=where)
            else:
                self._send(name, path.read_bytes(), kind, where)

        def _answer(self, status: int, retry_after: float | None = None) -> None:
            self.send_response(status)
            if status in (429, 503) and retry_after is not None and retry_after < 0.5:
                self.send_header("Retry-After", "0" if retry_after < 0.25 else formatdate(usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, name: str, data: bytes, kind: str, where: float) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first = int(span[1]) if span else None
            if span and int(span[1]) >= len(data):
                self._answer(416)
                return
            if span and kind != "whole":
                last = min(int(span[2]), len(data) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {span[1]}-{last}/{len(data)}")
                data = data[int(span[1]) : last + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            part = int(where * len(data))
            # before the body: who has read that may look here at once
            state.requests.append((name, first, part if kind in BROKEN else len(data)))
            self._body(bytearray(data), kind, part)

        def _body(self, data: bytearray, kind: str, part: int) -> None:
            if kind == "wrong":
                data[part % 16 :: 16] = bytes(byte ^ 1 for byte in data[part % 16 :: 16])
            if kind not in BROKEN:
                self.wfile.write(data)
                return
            self.wfile.write(data[:part])
            self.close_connection = True
            if kind == "stall":
                over.wait(stall_s)
            if kind == "reset":
                # closing with a linger of 0 s resets the connection
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def handle(self) -> None:
            with suppress(ConnectionError, ValueError, OSError):
                super().handle()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            pass

    with Server((address, 0), Handler) as server:
        state.url = f"http://{address}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            over.set()
            server.shutdown()
            thread.join()


@contextmanager
def s3_server(bucket: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve the files of a folder as ``s3://bucket/set`` on loopback; yields the environment for its clients."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
        client = boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test-secret",
        )
        client.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            client.upload_file(str(path), bucket, f"set/{path.name}")
        client.close()
        yield env
    finally:
        server.stop()
