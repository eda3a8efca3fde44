"""The folder of a run has one writer: a second run waits for the end of the first, and is refused if that lasts."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pretrain.signals import Preempted, Signals
from shards.errors import CheckpointError

LOCK = ".lock"
# ranks that have lost their controller save within --host-timeout and --grace, 90 s unless a user says more
WAIT_S, LOOK_S = 120.0, 0.1


@contextmanager
def sole_writer(folder: Path, signals: Signals, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder of a run; of several ranks the first holds it for all.

    The lock is ``flock``'s: it ends with the process that holds it, however that ends, and stands between hosts where
    the file system has it (NFS, Lustre with ``-o flock``). Elsewhere the run goes on without it, and says so.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    signals : Signals
        A request to end is obeyed while waiting.
    report : callable
        Gets a line.

    Raises
    ------
    CheckpointError
        Where another run still writes after `WAIT_S` seconds, or the folder cannot be written.
    Preempted
        Where the run was asked to end before it got the folder.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise CheckpointError(
            "the folder of the run cannot be written",
            where=f"{socket.gethostname()}: {folder}",
            why=error.strerror,
            do="name another one by --out",
        ) from None
    with file:
        _take(file, folder, signals, report)
        yield


def _take(file: TextIO, folder: Path, signals: Signals, report: Callable[[str], None]) -> None:
    """Lock a file as soon as nobody else does, and write into it who has it."""
    deadline, told = time.monotonic() + WAIT_S, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pass
        except OSError as error:
            report(f"{folder} cannot be locked ({error.strerror}): see that no other run writes there")
            return
        file.seek(0)
        holder = file.read().strip() or "another process"
        if signals.requested:
            raise Preempted(
                "ended early, before the first step",
                where=folder,
                why=f"{signals.explain()}, while {holder} wrote there",
                do="the same command with --resume",
            )
        if time.monotonic() >= deadline:
            raise CheckpointError(
                "another run writes into the folder of this one",
                where=folder,
                why=f"{holder} has not ended within {WAIT_S:.0f} s",
                do="wait for it or end it, and start again with --resume; or name another folder by --out",
            )
        if not told:
            report(f"{folder} is being written by {holder}: waiting for its end, {WAIT_S:.0f} s at the most")
            told = True
        time.sleep(LOOK_S)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
