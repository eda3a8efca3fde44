"""What this machine has, and what is missing: versions, accelerator, compiler, memory, disk, registry."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from launch.findings import Finding
from launch.hosts import judgement
from launch.hosts.accelerators import accelerators
from launch.hosts.facts import folder as examined
from launch.hosts.facts import machine


def examine(folder: Path | None = None) -> list[Finding]:
    """Examine this machine as the pre-flight of a run does it; ``folder`` is where runs will be written."""
    found = machine()
    return [
        Finding("python", "ok", found["python"]),
        Finding("cores", "ok", str(found["cores"])),
        *judgement.packages(found["versions"]),
        *_imports(),
        *judgement.accelerators(accelerators()),
        _compiler(),
        judgement.memory(found["memory_bytes"]),
        judgement.shared_memory(found["shared_memory_bytes"]),
        judgement.open_files(*found["open_files"]),
        judgement.disk(examined(str(folder or Path.cwd()), "", ""), shared=False),
        _registry(),
    ]


def _imports() -> Iterator[Finding]:
    for module in ("torchvision", "deepspeed"):
        try:
            # deepspeed's logger writes to whatever standard output is at its import
            with contextlib.redirect_stdout(sys.stderr):
                importlib.import_module(module)
        except Exception as error:
            yield Finding(
                f"import {module}", "failed", f"{type(error).__name__}: {error}", f"install a {module} that fits torch"
            )


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++")
    if found:
        return Finding("c++", "ok", found)
    return Finding("c++", "warning", "not found", "install g++: DeepSpeed compiles its operators on first use")


def _registry() -> Finding:
    from finetune.registry import reachable

    uri, problem = reachable()
    if problem:
        return Finding("registry", "warning", f"{uri}: {problem}", "set MLFLOW_TRACKING_URI")
    return Finding("registry", "ok", uri)
