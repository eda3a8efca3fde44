"""Delivers a journal to MLflow from a thread: in order, once, whenever the server is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from pretrain.journal import Event, Journal
from shards.urls import hidden_in

BATCH = 200
LONGEST_WAIT_S = 60.0


class Server(Protocol):
    """Where events go."""

    def deliver(self, events: list[Event], *, doubtful: bool) -> None:
        """Deliver events, or raise; where ``doubtful``, some of them may have arrived at an earlier try."""


class Courier:
    """A thread that delivers a journal.

    Parameters
    ----------
    journal : Journal
        What to deliver; closed when the thread ends.
    server : Server
        Where to.
    report : callable
        Gets a line when the server goes away, and when it is back.
    """

    def __init__(self, journal: Journal, server: Server, report: Callable[[str], None]) -> None:
        self.journal, self.server, self.report = journal, server, report
        self._news, self._over = threading.Event(), threading.Event()
        # the first try after a start may repeat what the process before it delivered and could not note down
        self._doubtful = True
        self._failures = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        """Start delivering."""
        self._news.set()
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new."""
        self._news.set()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything has been delivered; False where the time was not enough."""
        self.wake()
        deadline = time.monotonic() + timeout_s
        while not self.journal.is_delivered and time.monotonic() < deadline:
            self._over.wait(0.02)
        return self.journal.is_delivered

    def stop(self) -> None:
        """End the thread after what it is delivering now; the rest stays in the journal.

        A delivery may take longer than one waits for it here, that of a large model for example. So the thread closes
        the journal itself: until then nobody else can deliver the same a second time.
        """
        self._over.set()
        self._news.set()
        self._thread.join(timeout=LONGEST_WAIT_S)

    def _work(self) -> None:
        while not self._over.is_set():
            self._news.wait()
            self._news.clear()
            while not self._over.is_set() and self._deliver_some():
                pass
        self.journal.close()

    def _deliver_some(self) -> bool:
        """Deliver the next events; says whether there may be more.

        Where the disk is full, what has been delivered cannot be noted down, and is doubtful too.
        """
        events, offset = self.journal.pending(BATCH)
        if not events:
            return False
        try:
            self.server.deliver(events, doubtful=self._doubtful)
            self.journal.delivered(offset)
        except Exception as error:
            self._away(error)
            return True
        self._doubtful = False
        if self._failures:
            self.report("MLflow is back: what was kept in the meantime is being delivered")
            self._failures = 0
        return True

    def _away(self, error: Exception) -> None:
        self._doubtful = True
        if not self._failures:
            text = hidden_in(str(error)).strip()
            reason = text.splitlines()[0][:200] if text else type(error).__name__
            self.report(f"MLflow is away, training goes on; {self.journal.path} keeps what it should get: {reason}")
        self._failures += 1
        self._over.wait(min(LONGEST_WAIT_S, 2.0 ** min(self._failures, 10) / 2))
