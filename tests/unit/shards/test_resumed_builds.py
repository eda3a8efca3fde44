"""A build's bytes do not depend on who computed them, and a killed build goes on where it stopped."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shards.build import Progress, build
from shards.chunks import Chunk, build_chunk
from shards.errors import ConfigError, DataError
from shards.executors import compute
from shards.reader import Dataset
from shards.sealed import staging
from shards.sources.base import Item, Record
from shards.splits import SplitPlan
from tests.counting_source import CountingSource
from tests.synthetic import FEATURES

SPLITS = {"random": SplitPlan(by="id")}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def built(folder: Path, source: CountingSource, **options: Any) -> dict[str, str]:
    build(source, FEATURES, folder, name="toy", splits=SPLITS, shard_samples=8, **options)
    return hashes(folder)


def reads(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    source = CountingSource(count=50, log=tmp_path / "log", bad=(7, 23))
    alone = built(tmp_path / "one", source)
    assert built(tmp_path / "two", source, workers=2) == alone
    assert built(tmp_path / "three", source, workers=3) == alone
    dataset = Dataset(tmp_path / "one")
    assert len(dataset) == 48
    assert set(dataset.manifest.quarantined) == {"item-7", "item-23"}
    assert [sample.id for sample in dataset] == [f"item-{i}" for i in range(50) if i not in (7, 23)]


def test_the_bytes_are_the_same_on_a_dask_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="extra 'dask' is not installed")
    source = CountingSource(count=50, log=tmp_path / "log", bad=(7,))
    alone = built(tmp_path / "one", source)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        assert built(tmp_path / "cluster", source, scheduler=cluster.scheduler_address) == alone


def test_a_scheduler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="extra 'dask' is not installed")
    monkeypatch.setattr("shards.executors.CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1"):
        built(tmp_path / "set", CountingSource(count=5, log=tmp_path / "log"), scheduler="tcp://127.0.0.1:1")


def beside(job: tuple[Path, int]) -> int:
    """Return once three jobs run at the same time."""
    folder, number = job
    (folder / str(number)).touch()
    give_up = time.monotonic() + 120
    while len(list(folder.iterdir())) < 3:
        assert time.monotonic() < give_up, "the jobs run one after the other"
        time.sleep(0.01)
    return number


def test_workers_that_come_later_get_jobs(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="extra 'dask' is not installed")
    jobs = ((tmp_path, number) for number in range(40))
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        cluster.scale(3)
        done = list(compute(beside, jobs, scheduler=cluster.scheduler_address))
    assert sorted(done) == list(range(40))


def test_a_scheduler_that_goes_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="extra 'dask' is not installed")
    monkeypatch.setattr("shards.executors.CONNECT_SECONDS", 1)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        results = compute(abs, range(1000), scheduler=cluster.scheduler_address)
        next(results)
        cluster.close()
        with pytest.raises(DataError, match="scheduler is gone"):
            list(results)


KILLED = """
import sys
from pathlib import Path
from shards.build import build
from tests.counting_source import CountingSource
from tests.synthetic import FEATURES
from tests.unit.shards.test_resumed_builds import SPLITS
source = CountingSource(count=50, log=Path(sys.argv[1]), hang_at=35)
if __name__ == "__main__":
    build(source, FEATURES, Path(sys.argv[2]), name="toy", splits=SPLITS, shard_samples=8, workers=int(sys.argv[3]))
"""


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_without_redoing_finished_shards(tmp_path: Path, workers: int) -> None:
    script, log, out = tmp_path / "killed.py", tmp_path / "log", tmp_path / "set"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(log), str(out), str(workers)], env=environment, start_new_session=True
    )
    give_up = time.monotonic() + 300
    while "item-35" not in reads(log):
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < give_up, "the build does not come as far as where it is killed"
        time.sleep(0.05)
    process.kill()
    process.wait()
    # its processes end with it, so that none of them writes beside the next build
    while group_lives(process.pid):
        assert time.monotonic() < give_up, "processes were left behind"
        time.sleep(0.05)
    assert not out.exists()
    finished = {path.name for path in staging(out).glob("chunk-*.json")}
    assert "chunk-000000.json" in finished and "chunk-000004.json" not in finished
    before = len(reads(log))
    states: list[Progress] = []
    resumed = built(out, CountingSource(count=50, log=log), workers=workers, progress=states.append)
    again = reads(log)[before:]
    kept = {int(name[6:12]) for name in finished}
    assert sorted(again, key=lambda name: int(name[5:])) == [f"item-{i}" for i in range(50) if i // 8 not in kept]
    assert states[-1].reused == 50 - len(again) and states[-1].done == states[-1].total == 50
    assert resumed == built(tmp_path / "fresh", CountingSource(count=50, log=log))
    assert not staging(out).exists() and not list(tmp_path.glob(".*.lock"))


def test_a_try_that_was_given_up_disturbs_nobody(tmp_path: Path) -> None:
    """A worker that is cut off for a while works on, while another one is given its chunk."""
    stage, tries = tmp_path / "stage", tmp_path / "tries"
    stage.mkdir()
    tries.mkdir()
    options: dict[str, Any] = {"number": 0, "tries": tries, "features": FEATURES, "shard_bytes": 1 << 20}

    def chunk(count: int) -> Chunk:
        source = CountingSource(count=count, log=tmp_path / "log")
        return Chunk(source=source, items=tuple(source.items()), **options)

    build_chunk(chunk(8)).keep(stage)
    kept = hashes(stage)
    late = build_chunk(chunk(9))
    assert hashes(stage) == kept and late.entries[0].file in kept
    assert list(tries.iterdir()) == [late.folder]


FULL = """
import resource, signal, sys
from pathlib import Path
from shards.errors import DataError
from tests.counting_source import CountingSource
from tests.unit.shards.test_resumed_builds import built
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
try:
    built(Path(sys.argv[2]), CountingSource(count=50, log=Path(sys.argv[1])))
except DataError as error:
    sys.exit(str(error))
"""


def test_a_disk_that_is_full_stops_the_build_and_is_named(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "set"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", FULL, str(log), str(out)]
    full = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert full.returncode == 1 and os.strerror(errno.EFBIG) in full.stderr and "same command" in full.stderr
    assert not out.exists() and {path.name for path in tmp_path.iterdir()} == {"log", staging(out).name, ".set.lock"}
    assert built(out, CountingSource(count=50, log=log)) == built(tmp_path / "fresh", CountingSource(count=50, log=log))


class FullSource(CountingSource):
    """A source that unpacks to a disk without room."""

    def read(self, item: Item) -> Record:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/x")


def test_a_record_is_not_refused_for_a_trouble_of_the_host(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)/scratch/x.*No space left"):
        built(tmp_path / "set", FullSource(count=50, log=tmp_path / "log"), max_quarantined=1.0)


def stopped(folder: Path, log: Path, **options: Any) -> None:
    """A build whose first shards are finished and which then stops, for lack of a library."""
    with pytest.raises(ConfigError, match="on purpose"):
        built(folder, CountingSource(count=50, log=log, fail_at=35, **options))
    log.unlink()


def test_a_record_that_changed_is_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stopped(tmp_path / "set", log)
    built(tmp_path / "set", CountingSource(count=50, log=log, changed=(9,)))
    assert {int(name[5:]) for name in reads(log)} == {*range(8, 16), *range(32, 50)}


def test_a_finished_shard_that_was_damaged_is_made_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stopped(tmp_path / "set", log)
    path = staging(tmp_path / "set") / "shard-000002.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    built(tmp_path / "set", CountingSource(count=50, log=log))
    assert {int(name[5:]) for name in reads(log)} == {*range(16, 24), *range(32, 50)}


def test_other_settings_make_everything_anew_and_leave_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stopped(tmp_path / "set", log)
    source = CountingSource(count=50, log=log)
    build(source, FEATURES, tmp_path / "set", name="toy", splits=SPLITS, shard_samples=20)
    assert len(reads(log)) == 50
    build(source, FEATURES, tmp_path / "fresh", name="toy", splits=SPLITS, shard_samples=20)
    assert hashes(tmp_path / "set") == hashes(tmp_path / "fresh")


def test_a_record_that_upsets_a_library_is_quarantined(tmp_path: Path) -> None:
    source = CountingSource(count=50, log=tmp_path / "log", crash=(3,))
    build(source, FEATURES, tmp_path / "set", name="toy")
    reason = Dataset(tmp_path / "set").manifest.quarantined["item-3"]
    assert "ZeroDivisionError" in reason


def test_the_build_stops_as_soon_as_too_many_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(DataError, match="of 50 records were refused, more than 5%"):
        built(tmp_path / "set", CountingSource(count=50, log=log, bad=(1, 2, 3)))
    assert len(reads(log)) == 8


def test_two_items_with_one_id_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(DataError, match="same id"):
        built(tmp_path / "set", CountingSource(count=50, log=log, twin=True))
    assert not reads(log)


def test_two_builds_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".set.lock"), pytest.raises(DataError, match="another process"):
        built(tmp_path / "set", CountingSource(count=5, log=tmp_path / "log"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_overlay_adds_a_modality_to_some_samples_without_rewriting_them(tmp_path: Path, workers: int) -> None:
    log, base = tmp_path / "log", tmp_path / "base"
    before = built(base, CountingSource(count=50, log=log))
    spectrum = {"raman": FEATURES["dos"]}
    options: dict[str, Any] = {"name": "raman", "overlay_of": str(base), "workers": workers, "shard_samples": 8}
    manifest = build(CountingSource(count=20, log=log), spectrum, tmp_path / "raman", **options)
    assert hashes(base) == before
    assert manifest.overlay_of is not None and manifest.labels == {}
    both = Dataset(base, overlays=(tmp_path / "raman",))
    alone = Dataset(base)
    for position, sample in enumerate(both):
        assert ("raman" in sample.arrays) == (position < 20 and "raman" in both.modalities and "dos" in sample.arrays)
        assert sample.labels == alone[position].labels
    with pytest.raises(DataError, match="has the modality 'dos' already"):
        build(CountingSource(count=20, log=log), {"dos": FEATURES["dos"]}, tmp_path / "again", **options)


def test_an_overlay_is_made_for_the_base_that_is_there_now(tmp_path: Path) -> None:
    log, base = tmp_path / "log", tmp_path / "base"
    spectrum, options = {"raman": FEATURES["dos"]}, {"name": "raman", "overlay_of": str(base)}
    for count in (10, 20):
        built(base, CountingSource(count=count, log=log))
        build(CountingSource(count=count, log=log), spectrum, tmp_path / "raman", **options)  # type: ignore[arg-type]
        assert len(Dataset(base, overlays=(tmp_path / "raman",))) == count


def test_records_that_the_base_lacks_do_not_enter_an_overlay(tmp_path: Path) -> None:
    log = tmp_path / "log"
    built(tmp_path / "base", CountingSource(count=50, log=log))
    options: dict[str, Any] = {"name": "raman", "overlay_of": str(tmp_path / "base"), "max_quarantined": 0.2}
    build(CountingSource(count=55, log=log), {"raman": FEATURES["dos"]}, tmp_path / "raman", **options)
    quarantined = Dataset(tmp_path / "raman").manifest.quarantined
    assert set(quarantined) == {f"item-{i}" for i in range(50, 55)}
