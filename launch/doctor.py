"""What this machine has, and what is missing: versions, accelerator, compiler, memory, disk, registry."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "missing"]
FREE_GB = 5


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``do`` says how to mend what is not ok."""

    name: str
    status: Status
    value: str
    do: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Examine this machine; ``folder`` is where runs will be written."""
    return [
        *_python(),
        *_packages(),
        _accelerator(),
        _compiler(),
        _memory(),
        _shared_memory(),
        _disk(folder or Path.cwd()),
        _registry(),
    ]


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values."""
    return [asdict(finding) for finding in findings]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    yield Finding("cores", "ok", str(os.cpu_count()))


def _packages() -> Iterator[Finding]:
    for line in requires("matloom") or []:
        if "extra ==" in line:
            continue
        name = line.split(";")[0].split(">")[0].split("=")[0].split("[")[0].strip()
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install '{line.split(';')[0].strip()}'")
    for module in ("torchvision", "deepspeed"):
        try:
            # deepspeed's logger writes to whatever standard output is at its import
            with contextlib.redirect_stdout(sys.stderr):
                importlib.import_module(module)
        except Exception as error:
            yield Finding(
                f"import {module}", "missing", f"{type(error).__name__}: {error}", f"install a {module} that fits torch"
            )


def _accelerator() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("accelerator", "ok", "none, runs on the CPU (gloo)")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Finding("accelerator", "ok", f"{torch.cuda.device_count()} x {', '.join(sorted(names))} (nccl)")


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++")
    if found:
        return Finding("c++", "ok", found)
    return Finding("c++", "warning", "not found", "install g++: DeepSpeed compiles its operators on first use")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return Finding("memory", "ok" if free > 4 else "warning", f"{free:.1f} GiB free", "" if free > 4 else "free some")


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", "warning", "no /dev/shm", "mount a tmpfs there")
    free = shutil.disk_usage(path).free / 2**20
    enough = free > 256
    return Finding(
        "shared memory",
        "ok" if enough else "warning",
        f"{free:.0f} MiB free",
        "" if enough else "raise it (docker: --shm-size=1g)",
    )


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1e9
    writable = os.access(folder, os.W_OK)
    if not writable:
        return Finding("disk", "missing", f"{folder} cannot be written", "choose another folder")
    enough = free > FREE_GB
    return Finding("disk", "ok" if enough else "warning", f"{free:.0f} GB free", "" if enough else "free some space")


def _registry() -> Finding:
    from finetune.registry import reachable

    uri, problem = reachable()
    if problem:
        return Finding("registry", "warning", f"{uri}: {problem}", "set MLFLOW_TRACKING_URI")
    return Finding("registry", "ok", uri)
