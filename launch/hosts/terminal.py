"""What the user sees: written by a thread of its own, so that a terminal that is paused holds up no run."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

# so many lines may wait; those of ranks that come then are not shown
MOST_WAITING = 5000
# a reader that takes nothing for so long is not waited for at the end
PATIENCE_S = 10.0


class Terminal:
    """Shows lines; a context, whose end waits for a reader that still reads.

    Parameters
    ----------
    redact : callable
        Takes secrets out of a line.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self.redact = redact
        self._waiting: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._written = threading.Event()
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)

    def __enter__(self) -> Terminal:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_dropped()
        self._waiting.put(None)
        while self._thread.is_alive():
            self._written.clear()
            self._thread.join(0.01)
            if self._thread.is_alive() and not self._written.wait(PATIENCE_S):
                return

    def show(self, text: str, error: bool = False) -> None:
        """Show a line, on stderr or stdout; returns at once."""
        # once lines are left out, until there is room for many
        room = MOST_WAITING // 2 if self._dropped else MOST_WAITING
        if self._waiting.qsize() > room and not text.startswith("matloom: "):
            self._dropped += 1
            return
        self._tell_dropped()
        self._waiting.put((text, error))

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._waiting.put((f"({dropped} lines are not shown: they stand in the log)", True))

    def _write(self) -> None:
        while (line := self._waiting.get()) is not None:
            text, error = line
            show(self.redact(text), error)
            self._written.set()
        self._written.set()


def show(text: str, error: bool = False) -> None:
    """Write a line; a terminal that has gone away is no reason to end a run."""
    stream = sys.stderr if error else sys.stdout
    with suppress(OSError, ValueError):
        try:
            number = stream.fileno()
        except OSError:
            # no file: a program that has this command in itself
            print(text, file=stream, flush=True)
            return
        # not by the stream: while a thread waits in it for a reader, the interpreter could not end
        stream.flush()
        data = f"{text}\n".encode(errors="replace")
        while data:
            data = data[os.write(number, data) :]
