"""How a process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launch.guard import guarded, hiding
from launch.hosts.redaction import Redactor
from shards.errors import DataError, HostError
from tests.canaries import CANARIES, found_in

PROCESS = """
import atexit, sys
import torch.distributed as dist
from launch.guard import leave

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
atexit.register(lambda: print("group", dist.is_initialized()))
leave(int(sys.argv[1]))
"""


def end(code: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROCESS, str(code)], capture_output=True, text=True, timeout=120)


def test_no_group_outlives_a_run_that_went_well() -> None:
    ended = end(0)
    assert ended.returncode == 0
    assert ended.stdout == "group False\n"


def test_after_an_error_nothing_is_waited_for() -> None:
    ended = end(3)
    assert ended.returncode == 3
    assert not ended.stdout


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, DataError])
def test_no_secret_of_the_environment_stands_in_what_an_error_says(
    kind: type[Exception], debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)

    def fail() -> None:
        raise kind("\n".join(f"{name} = {value!r}; {value}" for name, value in CANARIES.items()))

    assert guarded(fail, debug=debug) == (3 if kind is DataError else 70)
    told = capsys.readouterr().err
    assert "HF_TOKEN = '***'" in told
    assert ("Traceback" in told) == debug
    assert not found_in(told)


def test_nor_one_that_only_the_ranks_have() -> None:
    def fail() -> None:
        raise HostError("what", where=f"at {CANARIES['HF_TOKEN']}", why=f"{CANARIES}", do="this")

    with pytest.raises(HostError) as caught, hiding(Redactor(CANARIES)):
        fail()
    assert "at ***" in str(caught.value) and "  try:   this" in str(caught.value)
    assert not found_in(str(caught.value))
