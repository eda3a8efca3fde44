"""One attempt of a run: all its hosts together, from the start of the ranks to the end of the last process.

A rank that fails, or a host that is lost, ends the attempt for all. What nobody asked for has a cause, which is named
with its host, and the last lines that it said.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil

from launch.hosts.agent import ORPHANS_S
from launch.hosts.link import Link
from launch.hosts.messages import End, Ended, Message, Output, Refused, Signal, Start
from launch.hosts.processes import adopt_orphans, descendants, kill
from pretrain.signals import CAUGHT, EXIT_HANG, HANG_REPORT, PREEMPTED, Preempted
from shards.errors import HostError

T = TypeVar("T")
LOOK_S = 0.2
# no process ends itself by one of these because another one has ended
FATAL = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
# nor says then that recipe, data, checkpoint or registry are wrong, or that the training diverged
FOUND = range(2, 7)


@dataclass(frozen=True)
class Job:
    """What is run.

    Attributes
    ----------
    command : list of str
        What every rank runs.
    out : Path
        Folder of the run, seen by all hosts: logs go there, and a preempted run says there that it has saved.
    environment : dict of str to str
        Variables of the ranks on top of those that they find on their hosts.
    address : str or None
        Where the ranks meet; by default the first host's name.
    port : int
        0: one that is free there.
    host_timeout_s : float
        After so long without a word a host is lost; and so a host ends its ranks that hears nothing.
    grace_s : float
        What ranks get to save and end once another has ended, a host is lost, or this process has died.
    """

    command: list[str]
    out: Path
    environment: dict[str, str] = field(default_factory=dict)
    address: str | None = None
    port: int = 0
    host_timeout_s: float = 30.0
    grace_s: float = 60.0


@dataclass
class Outcome:
    """How an attempt ended.

    Attributes
    ----------
    ended : list of (str, Ended)
        Host and end of every rank that was heard of, in that order.
    lost : dict of str to str
        Why, by name of the host.
    refused : dict of str to str
        Hosts that could not start their ranks.
    preempted : bool
        Whether the run has saved and ended on request.
    quiet_at : float
        Time, of the monotonic clock, at which lost hosts have ended their ranks, as far as they still live.
    """

    ended: list[tuple[str, Ended]] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    preempted: bool = False
    quiet_at: float = 0.0

    @property
    def cause(self) -> tuple[str, Ended] | None:
        """Host and end of the rank by which the others ended; None where all went well.

        The peers of a rank that ends notice within milliseconds, and may be heard first.
        """
        failed = [
            (host, rank)
            for host, rank in self.ended
            # one that we had to kill did not end because others had
            if rank.code not in (0, Preempted.exit_code) and not rank.ours
        ]
        # the order in which they were heard decides among equals
        failed.sort(key=lambda end: (end[1].code not in FATAL, end[1].code not in FOUND))
        return next(iter(failed), None)

    @property
    def code(self) -> int:
        """The exit code: 128 + N where signal N ended the first rank that failed."""
        if self.preempted:
            return Preempted.exit_code
        if self.lost or self.refused:
            return HostError.exit_code
        if self.cause is None:
            return next((rank.code for _, rank in self.ended if rank.code), 0)
        code = self.cause[1].code
        return 128 - code if code < 0 else code


class Requests:
    """Signals to this process, which are meant for the run; a context of the main thread.

    One that is ignored already stays so: ``nohup`` means it.
    """

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self._before: dict[int, object] = {}
        self._breaks_off = False

    def __enter__(self) -> Requests:
        for number in CAUGHT:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._want)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def break_off(self, work: Callable[[], T], otherwise: T) -> T:
        """Return what work gives, or at once something else where a request comes meanwhile."""
        try:
            self._breaks_off = True
            # one that came before
            return otherwise if self.wanted else work()
        except KeyboardInterrupt:
            return otherwise
        finally:
            self._breaks_off = False

    def _want(self, number: int, frame: object) -> None:
        if number not in self.wanted:
            self.wanted.append(number)
        if self._breaks_off:
            self._breaks_off = False
            raise KeyboardInterrupt


class Attempt:
    """The ranks of all hosts, once.

    Parameters
    ----------
    links : sequence of Link
        The agents, who wait for what to start; the first one's host is where the ranks meet.
    job : Job
        What to run.
    logs : Path
        Folder for the ranks' output.
    requests : Requests
        What to pass on to the ranks.
    show : callable
        Gets each line that the user is to see, and whether it belongs to stderr.
    """

    def __init__(
        self, links: Sequence[Link], job: Job, logs: Path, requests: Requests, show: Callable[[str, bool], None]
    ) -> None:
        self.links, self.job, self.logs, self.requests, self.show = list(links), job, logs, requests, show
        self.outcome = Outcome()
        self.events = self.links[0].events
        self.passed_on: set[int] = set()
        self.deadline: float | None = None
        self.looked = time.monotonic()
        agents = {link.process.pid for link in self.links}
        self.strangers = [process for process in descendants() if process.pid not in agents]

    def run(self) -> Outcome:
        """Run to the end of the last process of every host that can be heard."""
        adopt_orphans()
        try:
            self._start()
            while not all(link.over for link in self.links):
                self._look()
                with suppress(queue.Empty):
                    self._take(*self.events.get(timeout=LOOK_S))
            while not self.events.empty():
                self._take(*self.events.get())
            for link in self.links:
                if link.lost is None:
                    link.close()
            self._await_orphans()
        finally:
            adopt_orphans(False)
        self.outcome.preempted = (self.job.out / PREEMPTED).exists()
        return self.outcome

    def _start(self) -> None:
        names = [link.host.name for link in self.links]
        alone = all(link.local for link in self.links)
        here = self.links[0].here
        assert here is not None
        first, world = 0, sum(len(link.host.slots) for link in self.links)
        for node, link in enumerate(self.links):
            link.ranks = set(range(first, first + len(link.host.slots)))
            link.send(
                Start(
                    command=self.job.command,
                    folder=os.getcwd(),
                    environment=self.job.environment,
                    first=first,
                    world=world,
                    slots=list(link.host.slots),
                    node=node,
                    hosts=names,
                    address=self.job.address or ("127.0.0.1" if alone else names[0]),
                    port=self.job.port or here.port,
                    logs=str(self.logs.absolute()),
                    # on this host the end of the pipe says it all, and Ctrl-Z is no death
                    timeout_s=0.0 if link.local else self.job.host_timeout_s,
                    grace_s=self.job.grace_s,
                )
            )
            first += len(link.host.slots)

    def _take(self, link: Link, message: Message | None) -> None:
        if isinstance(message, Output):
            self.show(message.text, message.error)
        elif isinstance(message, Ended):
            self.outcome.ended.append((link.host.name, message))
            if message.code:
                self._end(self.job.grace_s)
        elif isinstance(message, Refused):
            self.outcome.refused[link.host.name] = message.why
            self._end(0.0)
        elif message is None and not link.over:
            self._lose(link, f"the connection to its agent broke: {link.explain()}")

    def _look(self) -> None:
        """Do what is due."""
        before, self.looked = self.looked, time.monotonic()
        if self.looked - before > self.job.host_timeout_s / 2:
            # this process was stopped
            for link in self.links:
                link.heard = self.looked
        for number in self.requests.wanted:
            if number not in self.passed_on:
                self.passed_on.add(number)
                self._tell(Signal(number))
        for link in self.links:
            if not link.over and self.looked - link.heard > self.job.host_timeout_s:
                self._lose(link, f"no sign of life for {self.job.host_timeout_s:.0f} s")
            elif not link.over and self.deadline is not None and self.looked > self.deadline:
                self._lose(link, "its ranks cannot be ended")

    def _lose(self, link: Link, why: str) -> None:
        link.cut(why)
        # one whose ranks have ended well is missed by nobody
        if link.ranks:
            self.outcome.lost[link.host.name] = why
            if not link.local:
                # it may have heard this process until now, though this one has not heard it for long
                quiet = time.monotonic() + self.job.host_timeout_s + self.job.grace_s + ORPHANS_S
                self.outcome.quiet_at = max(self.outcome.quiet_at, quiet)
            self.show(f"matloom: host {link.host.name} is lost: {why}", True)
            self._end(self.job.grace_s)

    def _end(self, grace_s: float) -> None:
        """End all ranks, unless that is under way."""
        if self.deadline is None:
            self._tell(End(grace_s))
            self.deadline = time.monotonic() + grace_s + ORPHANS_S + self.job.host_timeout_s

    def _tell(self, message: Message) -> None:
        for link in self.links:
            if not link.over:
                link.send(message)

    def _await_orphans(self) -> None:
        """Wait for the ranks of an agent that died on this host: they are ours now, and were asked to save and end."""
        local = [link for link in self.links if link.local and link.lost is not None]
        for link in local:
            link.process.wait()
        deadline = time.monotonic() + self.job.grace_s
        while local and (left := [process for process in descendants() if process not in self.strangers]):
            for process in left:
                with suppress(psutil.Error, ChildProcessError):
                    if process.ppid() == os.getpid():
                        os.waitpid(process.pid, os.WNOHANG)
            if time.monotonic() > deadline:
                kill(left)
            time.sleep(LOOK_S)


def report(outcome: Outcome, logs: Path, out: Path, show: Callable[[str, bool], None]) -> None:
    """Show by what an attempt ended that nobody had asked for: the first failing rank's last lines, host and code."""
    for host, why in outcome.refused.items():
        show(f"matloom: host {host} cannot start its ranks: {why}", True)
    if outcome.cause is None or outcome.preempted:
        return
    host, rank = outcome.cause
    if rank.rank and not rank.lines:
        # what all ranks find out alike the first one says
        host, rank = next(((h, r) for h, r in outcome.ended if r.rank == 0 and r.code == rank.code), (host, rank))
    how = f"ended with exit code {rank.code}"
    if rank.code < 0:
        how = f"was ended by {_name(-rank.code)}"
    log = logs / f"rank-{rank.rank:05d}.log"
    show(f"matloom: rank {rank.rank} on {host} {how}; its output: {log}", True)
    if rank.rank:
        # the first rank's lines have been shown
        for line in rank.lines:
            show(f"  | {line}", True)
    if rank.code == EXIT_HANG:
        with suppress(OSError):
            show((out / HANG_REPORT).read_text().rstrip("\n"), True)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
