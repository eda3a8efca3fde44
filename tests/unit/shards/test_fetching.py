from __future__ import annotations

import io
import threading
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.fetching import Fetcher, _retry_after, open_origin
from shards.reader import Dataset
from shards.urls import without_secrets
from tests.servers import Faults, http_server
from tests.unit.shards.test_remote import HASTY, cache, options, shard_of  # noqa: F401  cache is a fixture


def test_a_broken_download_goes_on_at_the_byte_where_it_broke(toy: Dataset, toy_folder: Path) -> None:
    entry, faults = shard_of(toy), Faults(seed=3, rate=1.0, kinds=["short"], most=3)
    with http_server(toy_folder, faults) as server:
        sink = io.BytesIO()
        fetcher = Fetcher(open_origin(server.url, HASTY), HASTY)
        fetcher.into(sink, entry.file, size=entry.bytes, sha256=entry.sha256)
        fetcher.origin.close()
    firsts, sent = [first for _, first, _ in server.requests], [count for _, _, count in server.requests]
    assert firsts == [0, *np.cumsum(sent)[:-1].tolist()]
    assert sum(sent) == entry.bytes
    assert len(firsts) == 4


def test_retry_after_is_honoured_and_bounded(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _retry_after("7") == 7.0
    assert 5.0 < _retry_after(formatdate(time.time() + 9, usegmt=True)) <= 9.0
    assert _retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == _retry_after("soon") == _retry_after(None) == 0.0

    class Busy(Faults):
        def draw(self, name: str) -> tuple[str, float]:
            self.counts[name] += 1
            return "429" if self.counts[name] == 1 else "", 0.0

    waits: list[float] = []
    wait = threading.Event.wait
    monkeypatch.setattr("shards.fetching._retry_after", lambda value: 0.02 if value == "0" else 0.0)
    monkeypatch.setattr(threading.Event, "wait", lambda self, s=None: waits.append(s) or wait(self, s))
    with http_server(toy_folder, Busy()) as server:
        Dataset(server.url, remote=options()).close()
    assert 0.02 in waits
    monkeypatch.setattr("shards.fetching._retry_after", lambda value: 3600.0)
    with http_server(toy_folder, Busy()) as server, pytest.raises(DataError, match="asks to wait 3600 s"):
        Dataset(server.url, remote=options())


def test_secrets_of_a_url_stand_in_no_message(toy_folder: Path) -> None:
    with http_server(toy_folder) as server:
        netloc = server.url.removeprefix("http://")
        url = f"http://user:pass-word@{netloc}/nowhere?X-Signature=s3cr3t"
        assert without_secrets(url) == f"http://{netloc}/nowhere"
        with pytest.raises(DataError) as caught:
            Dataset(url, remote=options())
    with pytest.raises(DataError) as refused:
        Dataset(url, remote=options())
    for error in (caught.value, refused.value):
        assert "pass-word" not in str(error)
        assert "s3cr3t" not in str(error)
        assert "nowhere" in str(error)
