"""Seconds until ``matloom --help`` has answered, beside a Python that does nothing, in turn in one run.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

COMMANDS = {"python -c pass": ["-c", "pass"], "matloom --help": ["-m", "launch.cli", "--help"]}
ROUNDS = 10


def seconds(arguments: list[str]) -> float:
    """Run once and return the wall time."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Print median and largest time of each command."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, values in times.items():
        print(f"{name:16} median {median(values):.3f} s  largest {max(values):.3f} s")


if __name__ == "__main__":
    main()
