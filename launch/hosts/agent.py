"""Owns the ranks of one host: ``python -m launch.hosts.agent``, started there by the controller of a run.

It starts the ranks, passes signals on to them, keeps their output, and does not end before the last of their processes
has ended, also of those whose parents died: they become its children. Where the controller dies or cannot be heard, the
ranks are asked to save and end. It imports little, so that it is up in a moment.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from launch.hosts.environment import FILE
from launch.hosts.messages import (
    Done,
    End,
    Ended,
    Here,
    Message,
    Output,
    Refused,
    Sender,
    Signal,
    Start,
    decode,
    listen,
)
from launch.hosts.processes import Rank, adopt_orphans, catches, descendants, kill
from launch.hosts.redaction import Redactor
from launch.hosts.visible import narrowed
from launch.network import interface_towards, resolved
from pretrain.signals import CAUGHT
from shards.errors import HostError

LOOK_S = 0.1
# what a controller may take until it starts the ranks: it checks the hosts meanwhile, or is gone without a word
START_S = 3600.0
# what ranks leave behind gets this long after TERM
ORPHANS_S = 5.0


class Agent:
    """The conversation with the controller, and the ranks.

    Parameters
    ----------
    sender : Sender
        To the controller.
    """

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.heard = self.looked = time.monotonic()
        self.ranks: list[Rank] = []
        self.wanted: set[int] = set()
        self.timeout_s = self.grace_s = 0.0
        self.deadline: float | None = None
        self.deaf = False
        # kept for the ranks until they start
        self.port = socket.create_server(("", 0))

    def hear(self, line: str | None) -> None:
        """Take a line from the controller; None: it is gone."""
        self.heard = time.monotonic()
        message = None if line is None else decode(line)
        if line is None or isinstance(message, Start | Signal | End):
            self.inbox.put(message)

    def catch(self, number: int, frame: object) -> None:
        """Note a signal to this process: its ranks get it too."""
        self.wanted.add(number)

    def run(self) -> None:
        """Serve one controller, until nothing is left to do."""
        self.sender.send(Here(socket.gethostname(), os.getpid(), self.port.getsockname()[1]))
        start = None
        with suppress(queue.Empty):
            start = self.inbox.get(timeout=START_S)
        self.port.close()
        if not isinstance(start, Start):
            return
        try:
            self._start(start)
        except HostError as error:
            self.sender.send(Refused(f"{error.what}: {error.why}"))
            self._end(0.0)
        except OSError as error:
            self.sender.send(Refused(f"{error.strerror}: {error.filename}" if error.filename else str(error)))
            self._end(0.0)
        while self._look():
            with suppress(queue.Empty):
                self._obey(self.inbox.get(timeout=LOOK_S))
        self.sender.send(Done())

    def _start(self, start: Start) -> None:
        self.timeout_s, self.grace_s = start.timeout_s, start.grace_s
        if start.node == 0:
            _refuse_taken(start.port)
        environment = {**os.environ, **start.environment}
        # the controller has read it: what it sends wins
        environment.pop(FILE, None)
        resolved(start.address)
        if len(start.hosts) > 1 and "GLOO_SOCKET_IFNAME" not in environment:
            # by itself gloo takes the address of the host's own name, which may be 127.0.1.1, where nobody else gets to
            interface = interface_towards(start.address if start.node else start.hosts[1])
            environment |= {"GLOO_SOCKET_IFNAME": interface} if interface else {}
        redact = Redactor(environment)
        logs = Path(start.logs)
        # where it cannot be made, the first line of every rank says so
        with suppress(OSError):
            logs.mkdir(parents=True, exist_ok=True)
        for local, rank in enumerate(range(start.first, start.first + len(start.slots))):
            self.ranks.append(
                Rank(
                    rank,
                    start.command,
                    start.folder,
                    {**environment, **_place(start, local, environment)},
                    logs / f"rank-{rank:05d}.log",
                    partial(self._say, rank),
                    redact,
                )
            )

    def _say(self, rank: int, text: str, error: bool) -> None:
        if rank == 0 or text.startswith("matloom: the output of rank"):
            self.sender.send(Output(text, error))

    def _obey(self, message: Message | None) -> None:
        if message is None:
            # ranks on other hosts are asked by their agents
            self.wanted.add(signal.SIGTERM)
            self._by(self.grace_s)
            self.deaf = True
        elif isinstance(message, Signal):
            self.wanted.add(message.number)
        elif isinstance(message, End):
            self._end(message.grace_s)

    def _end(self, grace_s: float) -> None:
        for rank in self.ranks:
            if signal.SIGTERM not in rank.told:
                rank.signal(signal.SIGTERM)
        self._by(grace_s)

    def _by(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)

    def _look(self) -> bool:
        """Do what is due; False once no process is left."""
        before, self.looked = self.looked, time.monotonic()
        if self.looked - before > self.timeout_s / 2:
            # this process was stopped: what was said meanwhile has not been read yet
            self.heard = self.looked
        if self.timeout_s and not self.deaf and self.looked - self.heard > self.timeout_s:
            self.deaf = True
            print(f"no word from the controller for {self.timeout_s:.0f} s: ending its ranks", file=sys.stderr)
            self._end(self.grace_s)
        self._reap()
        self._pass_on()
        running = [rank for rank in self.ranks if rank.code is None]
        late = self.deadline is not None and self.looked > self.deadline
        # it looks at every process of the host, which may be many: not while there is no need
        left = descendants() if late or not running else []
        if not running and left and self.deadline is None:
            for process in left:
                with suppress(psutil.Error):
                    process.terminate()
            self._by(ORPHANS_S)
        if late:
            for rank in running:
                rank.killed = True
            kill(left)
        return bool(left or running or not all(rank.reported for rank in self.ranks))

    def _reap(self) -> None:
        """Take the exit codes of what has ended, and tell those of ranks."""
        by_pid = {rank.pid: rank for rank in self.ranks}
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid in by_pid:
                    by_pid[pid].ended(os.waitstatus_to_exitcode(status))
        for rank in self.ranks:
            if rank.drained and not rank.reported:
                rank.reported = True
                assert rank.code is not None
                self.sender.send(Ended(rank.number, rank.code, list(rank.lines), rank.killed))

    def _pass_on(self) -> None:
        """Send the signals to the ranks, to each once, and not before it can catch them."""
        for number in set(self.wanted):
            for rank in self.ranks:
                if rank.code is None and number not in rank.told and _hears(rank.pid, number):
                    rank.signal(number)


def _hears(pid: int, number: int) -> bool:
    """Say whether a rank obeys a signal. Python catches INT from its first moment on, only to break off."""
    return catches(pid, number) and (number != signal.SIGINT or catches(pid, signal.SIGTERM))


def _place(start: Start, local: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell a rank which one it is: torchrun's, and those that DeepSpeed reads beside them."""
    count = len(start.slots)
    place = {
        "RANK": start.first + local,
        "WORLD_SIZE": start.world,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": count,
        "LOCAL_SIZE": count,
        "CROSS_RANK": start.node,
        "CROSS_SIZE": len(start.hosts),
        "MASTER_ADDR": start.address,
        "MASTER_PORT": start.port,
    }
    return {**{name: str(value) for name, value in place.items()}, **narrowed(start.slots, environment)}


def _refuse_taken(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise OSError(f"port {port}, at which the ranks are to meet, is taken: {error.strerror}") from None


def main() -> None:
    """Serve the controller at the other end of stdin and stdout."""
    # nothing else may write there
    to_controller = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # a greeting of the shell may have left its line open
    to_controller.write("\n")
    adopt_orphans()
    agent = Agent(Sender(to_controller))
    for number in CAUGHT:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, agent.catch)
    listen(sys.stdin, agent.hear, "controller")
    agent.run()
    agent.sender.close()


if __name__ == "__main__":
    main()
