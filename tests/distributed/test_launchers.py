"""Mistakes on a launcher's command line that the launcher itself does not mind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pretrain.ports import free_port
from tests.distributed.ranks import TIMEOUT_S
from tests.distributed.runs import SCRIPT, Workshop


def launched(shop: Workshop, launcher: str, *options: str) -> subprocess.CompletedProcess[str]:
    words = [str(Path(sys.executable).with_name(launcher)), *options, str(SCRIPT), *shop.arguments("out")]
    env = {**os.environ, **shop.environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=shop.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_a_hostfile_that_is_not_there_is_refused(tmp_path: Path, toy_folder: Path) -> None:
    shop = Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=5)
    done = launched(shop, "deepspeed", "--hostfile", "hosts", "--num_gpus", "2", "--master_port", str(free_port()))
    assert done.returncode == 2, done.stderr
    assert "the hostfile is not there" in done.stderr and str(tmp_path / "hosts") in done.stderr
    # DeepSpeed itself goes on
    assert "Unable to find hostfile, will proceed" in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_accelerate_that_starts_one_process_for_two_is_refused(tmp_path: Path, toy_folder: Path) -> None:
    shop = Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=5)
    done = launched(shop, "accelerate", "launch", "--cpu", "--num_processes", "2")
    assert done.returncode != 0
    assert "has started one process, although more were wanted" in done.stderr and "--multi_gpu" in done.stderr
    assert not (tmp_path / "out").exists()
