"""One rank of this host: its process, its output, and what can be known of it from outside."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LAST_LINES = 40
# a line is cut here: a rank that never ends one must not fill the memory
LONGEST_LINE = 1 << 16
# what a process that a rank left behind may keep us waiting for the end of the rank's output
DRAIN_S = 1.0
# loaded before any fork: a child between fork and exec must not load libraries
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Rank:
    """A process that trains.

    Parameters
    ----------
    number : int
        Its rank.
    command : sequence of str
        What to run.
    folder : str
        Working directory.
    environment : mapping of str to str
        All of its variables.
    log : Path
        Gets its output, whatever is written where; a disk that is full stops nothing.
    say : callable
        Gets each line, without secrets, and whether it was written to stderr.
    redact : callable
        Takes secrets out of a line.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        folder: str,
        environment: Mapping[str, str],
        log: Path,
        say: Callable[[str, bool], None],
        redact: Callable[[str], str],
    ) -> None:
        self.number, self.log, self.say, self.redact = number, log, say, redact
        self.code: int | None = None
        self.ended_at = 0.0
        self.told: set[int] = set()
        self.killed = self.reported = False
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._file: FileIO | None = None
        self._complained = False
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with(os.getpid()),
        )
        self.pid = self.process.pid
        self._pump = threading.Thread(target=self._drain, name=f"output of rank {number}", daemon=True)
        self._pump.start()

    def ended(self, code: int) -> None:
        """Note that the process has ended; -N where signal N ended it."""
        self.code = self.process.returncode = code
        self.ended_at = time.monotonic()

    @property
    def drained(self) -> bool:
        """Whether the process has ended and its output is complete."""
        return self.code is not None and (not self._pump.is_alive() or time.monotonic() > self.ended_at + DRAIN_S)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it lives."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
                self.told.add(number)

    def _drain(self) -> None:
        """Take the output as fast as it comes."""
        assert self.process.stdout and self.process.stderr
        errors = self.process.stderr.fileno()
        rest = {self.process.stdout.fileno(): b"", errors: b""}
        while rest:
            for pipe in select.select(list(rest), [], [])[0]:
                piece = os.read(pipe, 1 << 16)
                *lines, rest[pipe] = (rest[pipe] + piece).split(b"\n")
                if not piece or len(rest[pipe]) > LONGEST_LINE:
                    lines, rest[pipe] = [*lines, *filter(None, [rest[pipe]])], b""
                if not piece:
                    del rest[pipe]
                self._take(
                    [self.redact(line.decode("utf-8", "replace").rstrip("\r")) for line in lines], pipe == errors
                )
        if self._file:
            self._file.close()

    def _take(self, lines: list[str], error: bool) -> None:
        self.lines.extend(lines)
        for line in lines:
            self.say(line, error)
        try:
            # no buffer: what stands in the log is what was said until now
            self._file = self._file or self.log.open("ab", buffering=0)
            self._file.write("".join(line + "\n" for line in lines).encode("utf-8", "replace"))
        except OSError as problem:
            if not self._complained:
                self._complained = True
                self.say(f"matloom: the output of rank {self.number} cannot be kept: {problem}", True)


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal, which would end it otherwise."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return not Path("/proc/self/status").exists()


def adopt_orphans(flag: bool = True) -> None:
    """Become, or cease to be, the parent of descendants whose own parents die."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, int(flag), 0, 0, 0)


def die_with(parent: int) -> Callable[[], None]:
    """Return what makes the kernel send TERM to a new process when its parent dies; a rank saves then and ends."""

    def between_fork_and_exec() -> None:
        if _LIBC is not None:
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return between_fork_and_exec


def descendants() -> list[psutil.Process]:
    """Return all processes below this one."""
    with suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """End processes at once."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
