"""How a process ends."""

from __future__ import annotations

import subprocess
import sys

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
