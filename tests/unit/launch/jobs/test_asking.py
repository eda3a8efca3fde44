"""Signals to the scripts of mpirun and torchrun, with launchers and ranks that take them as the real ones do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.launch.jobs.test_jobs import job, script, start

# saves when USR1 reaches it, once it catches it
RANK = """#!/bin/sh
trap '' TERM INT HUP
sleep "$SLOW"; sleep "$SLOW"
trap ': > "$OUT/.preempting"; sleep 0.2; echo saved > "$OUT/preempted.json"; exit 75' USR1
: > "$OUT/ready"
while true; do sleep 0.02; done
"""
# until it has its handlers, USR1 ends it, and until it has a rank, USR1 is lost; anything else ends its rank unsaved
MPIRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
rank = None
def passed_on(number, frame):
    if os.path.exists(os.environ["OUT"] + "/ready"):
        rank.send_signal(signal.SIGUSR1)
def ended(number, frame):
    if rank is not None:
        rank.kill()
    os._exit(1)
open(os.environ["OUT"] + "/begun", "w").close()
time.sleep(float(os.environ["SLOW"]))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, ended)
signal.signal(signal.SIGUSR1, passed_on)
time.sleep(float(os.environ["SLOW"]))
rank = subprocess.Popen(["rank"])
sys.exit(rank.wait())
"""
# is ended by USR1, and ends with 1 whatever its ranks end with
TORCHRUN = MPIRUN.replace("signal.signal(signal.SIGUSR1, passed_on)", "").replace("rank.wait()", "rank.wait() and 1")
STUBS = {
    "mpi": {"mpirun": MPIRUN, "rank": RANK},
    "torchrun": {"python3": TORCHRUN, "rank": RANK},
}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(kind: str, folder: Path, *, once: str, slow: float, by: Callable[[int], None]) -> int:
    """Run a script, ask it to end once a file is there; its exit code."""
    out = folder / "run"
    out.mkdir()
    # of an earlier run
    (out / ".preempting").touch()
    planned = job(folder=folder, out=Path("run"))
    process, _ = start(script(kind, planned), folder, STUBS[kind], OUT=str(out), SLOW=str(slow))
    try:
        wait_for(lambda: (out / once).exists())
        by(process.pid)
        return process.wait(30)
    finally:
        process.kill()


@pytest.mark.parametrize("whom", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("kind", STUBS)
def test_a_signal_makes_the_ranks_save_and_the_script_end_with_75(
    kind: str, number: int, whom: Callable[[int, int], None], tmp_path: Path
) -> None:
    """Also one to the group of the script, as Ctrl-C in a terminal sends it."""
    assert asked(kind, tmp_path, once="ready", slow=0, by=lambda pid: whom(pid, number)) == 75
    assert (tmp_path / "run" / "preempted.json").read_text() == "saved\n"


@pytest.mark.parametrize("whom", [os.kill, os.killpg])
@pytest.mark.parametrize("kind", STUBS)
def test_a_request_in_the_first_moments_is_repeated_until_a_rank_has_heard_it(
    kind: str, whom: Callable[[int, int], None], tmp_path: Path
) -> None:
    assert asked(kind, tmp_path, once="begun", slow=0.6, by=lambda pid: whom(pid, signal.SIGINT)) == 75
    assert (tmp_path / "run" / "preempted.json").read_text() == "saved\n"


def test_a_rank_that_the_request_has_ended_had_nothing_to_save(tmp_path: Path) -> None:
    """On another host: whether it catches USR1 cannot be seen from here."""
    stub = '#!/bin/sh\ntrap "exit 138" USR1\n: > "$OUT/begun"\nwhile true; do sleep 0.02; done\n'
    process, _ = start(script("mpi", job(folder=tmp_path, out=Path("run"))), tmp_path, {"mpirun": stub},
                       OUT=str(tmp_path / "run"))  # fmt: skip
    wait_for(lambda: (tmp_path / "run" / "begun").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
