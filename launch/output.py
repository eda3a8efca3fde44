"""What a rank prints, when nobody reads it any more: the launcher, or the ssh connection to it, is gone."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

# a pipe, a terminal and a socket without their other end
GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOTCONN}


class Tolerant:
    """A stream whose failures end nobody: a run must be able to save when its launcher has died.

    Parameters
    ----------
    stream : text stream
        What is written to.
    lost : callable
        Called once when the other end is gone; what is written from then on is dropped.
    """

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self.stream, self.lost = stream, lost

    def write(self, text: str) -> int:
        """Write, if that can be done."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        """Write out what is kept back."""
        try:
            self.stream.flush()
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if error.errno not in GONE:
            # a full disk may have room again
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        self.lost()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def outlive_readers(lost: Callable[[], None]) -> None:
    """Make standard output and error of this process tolerant; ``lost`` is called for each that nobody reads."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Tolerant):
            setattr(sys, name, cast(TextIO, Tolerant(stream, lost)))
