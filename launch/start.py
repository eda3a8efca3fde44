"""Starting ranks on this host: the commands, their environment, and an exit code that means something."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def ranks_here(*, most_on_cpu: int) -> int:
    """Return the number of GPUs, or on a CPU as many ranks as there are cores, up to ``most_on_cpu``."""
    import torch

    return torch.cuda.device_count() or min(most_on_cpu, os.cpu_count() or 1)


def pretrain_command(recipe: Path, options: Sequence[str], ranks: int) -> list[str]:
    """Return the command that pretrains on this host."""
    program = Path(sys.executable).with_name("matloom")
    return [str(program), "pretrain", str(recipe), *options, "--accelerators", str(ranks)]


def finetune_command(options: Sequence[str]) -> list[str]:
    """Return the command that fine-tunes in one process."""
    return [sys.executable, str(HERE / "finetune.py"), *options]


def environment(threads: int | None = None) -> dict[str, str]:
    """Return the environment for ranks: the interpreter's folder first on PATH, and ``threads`` a process."""
    env = dict(os.environ)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def run(command: Sequence[str], *, threads: int | None = None) -> int:
    """Run a command to its end and return its exit code."""
    return subprocess.run(command, env=environment(threads), check=False).returncode
