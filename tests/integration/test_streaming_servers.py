"""Streaming from real servers on loopback: S3-compatible, and plain HTTP with range requests.

Two processes read by one cache that is smaller than the data set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from tests.servers import http_server, s3_server
from tests.streaming_rank import EPOCHS, checksum, stream_of
from tests.unit.shards.test_overlay import publish
from tests.unit.shards.test_remote import usage

ROOT = Path(__file__).resolve().parents[2]
SPEC = ModalitySpec(name="vector", kind="vector", fields={"v": FieldSpec(dtype="float32", shape=(1500,))})
SAMPLES = 168


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 shards of 7 samples, 1.4 MB."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(id=f"Li0.{i}CoO2", arrays={"vector": {"v": rng.random(1500, np.float32)}}, labels={"gap_ev": i / 7})
        for i in range(SAMPLES)
    ]
    return publish(tmp_path_factory.mktemp("data") / "set", samples, {"vector": SPEC})


class Watch:
    """Looks at the bytes on disk of a folder, again and again, in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.largest, self.looks = folder, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.wait(0.001):
            self.largest = max(self.largest, usage(self.folder))
            self.looks += 1

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def stream(url: str, cache: Path, bound: int, env: dict[str, str], world: int = 2) -> tuple[list[dict], Watch]:
    """Stream a data set by ``world`` processes at once; return what each reports, and the watch over the cache."""
    env = {**os.environ, **env, "MATLOOM_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Watch(cache) as watch:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.streaming_rank", url, str(rank), str(world), str(bound / 1e9)],
                env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(world)
        ]  # fmt: skip
        outputs = [rank.communicate(timeout=200) for rank in ranks]
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, errors
    return [json.loads(out) for out, _ in outputs], watch


def check(folder: Path, reports: list[dict]) -> None:
    """Every rank has seen what it sees of the local folder, and all of them every sample once an epoch."""
    dataset = Dataset(folder)
    for rank, report in enumerate(reports):
        local = stream_of(dataset, rank, len(reports))
        expected = [[batch.ids, checksum(batch)] for epoch in range(EPOCHS) for batch in local.epoch(epoch)]
        assert report["batches"] == expected
        assert not report["left"]
    seen = Counter(sample_id for report in reports for ids, _ in report["batches"] for sample_id in ids)
    assert seen == dict.fromkeys(dataset.ids, EPOCHS)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def served(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, str], list]]:
    """Serve the folder; yields URL, environment and, of the HTTP server, the requests."""
    if kind == "s3":
        with s3_server("materials", folder) as env:
            yield "s3://materials/set", env, []
    else:
        with http_server(folder) as server:
            yield server.url, {}, server.requests


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_two_processes_stream_by_a_cache_smaller_than_the_data(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound = 700_000
    assert bound < size_of(folder) / 1.8
    with served(kind, folder) as (url, env, requests):
        reports, watch = stream(url, tmp_path, bound, env)
    with capsys.disabled():
        print(f"\n{kind}: {size_of(folder)} bytes, cache bound {bound}, at most {watch.largest} on disk "
              f"in {watch.looks} looks, {len(requests)} requests")  # fmt: skip
    check(folder, reports)
    assert watch.looks > 100
    assert bound // 2 < watch.largest <= bound
    assert usage(tmp_path) <= bound
