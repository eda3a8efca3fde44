"""The journal loses nothing and delivers nothing twice, whenever its process or the server dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import journal as module
from pretrain.delivery import Courier
from pretrain.journal import Event, Journal
from shards.errors import ConfigError


class FileServer:
    """Keeps what it is told in a file; tries fail as scripted: before anything arrives, or after all has."""

    def __init__(self, path: Path, script: list[str]) -> None:
        self.path, self.script = path, list(script)

    def known(self) -> list[tuple[str, int]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [tuple(json.loads(line)) for line in lines if line]

    def deliver(self, events: list[Event], *, doubtful: bool) -> None:
        fault = self.script.pop(0) if self.script else ""
        if fault == "away":
            raise ConnectionError("nobody answers")
        known = set(self.known()) if doubtful else set()
        with self.path.open("a") as file:
            for event in events:
                for name in event["values"]:
                    if (name, event["step"]) not in known:
                        file.write(json.dumps([name, event["step"]]) + "\n")
        if fault == "silent":
            raise TimeoutError("no answer")
        if fault == "kill":
            os._exit(9)


def write(folder: Path, server: FileServer, steps: range, timeout_s: float = 60.0) -> bool:
    journal = Journal(folder / "tracking")
    courier = Courier(journal, server, lambda line: None)
    for step in steps:
        journal.metrics({"loss": 1.0 / (step + 1), "lr": 0.1}, step)
        if step == steps[len(steps) // 2]:
            courier.start()
        courier.wake()
    done = courier.drain(timeout_s)
    courier.stop()
    journal.close()
    return done


def write_and_die(folder: Path, server: FileServer, steps: range) -> None:
    journal = Journal(folder / "tracking")
    for step in steps:
        journal.metrics({"loss": 1.0 / (step + 1), "lr": 0.1}, step)
    courier = Courier(journal, server, lambda line: None)
    courier.start()
    courier.drain(60)


def expected(steps: range) -> list[tuple[str, int]]:
    return sorted((name, step) for name in ("loss", "lr") for step in steps)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.delivery.LONGEST_WAIT_S", 0.001)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["", "away", "silent"]), max_size=8), st.integers(1, 30))
def test_faults_of_the_server_lose_and_double_nothing(
    tmp_path_factory: pytest.TempPathFactory, script: list[str], steps: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    server = FileServer(folder / "server", script)
    module_batch = pytest.MonkeyPatch()
    module_batch.setattr("pretrain.delivery.BATCH", 3)
    module_batch.setattr("pretrain.delivery.LONGEST_WAIT_S", 0.001)
    with module_batch.context():
        assert write(folder, server, range(steps))
    module_batch.undo()
    assert sorted(server.known()) == expected(range(steps))


def test_a_kill_between_the_server_and_the_note_of_it_doubles_nothing(tmp_path: Path) -> None:
    for start in (0, 5, 10):
        server = FileServer(tmp_path / "server", ["kill"])
        process = multiprocessing.get_context("fork").Process(
            target=write_and_die, args=(tmp_path, server, range(start, start + 8))
        )
        process.start()
        process.join(60)
        assert process.exitcode == 9
    # what the killed process had not come to, the resumed run writes: it goes back some steps
    assert write(tmp_path, FileServer(tmp_path / "server", []), range(10, 20))
    assert sorted(FileServer(tmp_path / "server", []).known()) == expected(range(20))


def test_what_a_resumed_run_measures_again_is_not_written_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"loss": 3.0}, 1)
    journal.metrics({"loss": 2.0}, 2)
    journal.close()
    journal = Journal(tmp_path)
    journal.metrics({"loss": 9.0, "lr": 0.1}, 2)
    journal.metrics({"loss": 1.0}, 3)
    events, _ = journal.pending(10)
    assert [(event["step"], event["values"]) for event in events] == [
        (1, {"loss": 3.0}),
        (2, {"loss": 2.0}),
        (2, {"lr": 0.1}),
        (3, {"loss": 1.0}),
    ]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("note", text="whole")
    journal.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind": "note", "te')
    journal = Journal(tmp_path)
    journal.append("note", text="next")
    assert [event["text"] for event in journal.pending(10)[0]] == ["whole", "next"]


def test_a_delivered_journal_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1000)
    server = FileServer(tmp_path / "server", [])
    for start in range(0, 200, 50):
        assert write(tmp_path, server, range(start, start + 50))
    assert (tmp_path / "tracking" / "journal.jsonl").stat().st_size <= 6000
    assert sorted(server.known()) == expected(range(200))


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ConfigError, match="another process"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_server_that_stays_away_ends_the_wait_and_keeps_the_events(tmp_path: Path) -> None:
    lines: list[str] = []
    journal = Journal(tmp_path / "tracking")
    courier = Courier(journal, FileServer(tmp_path / "server", ["away"] * 10**6), lines.append)
    courier.start()
    journal.metrics({"loss": 1.0}, 1)
    assert not courier.drain(0.2)
    courier.stop()
    journal.close()
    assert len(lines) == 1
    assert "training goes on" in lines[0]
    assert write(tmp_path, FileServer(tmp_path / "server", []), range(2, 3))
    assert FileServer(tmp_path / "server", []).known() == [("loss", 1), ("loss", 2), ("lr", 2)]


def test_a_full_disk_ends_neither_training_nor_the_delivery(tmp_path: Path) -> None:
    def refused(path: Path, *args: object, **more: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    server = FileServer(tmp_path / "server", [])
    journal = Journal(tmp_path / "tracking")
    courier = Courier(journal, server, lambda line: None)
    courier.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refused, raising=True)
        journal.metrics({"loss": 1.0}, 1)
        assert not journal.is_delivered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_save", refused)
        journal.metrics({"loss": 1.0}, 2)
        assert not courier.drain(0.3)
    journal.metrics({"loss": 1.0}, 3)
    assert courier.drain(60)
    courier.stop()
    journal.close()
    assert server.known() == [("loss", 1), ("loss", 2), ("loss", 3)]


def test_a_delivery_that_outlasts_the_waiting_for_it_is_not_made_a_second_time(tmp_path: Path) -> None:
    """A courier that was stopped while it delivers keeps the journal until it has noted what has arrived."""
    begun, goes_on = threading.Event(), threading.Event()

    class Slow(FileServer):
        def deliver(self, events: list[Event], *, doubtful: bool) -> None:
            begun.set()
            assert goes_on.wait(60)
            super().deliver(events, doubtful=doubtful)

    journal = Journal(tmp_path / "tracking")
    journal.metrics({"loss": 1.0}, 1)
    courier = Courier(journal, Slow(tmp_path / "server", []), lambda line: None)
    courier.start()
    assert begun.wait(60)
    courier.stop()
    with pytest.raises(ConfigError, match="another process"):
        Journal(tmp_path / "tracking")
    threading.Timer(0.1, goes_on.set).start()
    after = Journal(tmp_path / "tracking", wait_s=60)
    assert after.is_delivered
    after.close()


def test_no_password_is_shown(tmp_path: Path) -> None:
    class Refusing:
        def deliver(self, events: list[Event], *, doubtful: bool) -> None:
            raise ConnectionError("cannot reach https://bob:hunter2@mlflow.example/api?token=secret1 now")

    lines: list[str] = []
    journal = Journal(tmp_path)
    journal.append("note")
    courier = Courier(journal, Refusing(), lines.append)
    courier.start()
    courier.drain(0.2)
    courier.stop()
    journal.close()
    assert "mlflow.example" in lines[0]
    assert "hunter2" not in lines[0] and "secret1" not in lines[0]


def test_a_start_reads_only_what_was_not_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write(tmp_path, FileServer(tmp_path / "server", []), range(50))
    read: list[int] = []
    original = Journal._read
    monkeypatch.setattr(Journal, "_read", lambda self, offset: read.append(offset) or original(self, offset))
    journal = Journal(tmp_path / "tracking")
    assert read[0] == (tmp_path / "tracking" / "journal.jsonl").stat().st_size
    journal.metrics({"loss": 0.0}, 49)
    assert journal.is_delivered
    journal.close()
