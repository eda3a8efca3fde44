"""A journal of what is to be told to a tracking server: written at once, delivered when the server is there.

Events are lines of ``journal.jsonl``; ``state.json`` holds how far they have been delivered, and survives a kill at any
moment. Nothing is lost while the server is away, and nothing is told twice: a metric has one value a step, the first,
so that what a run measures again, resumed or returned to an earlier step, is not written again.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shards.errors import ConfigError

JOURNAL, STATE, LOCK = "journal.jsonl", "state.json", "lock"
# a journal that is delivered to its end starts afresh beyond this size
LARGE = 16 << 20
# at once, when the end of a journal is looked for
BLOCK = 1 << 16

Event = dict[str, Any]


class Journal:
    """The journal in one folder; one process at a time has it.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    wait_s : float
        Seconds to wait for another that has it.

    Attributes
    ----------
    state : dict
        ``key`` (names the run for ever), ``offset`` (bytes delivered), ``steps`` (highest step a metric was written
        for), and what the delivery keeps there (``run_id``).
    """

    def __init__(self, folder: Path, *, wait_s: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / JOURNAL
        self._lock, self._owner = threading.Lock(), FileLock(folder / LOCK, thread_local=False)
        try:
            self._owner.acquire(timeout=wait_s)
        except Timeout:
            raise ConfigError(
                "another process writes this journal", where=folder, do="wait until the run has ended"
            ) from None
        self.state: dict[str, Any] = {"key": uuid.uuid4().hex, "offset": 0, "steps": {}}
        if (folder / STATE).exists():
            self.state |= json.loads((folder / STATE).read_text())
        self._cut_last_line()
        # the state remembers what has been delivered: journals may be large
        for event, _ in self._read(self.state["offset"]):
            self._remember(event)
        self._unwritten = bytearray()
        self.save()

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been written."""
        return self.path.stat().st_size == 0 and not self.state["steps"]

    @property
    def is_delivered(self) -> bool:
        """Whether everything that was written has been delivered."""
        with self._lock:
            return not self._unwritten and self.state["offset"] == self.path.stat().st_size

    def append(self, kind: str, **content: Any) -> None:
        """Write an event; returns when the operating system has it.

        What a full disk does not take waits in memory and goes first the next time: training does not end for it.
        """
        event = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **content}
        with self._lock:
            self._remember(event)
            self._unwritten += json.dumps(event).encode() + b"\n"
            self._write()

    def metrics(self, values: Mapping[str, float], step: int, model: str = "") -> None:
        """Write metrics of a step, less those that have been written for it or a later one; ``model``: its URI."""
        steps = self.state["steps"]
        fresh = {name: float(value) for name, value in values.items() if step > steps.get(name, -1)}
        if fresh:
            self.append("metrics", step=step, values=fresh, **({"model": model} if model else {}))

    def pending(self, most: int) -> tuple[list[Event], int]:
        """Return the next events that were not delivered, ``most`` at most, and the offset behind them."""
        with self._lock:
            self._write()
            found = list(islice(self._read(self.state["offset"]), most))
            return [event for event, _ in found], found[-1][1] if found else self.state["offset"]

    def delivered(self, offset: int) -> None:
        """Take note that everything before ``offset`` has been delivered; where that cannot be written, it was not."""
        with self._lock:
            self._save({**self.state, "offset": offset})
            self.state["offset"] = offset
            if offset > LARGE and offset == self.path.stat().st_size and not self._unwritten:
                # a kill before the state is written leaves an offset behind the end, which is read as 0
                os.truncate(self.path, 0)
                self.state["offset"] = 0
                self._save(self.state)

    def save(self) -> None:
        """Write the state, by rename."""
        with self._lock:
            self._save(self.state)

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._write()
            self._owner.release()

    def _save(self, state: dict[str, Any]) -> None:
        partial = self.folder / f".{STATE}.partial"
        partial.write_text(json.dumps(state))
        os.replace(partial, self.folder / STATE)

    def _write(self) -> None:
        if not self._unwritten:
            return
        with suppress(OSError), self.path.open("ab", buffering=0) as file:
            while self._unwritten:
                del self._unwritten[: file.write(self._unwritten)]

    def _read(self, offset: int) -> Iterator[tuple[Event, int]]:
        """Yield the whole lines from ``offset``, each with the offset behind it."""
        with self.path.open("rb") as file:
            file.seek(offset)
            while (line := file.readline()).endswith(b"\n"):
                offset += len(line)
                yield json.loads(line), offset

    def _remember(self, event: Event) -> None:
        if event["kind"] == "metrics":
            steps = self.state["steps"]
            for name in event["values"]:
                steps[name] = max(event["step"], steps.get(name, -1))

    def _cut_last_line(self) -> None:
        """Drop a line that a kill cut short, and offsets behind the end."""
        self.path.touch()
        with self.path.open("r+b") as file:
            whole = size = file.seek(0, os.SEEK_END)
            while whole:
                start = max(0, whole - BLOCK)
                file.seek(start)
                newline = file.read(whole - start).rfind(b"\n")
                whole = start + newline + 1
                if newline >= 0:
                    break
            if whole < size:
                file.truncate(whole)
        if self.state["offset"] > whole:
            self.state["offset"] = 0
