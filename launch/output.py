"""What a rank prints: without secrets, whoever has started it, and without end when nobody reads it any more."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from launch.hosts.redaction import Redactor

# a pipe, a terminal and a socket without their other end
GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOTCONN}


class Tolerant:
    """A stream that holds no secret and whose failures end nobody: a run must be able to save without its launcher.

    Parameters
    ----------
    stream : text stream
        What is written to.
    lost : callable
        Called once when the other end is gone; what is written from then on is dropped.
    redact : callable
        Takes secrets out of a text.
    """

    def __init__(self, stream: TextIO, lost: Callable[[], None], redact: Callable[[str], str]) -> None:
        self.stream, self.lost, self.redact = stream, lost, redact

    def write(self, text: str) -> int:
        """Write, if that can be done."""
        try:
            self.stream.write(self.redact(text))
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
    """Make standard output and error of this process tolerant; ``lost`` is called for each that nobody reads.

    Secrets are those of this process's environment.
    """
    redact = Redactor(os.environ)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Tolerant):
            setattr(sys, name, cast(TextIO, Tolerant(stream, lost, redact)))
