"""Ends a run that hangs, and says which rank hangs, in which step, and where in the code.

A rank that waits in a collective is innocent: it waits for one that does not come. So the first rank that has waited
for too long asks all, by a file in the run's folder, to write down what they do; and the one is named that does not
answer, or else that does not wait for others, or else that is furthest behind.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from pretrain.export import write_json
from pretrain.signals import EXIT_HANG, HANG_REPORT

FOLDER, ASKED = "watchdog", "asked"
# the innermost frame of a thread that waits for other ranks lies here: that of backward passes is one of its own
COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")
# the main thread waits here for the result of a collective that runs on a GPU
RESULTS = ("pretrain/gather.py", "pretrain/signals.py")
ROOMS = tuple(str(Path(__file__).resolve().parents[1] / room) for room in ("pretrain", "shards", "launch", "tests"))


@dataclass(frozen=True)
class Position:
    """What a rank does: written as JSON for the other ranks.

    Attributes
    ----------
    rank, pid, host
        Which process it is.
    step : int
        The step that it is in, from 1.
    phase, at : str
        What it does, and the innermost function of ours.
    waiting : bool
        Whether it waits for other ranks.
    idle_s : float
        Seconds without progress.
    """

    rank: int
    pid: int
    host: str
    step: int = 0
    phase: str = "start"
    at: str = ""
    waiting: bool = False
    idle_s: float = 0.0

    def sentence(self, world: int) -> str:
        """Return the line by which this rank is named."""
        place = f"{self.phase}, {self.at}" if self.at else self.phase
        return f"rank {self.rank} of {world} hangs in step {self.step} ({place}) on {self.host}, pid {self.pid}"


class Watchdog:
    """A thread that ends this process with exit code 7 once there is no progress for ``timeout_s``; used as a context.

    Parameters
    ----------
    folder : Path
        Folder of the run, on storage that all ranks see; the report goes there.
    timeout_s : float
        0: no watching.
    rank, world : int
        This rank and the number of ranks.
    """

    def __init__(self, folder: Path, timeout_s: float, *, rank: int, world: int) -> None:
        self.folder, self.timeout_s, self.rank, self.world = folder, timeout_s, rank, world
        self.interval_s = min(4.0, timeout_s / 10)
        self._phase, self._step, self._since = "start", 0, time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._main = threading.main_thread().ident
        self._stacks: TextIO | None = None

    def __enter__(self) -> Watchdog:
        if self.timeout_s:
            files = self.folder / FOLDER
            files.mkdir(parents=True, exist_ok=True)
            (files / ASKED).unlink(missing_ok=True)
            self._stacks = self._file("stacks").open("w")
            # even while stopped or in C code a rank can then be made to write its stacks
            faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
            self._write()
            self.beat("start", self._step)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.timeout_s and self._stacks:
            self._ended.set()
            self._thread.join()
            faulthandler.unregister(signal.SIGUSR2)
            self._stacks.close()
            for kind in ("json", "stacks"):
                self._file(kind).unlink(missing_ok=True)
            with suppress(OSError):
                (self.folder / FOLDER).rmdir()

    def beat(self, phase: str, step: int) -> None:
        """Note progress: a phase begins.

        Parameters
        ----------
        phase : str
            ``data``, ``forward and backward``, ...
        step : int
            From 1.
        """
        self._phase, self._step, self._since = phase, step, time.monotonic()

    def _watch(self) -> None:
        woke = time.monotonic()
        while not self._ended.wait(self.interval_s):
            before, woke = woke, time.monotonic()
            if woke - before > self.timeout_s / 2:
                # the whole process was stopped, by Ctrl-Z for example, and has just gone on
                self._since = woke
            idle = woke - self._since
            if idle > self.timeout_s or (self.folder / FOLDER / ASKED).exists():
                self._end()

    def _end(self) -> None:
        """Name the rank that hangs, write the stacks, and end this process."""
        assert self._stacks is not None
        self._write()
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        (self.folder / FOLDER / ASKED).touch()
        deadline = time.monotonic() + self.interval_s + 2
        while (silent := self._silent()) and time.monotonic() < deadline:
            time.sleep(self.interval_s / 10)
        if self.rank == min(set(range(self.world)) - set(silent)):
            self._report(silent)
        os._exit(EXIT_HANG)

    def _report(self, silent: list[int]) -> None:
        positions = self._positions()
        guilty = culprit(positions, silent)
        named = {p.rank: p for p in positions}
        patience_s = self.interval_s + 2
        states = {r: _stacks_of(named[r], self._file("stacks", r), patience_s) for r in silent if r in named}
        hung = named.get(guilty, Position(guilty, 0, "an unknown host"))
        if guilty in states:
            mine = named[self.rank]
            hung = Position(guilty, hung.pid, hung.host, mine.step, f"does not answer: {states[guilty]}")
        lines = [
            hung.sentence(self.world),
            f"no progress for {self.timeout_s:.0f} s (guards.hang_timeout_s)",
            *(f"  rank {p.rank}: step {p.step}, {p.phase}, {p.at}" for p in positions if p.rank != guilty),
        ]
        for rank in {guilty: 0, self.rank: 0}:
            with suppress(OSError):
                lines += [f"stacks of rank {rank}:", self._file("stacks", rank).read_text()]
        text = "\n".join(lines)
        with suppress(OSError):
            (self.folder / HANG_REPORT).write_text(text + "\n")
        print(f"matloom: {text}", file=sys.stderr, flush=True)
        for rank in states:
            _kill(named[rank])

    def _silent(self) -> list[int]:
        """Return the ranks that have not written their stacks."""
        silent = []
        for rank in range(self.world):
            with suppress(FileNotFoundError):
                if self._file("stacks", rank).stat().st_size:
                    continue
            silent.append(rank)
        return silent

    def _positions(self) -> list[Position]:
        found = []
        for rank in range(self.world):
            with suppress(OSError, ValueError, TypeError):
                found.append(Position(**json.loads(self._file("json", rank).read_text())))
        return found

    def _write(self) -> None:
        frames = sys._current_frames()
        frames.pop(threading.get_ident(), None)
        main = frames.get(self._main or 0)
        position = Position(
            rank=self.rank,
            pid=os.getpid(),
            host=socket.gethostname(),
            step=self._step,
            phase=self._phase,
            at=_place(main),
            waiting=_is_in(main, RESULTS) or any(_is_in(frame, COLLECTIVES) for frame in frames.values()),
            idle_s=time.monotonic() - self._since,
        )
        with suppress(OSError):
            write_json(self._file("json"), asdict(position))

    def _file(self, kind: str, rank: int | None = None) -> Path:
        return self.folder / FOLDER / f"rank-{self.rank if rank is None else rank:05d}.{kind}"


def culprit(positions: list[Position], silent: list[int]) -> int:
    """Return the rank that the others wait for."""
    if silent:
        return silent[0]
    return min(positions, key=lambda p: (p.waiting, p.step, -p.idle_s)).rank


def _is_in(frame: FrameType | None, files: tuple[str, ...]) -> bool:
    return frame is not None and any(part in frame.f_code.co_filename for part in files)


def _place(frame: FrameType | None) -> str:
    """Return the innermost function of ours that a thread is in."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOMS):
            return f"{frame.f_code.co_name} at {Path(name).parent.name}/{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _here(position: Position) -> psutil.Process | None:
    if position.host != socket.gethostname():
        return None
    with suppress(psutil.Error):
        process = psutil.Process(position.pid)
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    return None


def _stacks_of(position: Position, stacks: Path, patience_s: float) -> str:
    """Make a rank on this host that does not answer write its stacks; returns its state."""
    process = _here(position)
    if process is None:
        return "its process is gone, or on another host"
    state = process.status()
    with suppress(psutil.Error, OSError):
        if state == psutil.STATUS_STOPPED:
            # it writes them itself when it goes on, for it was asked to. By a signal now, while its threads begin to
            # run, the dump would follow frames that come and go, and now and then end the process
            process.resume()
            deadline = time.monotonic() + patience_s
            while not stacks.stat().st_size and time.monotonic() < deadline:
                time.sleep(0.05)
        if not stacks.stat().st_size:
            process.send_signal(signal.SIGUSR2)
        time.sleep(0.5)
    return state


def _kill(position: Position) -> None:
    process = _here(position)
    if process is not None:
        with suppress(psutil.Error):
            process.kill()
