"""What a host finds of itself, and the process that is asked for it."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.hosts import facts
from launch.hosts.accelerators import COLUMNS, accelerators, parse_smi
from launch.hosts.examine import Door, reach
from launch.hosts.orders import Listener, ask_all
from launch.hosts.remote import Remote
from shards.errors import HostError

EXAMINE = "launch.hosts.examine"


def test_any_change_of_the_code_is_seen(tmp_path: Path) -> None:
    for name in ("launch/a.py", "shards/b/c.py", "shards/data.bin", "docs/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = facts.code(tmp_path)
    assert set(before) == {"launch/a.py", "shards/b/c.py"}
    (tmp_path / "shards/b/c.py").write_text("x = 2\n")
    after = facts.code(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"shards/b/c.py"}


def test_versions_are_of_all_that_the_project_asks_for() -> None:
    found = facts.versions()
    assert {"torch", "deepspeed", "numpy", "typer"} <= set(found)
    assert "pytest" not in found, "an extra"


def test_files_and_data(tmp_path: Path, toy_folder: Path) -> None:
    assert facts.file_sha256(str(toy_folder / "manifest.json")) == facts.manifest(str(toy_folder))["sha256"]
    assert facts.manifest(toy_folder.as_uri()) == facts.manifest(str(toy_folder))
    assert facts.file_sha256(str(tmp_path / "none")) == "it cannot be read: No such file or directory"
    assert "error" in facts.manifest(str(tmp_path / "none"))


def test_embedded_data_has_the_digest_of_its_shards(dft_shards: Path) -> None:
    expected = hashlib.sha256((dft_shards / "manifest.json").read_bytes()).hexdigest()
    assert facts.manifest("embedded:dft_crystals") == {"sha256": expected}


def test_the_folder_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "sign").write_text("token")
    found = facts.folder(str(tmp_path), "token", "sign")
    assert found["same"] and found["written"] is None and found["free_bytes"] > 0
    assert not facts.folder(str(tmp_path), "another", "sign")["same"]
    # it leaves nothing, and makes nothing
    assert [path.name for path in tmp_path.iterdir()] == ["sign"]
    assert facts.folder(str(tmp_path / "new" / "run"), "token", "sign")["written"] is None
    assert not (tmp_path / "new").exists()
    assert facts.folder("/proc/run", "token", "sign")["written"]


def test_names() -> None:
    assert "127.0.0.1" in facts.addresses("localhost")
    assert isinstance(facts.addresses("no such host"), str)


def test_no_accelerator_is_asked_where_the_cpu_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert accelerators() == {"devices": [], "error": None, "nccl": None, "driver": None, "smi": []}


def test_rows_of_nvidia_smi() -> None:
    text = (
        "0, NVIDIA H100 80GB HBM3, 550.54.15, 0, 4, 81559, GPU-a\n"
        "1, Tesla T4, 550.54.15, [N/A], 0, 15360, GPU-b\nNo devices\n"
    )
    rows = parse_smi(text)
    assert [row["name"] for row in rows] == ["NVIDIA H100 80GB HBM3", "Tesla T4"]
    assert set(rows[0]) == set(COLUMNS) and rows[1]["ecc.errors.uncorrected.volatile.total"] == "[N/A]"


def test_a_door_tells_who_reaches_it() -> None:
    door = Door()
    port = door.open(0, "token")
    assert 0 < reach("127.0.0.1", port, "token", 5.0) < 5.0
    with pytest.raises(OSError, match="something else answers"):
        reach("127.0.0.1", port, "nekot", 5.0)
    with pytest.raises(OSError, match=rf"in use, by .* \(process {os.getpid()}, user"):
        Door().open(port, "token")
    door.close()
    with pytest.raises(OSError, match="refused"):
        reach("127.0.0.1", port, "token", 5.0)
    # and another process may have the port at once
    socket.create_server(("127.0.0.1", port)).close()


@pytest.fixture
def listener() -> Listener:
    return Listener("localhost", Remote(), EXAMINE)


def test_orders_are_answered_and_errors_come_back(listener: Listener) -> None:
    before = time.time()
    assert before <= listener.ask("clock", 60.0) <= time.time()
    with pytest.raises(HostError, match="KeyError: 'nonsense'") as caught:
        listener.ask("nonsense", 60.0)
    assert caught.value.where == "localhost"
    # it lives on
    answers, errors = ask_all([listener], "clock", 60.0)
    assert answers["localhost"] >= before and not errors
    listener.close()
    assert listener.process.returncode == 0


def test_an_order_that_hangs_ends_with_the_input(listener: Listener, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    request = {"data": [], "out": str(tmp_path), "token": "", "sign": "", "names": [], "environment": {}}
    assert listener.ask("clock", 60.0)
    with pytest.raises(HostError, match="no answer within 0 s"):
        listener.ask("examine", 0.3, files=[str(tmp_path / "fifo")], **request)
    child = psutil.Process(listener.process.pid)
    assert listener.process.stdin
    listener.process.stdin.close()
    assert child.wait(60) == 0


def test_a_process_that_cannot_start_is_explained() -> None:
    remote = Remote([sys.executable, "-c", "import sys; print('Connection refused', file=sys.stderr); sys.exit(255)"])
    listener = Listener("w9", remote, EXAMINE)
    for _ in range(2):
        with pytest.raises(HostError, match="it refuses ssh connections") as caught:
            listener.ask("clock", 60.0)
        assert caught.value.where == "w9"
    listener.close()
