"""Fetching files of a data set from a URL: retried, resumed at the byte where they broke, and verified.

``http`` and ``https`` are read by requests, which takes proxies, ``.netrc`` and certificates from the
environment; every other URL by the file system of fsspec that its scheme names, which takes its
credentials from its own configuration. Neither credentials nor the query of a URL enter a message.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import random
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import responses
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from shards.errors import ConfigError, DataError
from shards.urls import without_secrets

CHUNK = 1 << 16
BLOCK = 8 << 20
# a failure after this many bytes counts as the first one
PROGRESS = 1 << 20
RETRIED = {408, 416, 425, 429}
# for files whose length is not known before: seal and manifest
WHOLE_BYTES = 512 << 20
Sink = io.BytesIO | io.BufferedRandom


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try.

    Attributes
    ----------
    attempts : int
        Failures in a row, with less than 1 MiB between them, after which a fetch is given up.
    copies : int
        Times that a file whose bytes are wrong is fetched in all.
    connect_s, stall_s : float
        Seconds until a connection must stand, and within which the next bytes must come.
    backoff_s, longest_s : float
        Wait before the second try, doubled before each further one, and its upper bound. A server's
        ``Retry-After`` is honoured beyond it, up to ten times as long.
    """

    attempts: int = 8
    copies: int = 3
    connect_s: float = 10.0
    stall_s: float = 30.0
    backoff_s: float = 0.5
    longest_s: float = 30.0


class InterruptedFetchError(Exception):
    """A fetch that broke and may be tried again."""

    def __init__(self, why: str, *, wait_s: float = 0.0, anew: bool = False) -> None:
        super().__init__(why)
        self.why, self.wait_s, self.anew = why, wait_s, anew


class StoppedFetchError(Exception):
    """A fetch that was told to end."""


class Origin(Protocol):
    """Files of one data set somewhere else."""

    location: str

    def stream(self, name: str, start: int, stop: int | None) -> Generator[bytes]:
        """Yield the bytes ``start`` to ``stop`` of a file; raise `InterruptedFetchError` where they break off."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_origin(url: str, patience: Patience) -> Origin:
    """Return the origin for a URL, or raise `ConfigError` where its scheme is unknown or needs an extra."""
    if urlsplit(url).scheme in ("http", "https"):
        return HttpOrigin(url, patience)
    return FsspecOrigin(url, patience)


class HttpOrigin:
    """A folder of an HTTP server that knows range requests."""

    def __init__(self, url: str, patience: Patience) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self.location = without_secrets(url)
        self._url = urlsplit(url)
        self._timeout = (patience.connect_s, patience.stall_s)
        self._live: set[Any] = set()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=32))

    def stream(self, name: str, start: int, stop: int | None) -> Generator[bytes]:
        """Yield the bytes ``start`` to ``stop`` of a file; raise `InterruptedFetchError` where they break off."""
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity"}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        url = urlunsplit(self._url._replace(path=f"{self._url.path.rstrip('/')}/{name}", fragment=""))
        response = None
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=self._timeout) as response:
                self._live.add(response)
                skip = self._begin(name, response, start)
                while data := response.raw.read1(CHUNK, decode_content=False):
                    fresh = data[skip:]
                    skip -= len(data) - len(fresh)
                    if fresh:
                        yield fresh
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            # its text may hold the URL's query
            raise InterruptedFetchError(type(error).__name__) from None
        finally:
            if response is not None:
                self._live.discard(response)

    def close(self) -> None:
        """Close the connections; who waits for bytes from one wakes up."""
        for response in list(self._live):
            connection = response.raw.connection
            if connection is not None and connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
        self._session.close()

    def _begin(self, name: str, response: Any, start: int) -> int:
        """Check the answer's head; return how many bytes of its body lie before ``start``."""
        status = response.status_code
        if status == HTTPStatus.OK:
            return start
        if status == HTTPStatus.PARTIAL_CONTENT:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise InterruptedFetchError("the server sends another range than was asked for")
            return 0
        answer = f"the server answers {status} {responses.get(status, '')}".rstrip()
        if status not in RETRIED and status < 500:
            raise _unavailable(f"{self.location}/{name}", answer)
        anew = status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        raise InterruptedFetchError(answer, wait_s=_retry_after(response.headers.get("Retry-After")), anew=anew)


def _unavailable(where: str, why: str) -> DataError:
    return DataError(
        "a file of the data set cannot be had", where=where, why=why, do="check the URL and the credentials"
    )


def _retry_after(value: str | None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, given as seconds or as a date."""
    if value is None:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


class FsspecOrigin:
    """A folder of any file system that fsspec knows."""

    def __init__(self, url: str, patience: Patience) -> None:
        import fsspec

        self.location = without_secrets(url)
        self._stall_s = patience.stall_s
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            do = "pip install 'matloom[s3]'" if urlsplit(url).scheme.startswith("s3") else None
            raise ConfigError("a library for this URL is missing", where=self.location, why=error.msg, do=do) from None
        except ValueError:
            raise ConfigError("fsspec knows no such kind of URL", where=self.location) from None

    def stream(self, name: str, start: int, stop: int | None) -> Generator[bytes]:
        """Yield the bytes ``start`` to ``stop`` of a file; raise `InterruptedFetchError` where they break off."""
        where, path = f"{self.location}/{name}", f"{self._path.rstrip('/')}/{name}"
        last = WHOLE_BYTES + 1 if stop is None else stop
        for begin in range(start, last, BLOCK if stop is not None else last):
            end = min(begin + BLOCK, last) if stop is not None else last
            try:
                data = self._read(path, begin, end)
            except FileNotFoundError:
                raise _unavailable(where, "there is no such file") from None
            except PermissionError:
                raise _unavailable(where, "the permission is denied") from None
            except Exception as error:  # every file system has errors of its own
                kind = type(error).__name__
                if "Credentials" in kind:
                    raise _unavailable(where, kind) from None
                raise InterruptedFetchError(kind) from None
            yield data
            if stop is not None and len(data) != end - begin:
                raise InterruptedFetchError(f"{len(data)} bytes came where {end - begin} were asked for")

    def close(self) -> None:
        """Do nothing: fsspec keeps one file system a process."""

    def _read(self, path: str, start: int, end: int) -> bytes:
        from fsspec.asyn import AsyncFileSystem, sync

        if isinstance(self._fs, AsyncFileSystem):
            # the one way to give a fetch of an asynchronous file system a time-out
            data: bytes = sync(self._fs.loop, self._fs._cat_file, path, start=start, end=end, timeout=self._stall_s)
        else:
            data = self._fs.cat_file(path, start=start, end=end)
        return data


class Fetcher:
    """Files and parts of files from an origin, whatever happens on the way.

    Parameters
    ----------
    origin : Origin
        Where they are.
    patience : Patience
        When to give up.
    """

    def __init__(self, origin: Origin, patience: Patience) -> None:
        self.origin, self.patience = origin, patience

    def whole(self, name: str) -> bytes:
        """Return a file of unknown length, of at most ``WHOLE_BYTES``."""
        failures = 0
        while True:
            data = bytearray()
            try:
                with closing(self.origin.stream(name, 0, None)) as stream:
                    for chunk in stream:
                        data += chunk
                        if len(data) > WHOLE_BYTES:
                            raise self._wrong(name, f"more than {WHOLE_BYTES} bytes")
                return bytes(data)
            except InterruptedFetchError as error:
                failures += 1
                self._pause(name, failures, error, at=len(data))

    def part(self, name: str, start: int, stop: int, check: Callable[[bytes], bool]) -> bytes:
        """Return the bytes ``start`` to ``stop`` of a file, fetched again where ``check`` refuses them."""
        for _ in range(self.patience.copies):
            sink = io.BytesIO()
            self._pump(name, start, stop, sink)
            data = sink.getvalue()
            if check(data):
                return data
        raise self._wrong(
            name, f"bytes {start} to {stop}, fetched {self.patience.copies} times, have not the digests of the index"
        )

    def into(self, sink: Sink, name: str, *, size: int, sha256: str, ended: threading.Event | None = None) -> None:
        """Write a file of ``size`` bytes into ``sink``, from where it ends already, and check its sha256.

        Raises
        ------
        DataError
            Where the file cannot be had, or comes with wrong bytes every time.
        StoppedFetchError
            Where ``ended`` was set; ``sink`` keeps what has come.
        """
        for _ in range(self.patience.copies):
            self._pump(name, 0, size, sink, ended=ended)
            sink.seek(0)
            found = hashlib.file_digest(sink, "sha256").hexdigest()
            if found == sha256:
                return
            sink.seek(0)
            sink.truncate()
        raise self._wrong(name, f"{self.patience.copies} times sha256 {found}, expected {sha256} of {size} bytes")

    def _pump(self, name: str, start: int, stop: int, sink: Sink, *, ended: threading.Event | None = None) -> None:
        """Append the bytes that ``sink`` still lacks, over as many connections as it takes."""
        failures, mark = 0, start
        while (at := start + sink.seek(0, io.SEEK_END)) < stop:
            try:
                with closing(self.origin.stream(name, at, stop)) as stream:
                    for data in stream:
                        if ended is not None and ended.is_set():
                            raise StoppedFetchError
                        sink.write(data[: stop - at])
                        at += len(data)
                        if at >= stop:
                            break
                if at < stop:
                    raise InterruptedFetchError("the connection ended early")
            except InterruptedFetchError as error:
                failures = 1 if at - mark >= PROGRESS else failures + 1
                mark = max(mark, at)
                if error.anew:
                    sink.seek(0)
                    sink.truncate()
                self._pause(name, failures, error, at=at, ended=ended)

    def _pause(
        self, name: str, failures: int, error: InterruptedFetchError, *, at: int, ended: threading.Event | None = None
    ) -> None:
        """Wait before the next try, or raise `DataError` where it is time to give up."""
        patience = self.patience
        why = f"{error.why} (at byte {at}, {failures} failures in a row)"
        if failures >= patience.attempts or error.wait_s > 10 * patience.longest_s:
            asked = f"; the server asks to wait {error.wait_s:.0f} s" if error.wait_s else ""
            raise DataError("a file of the data set cannot be fetched", where=self._where(name), why=why + asked)
        # jitter, so that the ranks of a job do not come back all at once
        wait_s = min(patience.longest_s, patience.backoff_s * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
        if (ended or threading.Event()).wait(max(wait_s, error.wait_s)):
            raise StoppedFetchError

    def _wrong(self, name: str, why: str) -> DataError:
        return DataError(
            "a file of the data set comes with wrong bytes",
            where=self._where(name),
            why=why,
            do="compare the files there with a verified copy (matloom shards verify)",
        )

    def _where(self, name: str) -> str:
        return f"{self.origin.location}/{name}"
