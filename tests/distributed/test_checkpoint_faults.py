"""Crashes, full disks and damage, with the checkpoints of a real engine."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.faults import Faults, die
from tests.distributed.ranks import spawn
from tests.distributed.toy_engine import engine, parts, zero

FLIPS, AGAIN = 200, 10


def run_and_save(folder: str, **more: Any) -> tuple[Any, Any]:
    """An engine with checkpoints after its first and its second step."""
    from pretrain.checkpoint import Checkpoints

    run, checkpoints = engine(zero(2), steps=9), Checkpoints(Path(folder), **{"keep": 2, **more})
    for step, part in enumerate(parts(2)):
        run.compute(part, step)
        run.apply()
        checkpoints.save(run, step + 1, {}, {})
    return run, checkpoints


def seals(folder: Path) -> dict[str, dict[str, str]]:
    from shards.sealed import verify

    return {path.name: verify(path) for path in sorted(folder.glob("step-*"))}


def crashes(folder: str, again: bool) -> list[bool]:
    """Save a third time, or the second step once more, with a crash at every operation in turn.

    Whether the newest checkpoint afterwards is the old one, whose files are then those from before.
    """
    live, pristine = Path(folder) / "live", Path(folder) / "pristine"
    faults = Faults(live)
    run, checkpoints = run_and_save(str(live), keep=1, keep_best=False)
    shutil.copytree(live, pristine)
    before = seals(live)
    step, at, found = (2 if again else 3), 0, []
    while True:
        shutil.rmtree(live)
        shutil.copytree(pristine, live)
        ended = crashed(run, checkpoints, step, faults, at)
        newest = checkpoints.newest()
        old = checkpoints.read(newest)[0].get("turn") is None
        assert not old or seals(live) == before
        found.append(old)
        if at % AGAIN == 0 or ended:
            # what the crash left is no hindrance, and is gone afterwards
            checkpoints.save(run, 4, {}, {})
            assert [path.name for path in live.iterdir()] == ["step-00000004"]
        if ended:
            return found
        at += 1


def crashed(run: Any, checkpoints: Any, step: int, faults: Faults, at: int) -> bool:
    """Save with a crash at an operation; True where there are not so many."""
    from tests.distributed.faults import Crash

    try:
        with faults.crash(at):
            checkpoints.save(run, step, {"turn": at}, {})
    except Crash:
        return False
    return True


@pytest.mark.parametrize("again", [False, True])
def test_a_crash_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path: Path, again: bool) -> None:
    found = spawn(crashes, 1, str(tmp_path), again)[0]
    assert len(found) > 40
    # the old one up to one moment, and the new one from then on
    assert found == sorted(found, reverse=True) and found[0] and not found[-1]


def killed(folder: str, at: int) -> int:
    """Save a third time and die in the middle, as by SIGKILL; the operations, where there are fewer."""
    live = Path(folder)
    faults = Faults(live)
    run, checkpoints = run_and_save(folder)
    with faults.crash(at, die):
        checkpoints.save(run, 3, {}, {})
    return faults.count


def resumed(folder: str) -> tuple[str, list[float]]:
    from pretrain.checkpoint import ENGINE, Checkpoints

    newest = Checkpoints(Path(folder), keep=2).newest()
    run = engine(zero(2), steps=9)
    run.load(newest / ENGINE)
    return newest.name, [float(value.double().sum()) for value in run.weights().values()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_at_file_operations_resumes(tmp_path: Path) -> None:
    count = spawn(killed, 1, str(tmp_path / "whole"), 10_000)[0]
    expected = {}
    for at in [*range(0, count, 7), count]:
        folder = tmp_path / str(at)
        with pytest.raises(RuntimeError, match="died without a word") if at < count else contextlib.nullcontext():
            spawn(killed, 1, str(folder), at)
        name, sums = spawn(resumed, 1, str(folder))[0]
        assert expected.setdefault(name, sums) == sums
        shutil.rmtree(folder)
    assert set(expected) == {"step-00000002", "step-00000003"}


def damages(folder: str) -> dict[str, Any]:
    """Flip bits, delete, truncate, add and poison, one at a time; what `newest` says of each."""
    from shards.errors import CheckpointError

    root = Path(folder)
    _, checkpoints = run_and_save(folder, keep=1, keep_best=False)
    (target,) = checkpoints.steps()
    good = {path: path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()}
    sentinel = root / "executed"
    undetected = []

    def detected(what: str) -> None:
        try:
            checkpoints.newest()
            undetected.append(what)
        except CheckpointError:
            pass

    rng = np.random.default_rng(0)
    weights = np.array([len(data) for data in good.values()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(FLIPS):
            # every file in turn, then by size
            index = turn % len(good) if turn < 4 * len(good) else rng.choice(len(good), p=weights / weights.sum())
            path, data = list(good.items())[index]
            flipped = bytearray(data)
            bit = int(rng.integers(8 * len(data)))
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            detected(f"bit {bit} of {path.name}")
            path.write_bytes(data)
        for path, data in good.items():
            for length in (0, len(data) // 2, len(data) - 1):
                path.write_bytes(data[:length])
                detected(f"{path.name} cut to {length}")
            path.unlink()
            detected(f"{path.name} deleted")
            path.write_bytes(pickle.dumps(Poison(str(sentinel))))
            detected(f"{path.name} poisoned")
            path.write_bytes(data)
        (target / "added.pt").write_bytes(b"x")
        detected("a file added")
        (target / "added.pt").unlink()
    return {"undetected": undetected, "executed": sentinel.exists(), "whole": checkpoints.newest().name}


class Poison:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_every_damage_is_detected_and_nothing_is_executed(tmp_path: Path) -> None:
    result = spawn(damages, 1, str(tmp_path))[0]
    assert result == {"undetected": [], "executed": False, "whole": "step-00000002"}
    pickle.loads(pickle.dumps(Poison(str(tmp_path / "executed"))))
    assert (tmp_path / "executed").exists(), "the poison is harmless"


def passed_over(folder: str) -> dict[str, Any]:
    """The newest one is damaged; then all are."""
    from shards.errors import CheckpointError

    _, checkpoints = run_and_save(folder)
    for path in (checkpoints.steps()[1] / "engine").rglob("*optim_states.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoints.newest().name
    told = [str(warning.message) for warning in caught]
    (checkpoints.steps()[0] / "seal.json").unlink()
    try:
        checkpoints.newest()
    except CheckpointError as error:
        return {"found": found, "told": told, "error": str(error)}
    return {}


def test_a_damaged_one_is_passed_over_by_name_and_none_is_an_error(tmp_path: Path) -> None:
    result = spawn(passed_over, 1, str(tmp_path))[0]
    assert result["found"] == "step-00000001"
    assert any("step-00000002" in line and "optim_states.pt" in line for line in result["told"])
    assert "no checkpoint to resume from" in result["error"]


def full_disk(folder: str, where: str) -> dict[str, Any]:
    """The last rank's disk is full while it saves; then there is room again."""
    from shards.errors import CheckpointError

    run, checkpoints = run_and_save(folder)
    before = seals(Path(folder))
    last = run.rank == run.world - 1
    message = ""
    with limited(where if last else "nowhere", Path(folder)):
        try:
            checkpoints.save(run, 3, {}, {})
        except CheckpointError as error:
            message = str(error)
    untouched = seals(Path(folder)) == before
    names = sorted(path.name for path in Path(folder).iterdir())
    values = run.compute(parts(3)[2], 2)
    run.apply()
    checkpoints.save(run, 3, {}, {})
    return {
        "message": message, "untouched": untouched, "names": names, "finite": values["finite"],
        "newest": checkpoints.newest().name,
    }  # fmt: skip


class limited:  # noqa: N801
    """A disk on which no file can grow beyond a few bytes, or a folder that may not be written to."""

    def __init__(self, how: str, folder: Path) -> None:
        self.how, self.folder = how, folder

    def __enter__(self) -> None:
        if self.how == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
        elif self.how == "read-only":
            self.folder.chmod(0o500)
            if os.geteuid() == 0:
                os.seteuid(65534)

    def __exit__(self, *error: object) -> None:
        if self.how == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        elif self.how == "read-only":
            if os.getuid() == 0:
                os.seteuid(0)
            self.folder.chmod(0o700)


@pytest.mark.parametrize(("where", "world"), [("full", 1), ("full", 2), ("read-only", 1)])
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_nothing_else(
    tmp_path: Path, where: str, world: int
) -> None:
    for rank in spawn(full_disk, world, str(tmp_path), where):
        assert f"rank {world - 1}: " in rank["message"]
        assert world == 1 or "rank 0: " not in rank["message"]
        assert rank["untouched"] and rank["names"] == ["step-00000001", "step-00000002"]
        assert rank["finite"] == 1.0 and rank["newest"] == "step-00000003"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(folder: str) -> list[dict[str, Any]]:
    """Save where there is room for a tenth, two tenths ... of a checkpoint."""
    from shards.errors import CheckpointError

    run, checkpoints = run_and_save(folder)
    before, others, found = seals(Path(folder)), Path(folder) / "others", []
    size = sum(path.stat().st_size for path in checkpoints.newest().rglob("*"))
    for tenth in range(1, 10):
        disk = os.statvfs(folder)
        others.write_bytes(bytes(disk.f_bavail * disk.f_frsize - size * tenth // 10))
        message = ""
        try:
            checkpoints.save(run, 3, {}, {})
        except CheckpointError as error:
            message = str(error)
        others.unlink()
        names = sorted(path.name for path in Path(folder).iterdir())
        found.append({"message": message, "kept": seals(Path(folder)) == before, "names": names})
    checkpoints.save(run, 3, {}, {})
    return found


def test_a_full_disk_keeps_what_it_has(small_disk: Path) -> None:
    for found in spawn(fill, 1, str(small_disk))[0]:
        assert "rank 0: " in found["message"]
        assert found["kept"] and found["names"] == ["step-00000001", "step-00000002"]


def kept(folder: str) -> dict[str, list[str]]:
    """Names of the checkpoints after each save, with a score each; the best one is damaged before the last."""
    from pretrain.checkpoint import Checkpoints

    run = engine(zero(1), steps=9)
    run.compute(parts(1)[0], 0)
    run.apply()
    found: dict[str, list[str]] = {"best": [], "last": []}
    for name, best in (("best", True), ("last", False)):
        checkpoints = Checkpoints(Path(folder) / name, keep=2, keep_best=best)
        for step, score in enumerate([0.2, 0.9, float("nan"), None, 0.9, 0.3, 0.1, 0.2]):
            if step == 7:
                for state in (Path(folder) / name).glob("step-00000004/state.json"):
                    state.write_text("{")
            checkpoints.save(run, step, {}, {}, score=score)
            found[name].append(" ".join(str(int(path.name[5:])) for path in checkpoints.steps()))
    return found


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    found = spawn(kept, 1, str(tmp_path))[0]
    assert found["best"] == ["0", "0 1", "1 2", "1 2 3", "3 4", "4 5", "4 5 6", "5 6 7"]
    assert found["last"] == ["0", "0 1", "1 2", "2 3", "3 4", "4 5", "5 6", "6 7"]
