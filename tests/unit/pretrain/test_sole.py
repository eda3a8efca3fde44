"""Who writes into a run's folder: one process, whatever others want."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain import sole
from pretrain.signals import Preempted, Signals
from pretrain.sole import LOCK, sole_writer
from shards.errors import CheckpointError

WRITER = """
import sys
from pathlib import Path
from pretrain.signals import Signals
from pretrain.sole import sole_writer
with sole_writer(Path(sys.argv[1]), Signals(), print):
    print("there", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process write into a folder, until its input ends."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def waiting(then: Callable[[], object]) -> tuple[list[str], Callable[[str], None]]:
    """Return a report that does something when it says that it waits, and the lines that it got."""
    lines = list[str]()

    def report(line: str) -> None:
        lines.append(line)
        then()

    return lines, report


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole, "WAIT_S", 0.3)
    with another(tmp_path) as process:
        for _ in range(2):
            with (
                pytest.raises(CheckpointError, match=f"process {process.pid} on ") as raised,
                sole_writer(tmp_path, Signals(), print),
            ):
                raise AssertionError("two of them write")
            assert "--resume" in str(raised.value)
        assert process.poll() is None
    with sole_writer(tmp_path, Signals(), print):
        pass


@pytest.mark.parametrize("killed", [True, False])
def test_a_second_writer_goes_on_once_the_first_has_ended(tmp_path: Path, killed: bool) -> None:
    with another(tmp_path) as process:
        assert process.stdin is not None
        lines, report = waiting(process.kill if killed else process.stdin.close)
        with sole_writer(tmp_path, Signals(), report):
            process.wait()
            assert len(lines) == 1 and f"process {process.pid} on " in lines[0]


def test_a_request_to_end_is_obeyed_while_waiting(tmp_path: Path) -> None:
    signals = Signals()
    lines, report = waiting(lambda: signals.request("TERM to rank 0"))
    with (
        another(tmp_path),
        pytest.raises(Preempted, match="TERM to rank 0"),
        sole_writer(tmp_path, signals, report),
    ):
        raise AssertionError("two of them write")
    assert len(lines) == 1


def test_of_several_ranks_the_first_holds_the_folder_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sole, "WAIT_S", 0.0)
    with sole_writer(tmp_path, Signals(), print):
        monkeypatch.setenv("RANK", "1")
        with sole_writer(tmp_path, Signals(), print):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(CheckpointError), sole_writer(tmp_path, Signals(), print):
            pass


def test_where_files_cannot_be_locked_the_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    lines = list[str]()
    with sole_writer(tmp_path, Signals(), lines.append):
        assert (tmp_path / LOCK).exists()
    assert len(lines) == 1 and "Function not implemented" in lines[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(CheckpointError, match=str(folder)) as raised, sole_writer(folder, Signals(), print):
        pass
    assert "--out" in str(raised.value)
