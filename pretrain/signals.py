"""Requests to end: signals, and the death of the launcher; noticed at once, obeyed by all ranks at the same step.

Nothing heavy is imported here: the handlers stand before the seconds begin that the imports of a run take.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from shards.errors import MatloomError

# TERM last: by its handler others tell that INT has one
CAUGHT = (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
# written by rank 0 once the checkpoint of a preempted run is published
PREEMPTED = "preempted.json"
# written by the rank that was asked, for ranks that wait for data and meet nobody in a collective
REQUEST = ".preempting"
# how ranks end that their watchdog finds hanging, and its report in the run's folder
EXIT_HANG, HANG_REPORT = 7, "hang.txt"
LOOK_S = 1.0


class Preempted(MatloomError):  # noqa: N818  everything went well
    """The run was asked to end, and everything that it has learned is saved."""

    exit_code = 75
    on_all_ranks = True


class Interrupted(Exception):  # noqa: N818  no error: all ranks leave the loop together
    """All ranks agree to leave the loop."""


class Signals:
    """Whether somebody wants this run to end.

    The handler in C writes to a socket and a thread reads it: so a request is noticed even while the main thread sits
    in a long call, a collective for example, which Python's own handlers would have to wait for.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.rank = int(os.environ.get("RANK", "0"))
        self._note: Path | None = None
        self._ancestors = Ancestors()

    @property
    def requested(self) -> bool:
        """Say whether this rank was asked to end."""
        return self.reason is not None

    @property
    def requested_anywhere(self) -> bool:
        """Say whether any rank was asked to end: it has written so into the run's folder, where this one looks."""
        if not self.requested and self._note is not None and self._note.exists():
            # from now on this rank asks the others too
            self.reason = self.explain()
        return self.requested

    def install(self) -> Signals:
        """Catch the signals from now on, until the process ends; call it in the main thread.

        A signal that is ignored already stays so: ``nohup`` means it.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in CAUGHT:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: None)
        thread = threading.Thread(target=self._listen, args=(reader, writer), name="signals", daemon=True)
        thread.start()
        return self

    def attach(self, folder: Path, rank: int) -> None:
        """Forget the requests of earlier runs in this folder, and write later ones into it; every rank calls it."""
        import torch.distributed as dist

        note = folder / REQUEST
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PREEMPTED).unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        dist.barrier()
        self._note = note
        if self.reason:
            self._write()

    def agreed(self) -> bool:
        """Say whether any rank was asked to end; every rank calls it, and all get the same answer."""
        return anywhere(self.requested)

    def request(self, reason: str) -> None:
        """Ask this run to end; only the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._write()

    def explain(self) -> str:
        """Return why the run ends, as far as this rank knows."""
        with suppress(OSError):
            return self.reason or (self._note.read_text() if self._note else "") or "a signal"
        return "a signal to another rank"

    def _write(self) -> None:
        if self._note is not None:
            # a full disk must not keep a rank from noticing
            with suppress(OSError):
                self._note.write_text(str(self.reason))

    def _listen(self, reader: socket.socket, writer: socket.socket) -> None:
        # `writer` is held here, lest it be collected and closed
        while True:
            ready, _, _ = select.select([reader], [], [], LOOK_S)
            for number in reader.recv(64) if ready else b"":
                if number in CAUGHT:
                    self.request(f"{signal.Signals(number).name} to rank {self.rank}")
            if dead := self._ancestors.dead():
                self.request(f"{dead} of rank {self.rank}")


class Ancestors:
    """The launcher above a rank: DeepSpeed's, or whichever started it.

    When ``launch.py`` or the runner of DeepSpeed dies (SIGKILL, USR1), its ranks are told nothing: they would go on
    as orphans. A process that is no launcher's rank may survive its parent, a shell for example.
    """

    def __init__(self) -> None:
        self.parent = os.getppid() if "RANK" in os.environ else None
        self.launcher: psutil.Process | None = None
        self.runner: int | None = None
        if self.parent is None:
            return
        with suppress(psutil.Error):
            parent = psutil.Process(self.parent)
            if "deepspeed.launcher.launch" in parent.cmdline():
                above = parent.parent()
                command = above.cmdline() if above else []
                if above and any(
                    Path(word).name == "deepspeed" or word == "deepspeed.launcher.runner" for word in command
                ):
                    self.launcher, self.runner = parent, above.pid

    def dead(self) -> str | None:
        """Say which of them has died, None where all live."""
        if self.parent is not None and os.getppid() != self.parent:
            return "the death of the launcher"
        if self.launcher is not None:
            with suppress(psutil.Error):
                if self.launcher.ppid() != self.runner:
                    return "the death of the runner"
        return None


def anywhere(flag: bool) -> bool:
    """Say whether a flag is set on any rank; every rank calls it."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    seen = torch.tensor([float(flag)], device=device)
    dist.all_reduce(seen)
    return bool(seen.item() > 0)


def preemption(signals: Signals, *, step: int, checkpoint: Path | None) -> dict[str, Any]:
    """Return what is recorded of a preemption."""
    return {"step": step, "reason": signals.explain(), "checkpoint": None if checkpoint is None else str(checkpoint)}
