"""Owns the processes of a run on this host: passes signals on to the ranks, and waits until the last one has ended.

DeepSpeed's runner and ``launch.py`` do neither: SIGTERM to the runner and SIGKILL or USR1 to ``launch.py`` leave ranks
behind, the latter with exit code 0; SIGTERM to ``launch.py`` gives them 30 s and ends with 1.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from pretrain.signals import CAUGHT, PREEMPTED, Preempted

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# what the rest of a run gets once its launcher has ended: a save may be under way
GRACE_S = 120.0
LOOK_S = 0.2


class Supervisor:
    """One run.

    Parameters
    ----------
    command : sequence of str
        DeepSpeed's runner with its arguments.
    environment : dict of str to str
        Its environment.
    out : Path
        Folder of the run; a preempted run says there that it has saved.
    grace_s : float
        Seconds that stragglers get after the runner has ended.
    """

    def __init__(
        self, command: Sequence[str], environment: dict[str, str], out: Path, *, grace_s: float = GRACE_S
    ) -> None:
        self.command, self.environment, self.out, self.grace_s = command, environment, out, grace_s
        self.wanted: set[signal.Signals] = set()
        self.told: dict[int, set[signal.Signals]] = {}
        self.codes: list[int] = []

    def run(self) -> int:
        """Run to the end of the last process; returns 75 where the run was preempted and saved, else the first failure.

        A process that a signal ended counts as 128 plus its number.
        """
        (self.out / PREEMPTED).unlink(missing_ok=True)
        before = {number: signal.signal(number, self._want) for number in CAUGHT}
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            # a session of its own: Ctrl-C at a terminal reaches the ranks through us, once
            runner = subprocess.Popen(
                self.command, env=self.environment, start_new_session=True, preexec_fn=_die_with_parent
            )
            self._wait(runner)
        finally:
            _prctl(PR_SET_CHILD_SUBREAPER, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
        if (self.out / PREEMPTED).exists():
            return Preempted.exit_code
        return next((code for code in self.codes if code), 0)

    def _want(self, number: int, frame: object) -> None:
        self.wanted.add(signal.Signals(number))

    def _wait(self, runner: subprocess.Popen[bytes]) -> None:
        """Wait until all processes have ended, also those whose parents died: they are ours then."""
        deadline: float | None = None
        while self._reap(runner):
            self._pass_on()
            if deadline is None and runner.returncode is not None:
                deadline = time.monotonic() + self.grace_s
            if deadline is not None and time.monotonic() > deadline:
                print(
                    f"matloom: ending what is left of the run after {self.grace_s:.0f} s", file=sys.stderr, flush=True
                )
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        process.kill()
            time.sleep(LOOK_S)

    def _reap(self, runner: subprocess.Popen[bytes]) -> bool:
        """Take the exit codes of what has ended; False once nothing is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            code = os.waitstatus_to_exitcode(status)
            self.codes.append(128 - code if code < 0 else code)
            if pid == runner.pid:
                runner.returncode = code

    def _pass_on(self) -> None:
        """Send the signals to the ranks, to each once, and not before it can catch them."""
        for process in ranks() if self.wanted else ():
            told = self.told.setdefault(process.pid, set())
            for number in self.wanted - told:
                if catches(process, number):
                    with suppress(psutil.Error):
                        process.send_signal(number)
                    told.add(number)


def ranks() -> list[psutil.Process]:
    """Return the ranks among the descendants of this process, which ``launch.py`` has started and may have left."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(word.startswith("--local_rank=") for word in process.cmdline()):
                found.append(process)
    return found


def catches(process: psutil.Process, number: int) -> bool:
    """Say whether a process has a handler for a signal, which would end it otherwise."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return not Path("/proc/self/status").exists()


def _prctl(option: int, value: int) -> None:
    # Linux alone
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    """Make the kernel end the runner when we die; its ranks notice that, save and end."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
