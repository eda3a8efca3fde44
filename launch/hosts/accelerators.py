"""Accelerators of this host, and whether each computes: a process of its own looks, as a sick one may hang for ever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
DEADLINE_S = 60.0
# of one product of two square matrices, whose elements are all equal: exact in fp32
SIZE = 1024
COLUMNS = ("index", "name", "driver_version", "ecc.errors.uncorrected.volatile.total", "memory.used", "memory.total",
           "uuid")  # fmt: skip


def accelerators(deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    """Return what the accelerators are and whether they compute.

    Returns
    -------
    dict
        ``devices``: for each that is visible here its ``name``, ``uuid`` and ``error``, None where it computes;
        ``error``: why nothing is known of them, or None; ``nccl`` and ``driver``: versions; ``smi``: rows of
        nvidia-smi, which knows of all that the host has, in an order of its own.
    """
    found: dict[str, Any] = {"devices": [], "error": None, "nccl": None, "driver": None, "smi": []}
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(Path(device).exists() for device in DEVICES):
        return found
    found["smi"] = _smi()
    found["driver"] = next((row["driver_version"] for row in found["smi"]), None)
    command = [sys.executable, "-m", "launch.hosts.accelerators"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return {**found, "error": f"no result within {deadline_s:.0f} s"}
    if done.returncode:
        return {**found, "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {**found, **json.loads(done.stdout.splitlines()[-1])}


def parse_smi(text: str) -> list[dict[str, str]]:
    """Return a row a GPU of ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows if len(row) == len(COLUMNS)]


def _smi() -> list[dict[str, str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = f"--query-gpu={','.join(COLUMNS)}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_smi(done.stdout)


def main() -> None:
    """Let every device compute, and print what came of it."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        error = None
        try:
            ones = torch.ones(SIZE, SIZE, device=f"cuda:{number}")
            if not bool((ones @ ones == SIZE).all()):
                error = "it computes wrongly"
        except RuntimeError as caught:
            error = str(caught).splitlines()[0]
        properties = torch.cuda.get_device_properties(number)
        devices.append({"name": properties.name, "uuid": f"GPU-{properties.uuid}", "error": error})
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if devices else None
    print(json.dumps({"devices": devices, "nccl": nccl}))


if __name__ == "__main__":
    main()
