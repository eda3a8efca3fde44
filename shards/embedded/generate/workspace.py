"""The working folder: one file a material and stage, claimed by one process and written atomically."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Deadline:
    """A moment (seconds since the epoch) after which no new material is started."""

    at: float

    @classmethod
    def in_minutes(cls, minutes: float) -> Deadline:
        """Start a clock now."""
        return cls(time.time() + 60 * minutes)

    def passed(self) -> bool:
        """Whether the time is up."""
        return time.time() > self.at


class Workspace:
    """Results of the stages under one folder, ``root/<stage>/<name>.json`` (+ ``.npz``).

    A process takes a material by creating ``root/claims/<stage>_<name>`` exclusively, and gives the claim back when
    the result (or the failure) lies on disk. So any number of processes share the work, a run can be stopped at any
    moment and continued, and a claim left behind by a killed process of the same host is taken over.

    Parameters
    ----------
    root
        The folder; created when absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.claims = self.root / "claims"
        self.claims.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, name: str, suffix: str = ".json") -> Path:
        """Where a stage keeps a file of a material; the folder is created."""
        folder = self.root / stage
        folder.mkdir(exist_ok=True)
        return folder / f"{name}{suffix}"

    def has(self, stage: str, name: str) -> bool:
        """Whether a result lies on disk."""
        return self.path(stage, name).exists()

    def settled(self, stage: str, name: str) -> bool:
        """True when the material has a result or a recorded failure (delete ``.failed`` to try again)."""
        return self.has(stage, name) or self.path(stage, name, ".failed").exists()

    def names(self, stage: str) -> list[str]:
        """Sorted names with a result."""
        return sorted(p.name[: -len(".json")] for p in (self.root / stage).glob("*.json"))

    def read(self, stage: str, name: str) -> dict[str, Any]:
        """Read the summary of a result."""
        return json.loads(self.path(stage, name).read_text())

    def arrays(self, stage: str, name: str) -> dict[str, np.ndarray]:
        """Read the arrays of a result."""
        with np.load(self.path(stage, name, ".npz"), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def failures(self, stage: str) -> dict[str, str]:
        """Name -> error of every recorded failure."""
        found = sorted((self.root / stage).glob("*.failed"))
        return {p.name[: -len(".failed")]: json.loads(p.read_text())["error"] for p in found}

    def write(
        self, stage: str, name: str, summary: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> None:
        """Publish a result: arrays first, the JSON that declares it done last, each by rename."""
        if arrays:
            write_arrays(self.path(stage, name, ".npz"), arrays)
        write_text(self.path(stage, name), json.dumps(summary))

    def fail(self, stage: str, name: str, error: BaseException) -> None:
        """Record that a material failed, so that it is not tried again."""
        write_text(self.path(stage, name, ".failed"), json.dumps({"error": repr(error)[:200]}))

    @contextmanager
    def claim(self, stage: str, name: str) -> Iterator[bool]:
        """Yield True in exactly one process; the claim ends with the block."""
        ticket = self.claims / f"{stage}_{name}"
        mine = self._take(ticket) and not self.settled(stage, name)
        try:
            yield mine
        finally:
            if _owner(ticket) == _me():
                ticket.unlink()

    def _take(self, ticket: Path) -> bool:
        owner = _owner(ticket)
        if owner is not None and not _alive(owner):
            stale = ticket.with_name(f".stale.{ticket.name}.{os.getpid()}")
            try:  # rename is atomic: of several processes that see the dead claim, one removes it
                ticket.rename(stale)
                stale.unlink()
            except FileNotFoundError:
                return False
        try:
            handle = os.open(ticket, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        os.write(handle, _me().encode())
        os.close(handle)
        return True


def work(
    space: Workspace,
    stage: str,
    names: Iterable[str],
    compute: Callable[[str], tuple[dict[str, Any], dict[str, np.ndarray] | None]],
    deadline: Deadline,
) -> None:
    """Compute every unsettled material of one stage, until the deadline; a failure is recorded, not raised.

    Parameters
    ----------
    space, stage, names
        Where results go, and the order of the work.
    compute
        ``name -> (summary, arrays or None)``.
    deadline
        No material is started after it.
    """
    for name in names:
        if deadline.passed():
            print(f"{stage}: time is up", flush=True)
            return
        if space.settled(stage, name):
            continue
        with space.claim(stage, name) as mine:
            if not mine:
                continue
            started = time.time()
            try:
                summary, arrays = compute(name)
            except Exception as error:  # one bad crystal must not end a run of hours
                space.fail(stage, name, error)
                print(f"{stage} {name} FAILED {error!r:.150}", flush=True)
                continue
            summary["seconds"] = round(time.time() - started, 2)
            space.write(stage, name, summary, arrays)
            print(f"{stage} {name} {summary['seconds']} s", flush=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file by rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(partial, **named)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file by rename, so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _me() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _owner(ticket: Path) -> str | None:
    try:
        return ticket.read_text()
    except FileNotFoundError:
        return None


def _alive(owner: str) -> bool:
    """Whether the process of a claim still runs; one of another host, or one being written, counts as alive."""
    host, _, pid = owner.rpartition(" ")
    if host != socket.gethostname() or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
