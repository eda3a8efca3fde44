from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from shards.cache import on_disk
from shards.errors import ConfigError, DataError
from shards.fetching import Patience
from shards.manifest import MANIFEST, Manifest, ShardEntry
from shards.prefetch import Plan
from shards.reader import Dataset
from shards.remote import RemoteOptions
from shards.schema import Sample
from shards.sealed import SEAL, sealing, sha256
from shards.writer import ShardWriter
from tests.servers import FAULTS, Faults, HttpServer, http_server
from tests.unit.shards.test_overlay import further, publish
from tests.unit.shards.test_writer_reader import equal

ROOT = Path(__file__).resolve().parents[3]
HASTY = Patience(attempts=6, copies=3, connect_s=5.0, stall_s=0.1, backoff_s=0.002, longest_s=0.01)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own; what a test opened must end with it."""
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "remote"
    for thread in threading.enumerate():
        if thread.name in ("shards", "indices"):
            thread.join(10)
            assert not thread.is_alive()


def options(**changes: object) -> RemoteOptions:
    return RemoteOptions(**{"patience": HASTY, **changes})  # type: ignore[arg-type]


def usage(folder: Path) -> int:
    """Bytes on disk of all files, those that vanish while one looks left out."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def test_a_url_reads_as_the_folder_does(toy: Dataset, toy_folder: Path) -> None:
    with http_server(toy_folder) as server:
        with Dataset(server.url + "/", remote=options()) as remote:
            assert (remote.ids, remote.manifest, remote.sha256) == (toy.ids, toy.manifest, toy.sha256)
            assert all(equal(*pair) for pair in zip(remote, toy, strict=True))
            assert remote.location == server.url
            few = remote.select(["dos"])
            assert few[3].modalities == toy[3].modalities & {"dos"}
        seen = Counter(name for name, _, _ in server.requests)
        assert all(seen[entry.file] == seen[entry.index] == 1 for entry in toy.manifest.shards)
        with Dataset(server.url, remote=options()) as again:
            assert equal(again[17], toy[17])
        seen = Counter(name for name, _, _ in server.requests)
        assert set(seen.values()) == {1, 2}
        assert {name for name, times in seen.items() if times == 2} == {SEAL, MANIFEST}


def test_a_local_set_may_have_a_remote_overlay(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    samples = further(toy)
    layer = publish(tmp_path / "layer", samples)
    with http_server(layer) as server, Dataset(toy_folder, overlays=[server.url], remote=options()) as both:
        both.prefetch(np.arange(len(both)))
        position = toy.position(samples[0].id)
        assert both[position].labels["score"] == position


def test_a_file_url_is_the_folder(toy: Dataset, toy_folder: Path) -> None:
    local = Dataset(toy_folder.as_uri())
    assert local.folder == toy_folder
    assert equal(local[5], toy[5])


def test_any_file_system_of_fsspec_is_read(toy: Dataset, toy_folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(toy_folder), "/bucket/toy", recursive=True)
    try:
        with Dataset("memory://bucket/toy", remote=options()) as remote:
            assert all(equal(*pair) for pair in zip(remote, toy, strict=True))
        with Dataset("memory://bucket/toy", remote=options(cache_gb=9e-5)) as remote, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert all(equal(*pair) for pair in zip(remote, toy, strict=True))
    finally:
        memory.rm("/bucket", recursive=True)
    with pytest.raises(DataError, match=r"memory://bucket/toy/seal\.json(.|\n)*no such file"):
        Dataset("memory://bucket/toy", remote=options())
    with pytest.raises(ConfigError, match="fsspec knows no such kind"):
        Dataset("carrier-pigeon://loft/toy", remote=options())


def test_a_new_data_set_behind_an_old_url_is_seen(toy: Dataset, tmp_path: Path) -> None:
    one, two = (publish(tmp_path / name, further(toy)[start:]) for start, name in enumerate(("one", "two")))
    with http_server(tmp_path) as server:
        (tmp_path / "now").symlink_to(one)
        assert len(Dataset(f"{server.url}/now", remote=options())) == 20
        (tmp_path / "now").unlink()
        (tmp_path / "now").symlink_to(two)
        assert len(Dataset(f"{server.url}/now", remote=options())) == 19


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_alone_is_survived(toy: Dataset, toy_folder: Path, kind: str) -> None:
    faults = Faults(seed=1, rate=1.0, kinds=[kind], most=2, only=r"\.tar")
    with http_server(toy_folder, faults) as server, Dataset(server.url, remote=options(threads=1)) as remote:
        assert all(equal(remote[position], toy[position]) for position in range(0, 60, 5))
    assert faults.counts == {kind: 2}


def test_thirty_servers_that_fail_end_in_the_right_data_or_a_named_error(
    toy: Dataset, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    injected: Counter[str] = Counter()
    for seed in range(30):
        # the rate grows over the runs, until hardly any request is answered well
        faults = Faults(seed=seed, rate=0.1 + 0.029 * seed)
        monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / str(seed)))
        with http_server(toy_folder, faults) as server:
            size = 1.0 if seed % 3 else 9e-5
            try:
                with Dataset(server.url, remote=options(cache_gb=size)) as remote, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if seed % 2:
                        remote.prefetch(np.arange(60))
                    assert all(equal(remote[position], toy[position]) for position in range(0, 60, 4))
                outcomes["right"] += 1
            except DataError as error:
                assert server.url in str(error)  # noqa: PT017
                assert any(name in str(error) for name in ("shard-00000", MANIFEST, SEAL))  # noqa: PT017
                outcomes["named error"] += 1
        injected.update(faults.counts)
    with capsys.disabled():
        print(f"\n30 runs: {dict(outcomes)}; faults: {dict(injected)}")
    assert outcomes.total() == 30
    assert min(outcomes["right"], outcomes["named error"]) >= 3
    assert set(injected) == set(FAULTS)


def fetched(server: HttpServer) -> Counter[str]:
    return Counter(name for name, _, _ in server.requests if name.endswith(".tar"))


def test_several_readers_at_once_fetch_every_shard_once(toy: Dataset, toy_folder: Path) -> None:
    right: list[bool] = []

    def read(seed: int) -> None:
        with Dataset(server.url, remote=options()) as remote:
            order = np.random.default_rng(seed).permutation(60)
            if seed % 2:
                remote.prefetch(order)
            right.append(all(equal(remote[int(i)], toy[int(i)]) for i in order))

    with http_server(toy_folder) as server:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert right == [True] * 4
    assert fetched(server) == dict.fromkeys((entry.file for entry in toy.manifest.shards), 1)


def test_shards_are_fetched_ahead_in_the_order_in_which_they_are_needed(toy: Dataset, toy_folder: Path) -> None:
    order = np.array([40, 41, 3, 42, 20, 59, 4])
    with http_server(toy_folder) as server, Dataset(server.url, remote=options(threads=1)) as remote:
        remote.prefetch(order)
        wait_for(lambda: len(fetched(server)) == 4)
        ahead = [name for name, _, _ in server.requests if name.endswith(".tar")]
        assert all(equal(remote[int(i)], toy[int(i)]) for i in order)
        assert ahead == [toy.manifest.shards[number].file for number in (2, 0, 1, 3)]
        assert fetched(server).total() == 4


def test_a_plan_in_a_small_cache_gives_back_what_is_over(toy: Dataset, toy_folder: Path, cache: Path) -> None:
    """Room for two shards and a half beside the small files: each is fetched once, in each of two epochs."""
    bound = 28_672 + 2.5 * 81_920
    with http_server(toy_folder) as server, Dataset(server.url, remote=options(cache_gb=bound / 1e9)) as remote:
        for epoch in (1, 2):
            order = [
                int(i) for shard in np.random.default_rng(epoch).permutation(4) for i in range(60) if i // 16 == shard
            ]
            remote.prefetch(np.array(order))
            for position in order:
                assert equal(remote[position], toy[position])
                assert usage(cache) <= bound
        assert fetched(server).total() <= 8
        assert all(first == 0 and sent > 70_000 for name, first, sent in server.requests if name.endswith(".tar"))


def test_fetching_ahead_leaves_half_of_the_cache_to_others(toy: Dataset, toy_folder: Path) -> None:
    bound = 28_672 + 5 * 81_920
    with http_server(toy_folder) as server, Dataset(server.url, remote=options(cache_gb=bound / 1e9)) as remote:
        leases, ended = remote._base.store._leases, threading.Event()  # type: ignore[attr-defined]
        assert [leases.fetch_ahead(entry, ended) for entry in toy.manifest.shards] == [True, True, False, False]
        # what is read now may use the other half
        assert equal(remote[59], toy[59])
        assert fetched(server).total() == 3
        # by a plan shard 0 is over when shard 3 is read
        leases.follow(Plan.of(toy.manifest.shards, np.array([0, 3, 1])))
        assert equal(remote[59], toy[59])
        assert not leases._views.keys() & {shard_of(toy).sha256}
        assert leases.fetch_ahead(shard_of(toy), ended)
        assert not leases._views.keys() & {shard_of(toy).sha256}


def test_a_local_set_needs_no_prefetching_and_reads_on_after_closing(toy_folder: Path, toy: Dataset) -> None:
    with Dataset(toy_folder) as local:
        local.prefetch(np.arange(60))
        sample = local[7]
    assert equal(sample, toy[7])
    assert equal(local[8], toy[8])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_closing_wakes_threads_that_wait_for_a_server(toy_folder: Path) -> None:
    patient = Patience(stall_s=500.0)
    faults = Faults(rate=1.0, kinds=["stall"], only=r"\.tar")
    with http_server(toy_folder, faults, stall_s=500.0) as server:
        with Dataset(server.url, remote=options(patience=patient)) as remote:
            remote.prefetch(np.arange(60))
            wait_for(lambda: faults.counts["stall"] == 2)
            assert sum(thread.name == "shards" for thread in threading.enumerate()) == 2
        assert not any(thread.name == "shards" for thread in threading.enumerate())


def test_a_process_ends_without_closing(toy_folder: Path) -> None:
    code = (
        "import sys, numpy as np; from shards.reader import Dataset; data = Dataset(sys.argv[1]); "
        "data.prefetch(np.arange(60)); sys.stdin.readline(); print(len(data), flush=True)"
    )
    faults = Faults(rate=1.0, kinds=["stall"], only=r"\.tar")
    with (
        http_server(toy_folder, faults, stall_s=500.0) as server,
        subprocess.Popen(
            [sys.executable, "-c", code, server.url], cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
        ) as process,
    ):
        wait_for(lambda: faults.counts["stall"] == 2)
        outputs = process.communicate("now\n", timeout=60)
    assert (process.returncode, *outputs) == (0, "60\n", "")


def shard_of(toy: Dataset) -> ShardEntry:
    return toy.manifest.shards[0]


def test_a_partial_file_of_a_killed_process_is_gone_on_with(toy: Dataset, toy_folder: Path, cache: Path) -> None:
    entry = shard_of(toy)
    shards = cache / "shards"
    shards.mkdir(parents=True)
    half = (toy_folder / entry.file).read_bytes()[: entry.bytes // 2]
    (shards / f"{entry.sha256}.{entry.bytes}.tar.partial").write_bytes(half)
    with http_server(toy_folder) as server, Dataset(server.url, remote=options()) as remote:
        assert equal(remote[0], toy[0])
    assert [(first, sent) for name, first, sent in server.requests if name == entry.file] == [
        (len(half), entry.bytes - len(half))
    ]


def test_wrong_bytes_are_fetched_again_and_then_named(toy: Dataset, toy_folder: Path, cache: Path) -> None:
    entry, faults = shard_of(toy), Faults(rate=1.0, kinds=["wrong"], only=r"\.tar")
    with http_server(toy_folder, faults) as server, Dataset(server.url, remote=options()) as remote:
        with pytest.raises(DataError) as caught:
            remote[0]
        assert faults.counts["wrong"] == HASTY.copies
    for part in (f"{server.url}/{entry.file}", "wrong bytes", entry.sha256, f"{entry.bytes} bytes"):
        assert part in str(caught.value)
    assert not list((cache / "shards").iterdir())


def damage(path: Path) -> None:
    """Flip a bit of every 16th byte, in place as a disk does it."""
    data = bytearray(path.read_bytes())
    data[::16] = bytes(byte ^ 1 for byte in data[::16])
    with path.open("r+b") as file:
        file.write(data)


def test_a_shard_that_the_disk_of_the_cache_damaged_is_fetched_again(
    toy: Dataset, toy_folder: Path, cache: Path
) -> None:
    entry = shard_of(toy)
    path = cache / "shards" / f"{entry.sha256}.{entry.bytes}.tar"
    with (
        http_server(toy_folder) as server,
        Dataset(server.url, remote=options()) as one,
        Dataset(server.url, remote=options()) as two,
    ):
        assert equal(one[0], toy[0]) and equal(two[0], toy[0])
        damage(path)
        # each has the damaged shard mapped; the second finds it mended
        for remote in (one, two):
            assert all(equal(remote[position], toy[position]) for position in range(entry.samples))
        assert Counter(name for name, _, _ in server.requests)[entry.file] == 2
        assert path.read_bytes() == (toy_folder / entry.file).read_bytes()
    with http_server(toy_folder, Faults(rate=1.0, kinds=["wrong"], only=r"\.tar")) as server:
        damage(path)
        with Dataset(server.url, remote=options()) as remote, pytest.raises(DataError, match="wrong bytes"):
            remote[0]


def test_a_shard_that_is_damaged_where_it_comes_from_is_fetched_once(tmp_path: Path) -> None:
    with sealing(tmp_path / "set") as stage:
        writer = ShardWriter(stage, {})
        writer.write(Sample(id="a"))
        entry = writer.close()[0]
        damage(stage / entry.file)
        entry = entry.model_copy(update={"sha256": sha256(stage / entry.file)})
        manifest = Manifest(name="x", modalities={}, shards=[entry], samples=1, coverage={}, labels={})
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    with http_server(tmp_path / "set") as server, Dataset(server.url, remote=options()) as remote:
        with pytest.raises(DataError, match=rf"(?s)a member of a shard is damaged.*{entry.file}: 'a', meta"):
            remote[0]
        assert Counter(name for name, _, _ in server.requests)[entry.file] == 1


def test_small_files_that_the_disk_of_the_cache_damaged_are_fetched_again(
    toy: Dataset, toy_folder: Path, cache: Path
) -> None:
    with http_server(toy_folder) as server, Dataset(server.url, remote=options()) as remote:
        index, other = (entry.index for entry in toy.manifest.shards[:2])
        damage(remote.folder / MANIFEST)
        damage(remote.folder / SEAL)
        (remote.folder / index).write_bytes(b"")
        (remote.folder / other).unlink()
        with Dataset(server.url, remote=options()) as again:
            assert again.folder == remote.folder and equal(again[0], toy[0])
        seen = Counter(name for name, _, _ in server.requests)
        assert [seen[entry.index] for entry in toy.manifest.shards] == [2, 2] + [1] * (len(toy.manifest.shards) - 2)


def test_members_read_by_range_are_verified(toy: Dataset, toy_folder: Path) -> None:
    faults = Faults(seed=2, rate=1.0, kinds=["wrong"], only=r"\.tar", most=2)
    with http_server(toy_folder, faults) as server, Dataset(server.url, remote=options(cache_gb=9e-5)) as remote:
        with pytest.warns(UserWarning, match="range requests; set MATLOOM_CACHE_GB"):
            assert equal(remote[0], toy[0])
        faults.rate, faults.most = 0.0, None
        assert all(equal(*pair) for pair in zip(remote, toy, strict=True))
        faults.rate = 1.0
        with pytest.raises(
            DataError, match=rf"{server.url}/{shard_of(toy).file}(.|\n)*bytes 512 to \d+, fetched 3 times"
        ):
            remote[0]


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_forbidden_or_not_there_is_named_at_once(toy_folder: Path, status: int) -> None:
    class Refusing(Faults):
        def draw(self, name: str) -> tuple[str, float]:
            self.counts[name] += 1
            return str(status), 0.0

    faults = Refusing()
    with http_server(toy_folder, faults) as server, pytest.raises(DataError, match=f"answers {status}") as caught:
        Dataset(server.url, remote=options())
    assert f"{server.url}/{SEAL}" in str(caught.value)
    assert faults.counts == {SEAL: 1}


def test_a_server_that_is_not_there_is_named(toy_folder: Path) -> None:
    with http_server(toy_folder) as server:
        url = server.url
    with pytest.raises(DataError, match=rf"{url}/seal\.json(.|\n)*ConnectionError(.|\n)*6 failures"):
        Dataset(url, remote=options())


def test_a_hash_that_is_a_path_is_refused(toy: Dataset) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        ShardEntry.model_validate(shard_of(toy).model_dump() | {"sha256": "../../x"})


@pytest.mark.parametrize("value", ["many", "-1", "nan", ""])
def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MATLOOM_CACHE_GB", value)
    with pytest.raises(ConfigError, match="MATLOOM_CACHE_GB"):
        _ = RemoteOptions().cache_bytes


def test_indices_that_do_not_fit_are_named(toy_folder: Path) -> None:
    with http_server(toy_folder) as server, pytest.raises(DataError, match="no room for the indices"):
        Dataset(server.url, remote=options(cache_gb=1e-5))


def test_an_array_keeps_its_shard_in_the_cache(toy: Dataset, toy_folder: Path, cache: Path) -> None:
    bound = (40960 + 4 * on_disk(max(entry.bytes for entry in toy.manifest.shards)) // 2) / 1e9
    with http_server(toy_folder) as server, Dataset(server.url, remote=options(cache_gb=bound)) as remote:
        held = {position: remote[position] for position in (0,)}
        entry = shard_of(toy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for position in range(60):
                assert equal(remote[position], toy[position])
        path = cache / "shards" / f"{entry.sha256}.{entry.bytes}.tar"
        assert path.exists()
        assert usage(cache) <= bound * 1e9
        del held, remote
