"""Fetching shards ahead of their reading, in the background."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shards.errors import DataError
from shards.fetching import StoppedFetchError
from shards.manifest import ShardEntry

# until other processes have given something back, or have fetched what this one needs
PAUSE_S = 0.2


@dataclass(frozen=True)
class Plan:
    """Which shards are read, in the order of their first reading.

    Attributes
    ----------
    entries : list of ShardEntry
        K shards.
    first, last : dict of str to int
        Number of the first and of the last reading of a shard, by its sha256.
    """

    entries: list[ShardEntry]
    first: dict[str, int]
    last: dict[str, int]

    @classmethod
    def of(cls, entries: Sequence[ShardEntry], order: np.ndarray) -> Plan:
        """Return the plan for a series of readings; ``order`` (M,) holds the shard of each."""
        shards, first = np.unique(order, return_index=True)
        last = len(order) - 1 - np.unique(order[::-1], return_index=True)[1]
        ranked = np.argsort(first)
        return cls(
            entries=[entries[shard] for shard in shards[ranked]],
            first={entries[shard].sha256: int(at) for shard, at in zip(shards, first, strict=True)},
            last={entries[shard].sha256: int(at) for shard, at in zip(shards, last, strict=True)},
        )


class Prefetcher:
    """Threads that fetch the shards of a plan.

    Parameters
    ----------
    fetch : callable
        Fetches one shard if it is not here yet; returns False where that must be tried again later.
    threads : int
        Shards that are fetched at once.
    """

    def __init__(self, fetch: Callable[[ShardEntry, threading.Event], bool], threads: int) -> None:
        self._fetch, self._count = fetch, threads
        self._threads: list[threading.Thread] = []
        self._pending: list[ShardEntry] = []
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._ended = threading.Event()

    def replace(self, plan: Plan) -> None:
        """Fetch the shards of another plan from now on."""
        with self._changed:
            self._pending = list(plan.entries)
            self._changed.notify_all()
        while len(self._threads) < self._count and not self._ended.is_set():
            # a daemon: the interpreter's end must not wait for a server; `join` waits a while before that
            thread = threading.Thread(target=self._run, name="shards", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """Try again what could not be fetched, as room has become free."""
        with self._changed:
            self._changed.notify_all()

    def end(self) -> None:
        """Tell the threads to end."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()

    def join(self, patience_s: float = 5.0) -> None:
        """Wait for the threads; one that still waits for a server is left behind after ``patience_s``."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(patience_s)

    def _run(self) -> None:
        put_off: set[str] = set()
        while True:
            with self._changed:
                if self._ended.is_set():
                    return
                entry = next((e for e in self._pending if e.sha256 not in self._busy | put_off), None)
                if entry is None:
                    put_off.clear()
                    self._changed.wait(PAUSE_S if self._pending else None)
                    continue
                self._busy.add(entry.sha256)
            done = True
            try:
                done = self._fetch(entry, self._ended)
            except StoppedFetchError:
                return
            except DataError:
                # the reader will meet it too, and say so
                pass
            except Exception as error:
                warnings.warn(f"shards are not fetched ahead any more: {error!r}", stacklevel=1)
                return
            finally:
                with self._changed:
                    self._busy.discard(entry.sha256)
            if done:
                with self._changed:
                    self._pending = [e for e in self._pending if e.sha256 != entry.sha256]
            else:
                put_off.add(entry.sha256)
