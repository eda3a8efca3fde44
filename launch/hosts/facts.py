"""What one host finds of itself, as plain values; nothing is judged here."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import socket
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from launch.hosts.remote import ROOT

PACKAGES = ("shards", "pretrain", "finetune", "launch")
# enough to fill what is left of a quota, and to notice a disk that takes no more
WRITTEN = 1 << 20


def requirements() -> list[Requirement]:
    """Return what the project asks for, without its extras."""
    declared = ROOT / "pyproject.toml"
    # what pip has noted is as old as the last installation
    lines = tomllib.loads(declared.read_text())["project"]["dependencies"] if declared.exists() else requires("matloom")
    found = [Requirement(line) for line in lines or []]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def versions() -> dict[str, str | None]:
    """Return the version of every package that the project asks for, None where it is missing."""
    found: dict[str, str | None] = {}
    for requirement in requirements():
        found[requirement.name] = None
        with suppress(PackageNotFoundError):
            found[requirement.name] = version(requirement.name)
    return found


def code(root: Path = ROOT) -> dict[str, str]:
    """Return the start of the sha256 of every Python file of the project, by its path."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def file_sha256(path: str) -> str:
    """Return the sha256 of a file, or why it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def manifest(place: str) -> dict[str, str]:
    """Return where a data set is and the sha256 of its manifest, or why there is none."""
    from shards.errors import MatloomError
    from shards.locate import existing
    from shards.manifest import manifest_bytes
    from shards.store import open_store

    try:
        with closing(open_store(existing(place))) as store:
            return {"sha256": hashlib.sha256(manifest_bytes(store.folder)).hexdigest()}
    except (MatloomError, OSError) as error:
        return {"error": str(error).splitlines()[0]}


def folder(path: str, token: str, sign: str) -> dict[str, Any]:
    """Return what can be done in the run's folder.

    Parameters
    ----------
    path : str
        The folder.
    token, sign : str
        Name of a file that the controller has put there, and what it says: who reads that sees the same folder.
    """
    found: dict[str, Any] = {"path": path, "same": False, "written": None, "free_bytes": 0}
    with suppress(OSError):
        found["same"] = (Path(path) / sign).read_text() == token
    # where it is not there yet, a run makes it
    place = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.is_dir())
    mine = place / f".matloom-{os.getpid()}-{socket.gethostname()}"
    try:
        found["free_bytes"] = shutil.disk_usage(place).free
        with mine.open("wb") as file:
            file.write(os.urandom(WRITTEN))
            os.fsync(file.fileno())
    except OSError as error:
        found["written"] = error.strerror
    finally:
        with suppress(OSError):
            mine.unlink()
    return found


def shared_memory() -> int | None:
    """Return the bytes that are free in ``/dev/shm``, None where there is none."""
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None


def addresses(name: str) -> list[str] | str:
    """Return the addresses of a name, or why it has none."""
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError) as error:
        return str(error)


def machine() -> dict[str, Any]:
    """Return what the machine and its Python are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().available,
        "shared_memory_bytes": shared_memory(),
        "open_files": [soft, hard],
        "versions": versions(),
    }


def everything(
    files: Sequence[str],
    data: Sequence[str],
    out: str,
    token: str,
    sign: str,
    names: Sequence[str],
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Return all that a host finds of itself before a run, with the variables of the ranks: where the cache is, say."""
    os.environ.update(environment)
    from launch.hosts.accelerators import accelerators

    return {
        **machine(),
        "code": code(),
        "files": {path: file_sha256(path) for path in files},
        "data": [manifest(place) for place in data],
        "folder": folder(out, token, sign),
        "names": {name: addresses(name) for name in names},
        "accelerators": accelerators(),
    }
