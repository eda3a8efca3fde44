"""Attempts of a run, one after another: each goes on from the newest good checkpoint, on the hosts that answer then.

The global batch and the order of the samples do not depend on the number of ranks, so that a run may lose hosts and get
them back, and learn from the same samples.
"""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launch.findings import failures, refuse
from launch.hosts.controller import Attempt, Job, Outcome, Requests, report
from launch.hosts.hostfile import Host
from launch.hosts.link import Events, Link, connect
from launch.hosts.readiness import Check, ready
from launch.hosts.remote import Remote
from pretrain.signals import EXIT_HANG, PREEMPTED, Preempted
from shards.errors import HostError, MatloomError

# what another attempt may mend; not what is wrong with the recipe, the data or the training
MENDABLE = {EXIT_HANG, MatloomError.exit_code, HostError.exit_code}
LOGS = "logs"
# brings the data to the disks of hosts, reports lines, and returns the variables by which ranks find them
Stage = Callable[[Sequence[Host], Callable[[str], None]], dict[str, str]]


@dataclass(frozen=True)
class Elastic:
    """How often a run may start again, and on how many hosts.

    Attributes
    ----------
    restarts : int
        How often.
    least : int
        Number of hosts that it needs; 0: all that it may use to begin with, one later.
    most : int
        Number of hosts that it uses; 0: all.
    """

    restarts: int = 0
    least: int = 0
    most: int = 0


class Run:
    """A run on some hosts.

    Parameters
    ----------
    hosts : sequence of Host
        Those that may be used, in the order of preference.
    job : Job
        The first attempt.
    again : list of str
        What every rank of a later attempt runs.
    remote : Remote
        Reaches the hosts.
    elastic : Elastic
        How often, and on how many.
    show : callable
        Gets each line that the user is to see, and whether it belongs to stderr.
    check : callable, optional
        Asked before every attempt on hosts that have not passed it since the last one.
    stage : callable, optional
        Asked once for the hosts that the run begins on; others, which step in later, read the data where they are.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        job: Job,
        again: list[str],
        remote: Remote,
        elastic: Elastic,
        show: Callable[[str, bool], None],
        check: Check | None = None,
        stage: Stage | None = None,
    ) -> None:
        self.hosts, self.job, self.again, self.remote, self.elastic = list(hosts), job, again, remote, elastic
        self.show, self.check, self.stage = show, check, stage
        self.most = min(elastic.most or len(self.hosts), len(self.hosts))
        # names of hosts that have passed the check since the last attempt
        self.passed = set[str]()
        self.requests = Requests()

    def run(self) -> int:
        """Run to the end and return the exit code.

        Raises
        ------
        MatloomError
            Where too few hosts answer or are ready, or the data cannot be staged.
        """
        with self.requests:
            self.requests.break_off(self._prepare, None)
            for number in range(self.elastic.restarts + 1):
                links = self._ready(first=number == 0)
                if self.requests.wanted:
                    return self._leave(links)
                outcome = self._attempt(links, number)
                # by whatever it ended: a host may have come back without its disk, or with a broken GPU
                self.passed.clear()
                if self.requests.wanted or not mendable(outcome):
                    break
                if number < self.elastic.restarts:
                    self._await_lost(outcome)
                elif number:
                    self.show(f"matloom: given up after {number} restart{'s' if number > 1 else ''}", True)
        return outcome.code

    def _prepare(self) -> None:
        """Find the hosts to begin on, and bring them the data."""
        hosts = self.hosts[: self.most]
        if self.check is not None:
            hosts = ready(self.hosts, self.elastic.least or self.most, self.most, self.check, self.show)
            self.passed.update(host.name for host in hosts)
        if self.stage is not None:
            found = self.stage(hosts, lambda line: self.show(line, True))
            self.job = replace(self.job, environment={**self.job.environment, **found})

    def _leave(self, links: Sequence[Link]) -> int:
        """Let the agents go, who have started nothing: what there is has been saved."""
        for link in links:
            link.close()
        name = signal.Signals(self.requests.wanted[0]).name
        self.show(f"matloom: {name} came while no rank was running: the same command goes on, with --resume auto", True)
        return Preempted.exit_code

    def _attempt(self, links: list[Link], number: int) -> Outcome:
        job, logs = self.job, new_logs(self.job.out)
        # of an earlier run or attempt: ranks that end before they get to it must not seem to have saved
        (job.out / PREEMPTED).unlink(missing_ok=True)
        if number:
            job = replace(job, command=self.again)
            names = ", ".join(link.host.name for link in links)
            again = f"attempt {number + 1} of {self.elastic.restarts + 1}, from the newest good checkpoint, on {names}"
            self.show(f"matloom: {again}", True)
        if links[0].host is not self.hosts[0]:
            # an address that was given is that of the first host
            job = replace(job, address=None)
        outcome = Attempt(links, job, logs, self.requests, self.show).run()
        report(outcome, logs, job.out, self.show)
        return outcome

    def _ready(self, *, first: bool) -> list[Link]:
        """Start agents on as many hosts as may be used, answer, and pass the check."""
        unfit = dict[str, str]()
        while True:
            links = self._connect(unfit, first=first)
            names = [link.host.name for link in links]
            if self.check is None or self.requests.wanted or self.passed.issuperset(names):
                return links
            hosts = [link.host for link in links]
            found = failures(self.requests.break_off(partial(self.check, hosts), ()))
            if not found:
                self.passed.update(names)
                return links
            for link in links:
                link.close()
            if not all(finding.host for finding in found):
                refuse(found)
            for finding in found:
                self.show(f"matloom: host {finding.host} is left out: {finding.name}: {finding.value}", True)
                unfit.setdefault(finding.host, f"{finding.name}: {finding.value}")

    def _connect(self, unfit: Mapping[str, str], *, first: bool) -> list[Link]:
        """Start agents on as many hosts as may be used and answer, but for those that are known to be unfit."""
        least = self.elastic.least or (self.most if first else 1)
        links, failed = list[Link](), dict[str, str]()
        spare = [host for host in self.hosts if host.name not in unfit]
        events: Events = queue.SimpleQueue()
        while len(links) < self.most and spare and not self.requests.wanted:
            missing = self.most - len(links)
            up, away = connect(
                spare[:missing], self.remote, events, self.job.host_timeout_s, stop=lambda: bool(self.requests.wanted)
            )
            spare = spare[missing:]
            links += up
            failed |= away
        for name, why in failed.items() if not self.requests.wanted else ():
            self.show(f"matloom: host {name} does not answer: {why}", True)
        if len(links) < least and not self.requests.wanted:
            for link in links:
                link.close()
            reasons = {**unfit, **failed}
            raise HostError(
                f"{len(links)} of the {least} hosts that the run needs {'are ready' if unfit else 'answer'}",
                where=", ".join(reasons),
                why="; ".join(f"{name}: {why}" for name, why in reasons.items()),
                do=f"ssh {next(iter(reasons))} true, matloom launch check, or start on fewer with --min-hosts",
            )
        return links

    def _await_lost(self, outcome: Outcome) -> None:
        """Wait until hosts that are lost must have ended their ranks: two attempts must not write into one folder."""
        wait = outcome.quiet_at - time.monotonic()
        if wait > 1:
            self.show(f"matloom: waiting {wait:.0f} s, until {', '.join(outcome.lost)} must have ended its ranks", True)
        while time.monotonic() < outcome.quiet_at and not self.requests.wanted:
            time.sleep(0.1)


def mendable(outcome: Outcome) -> bool:
    """Say whether another attempt may do better: a rank was killed, hung or broke, or a host was lost.

    Where the ranks of a lost host still lived, all have saved; nobody had asked them to end.
    """
    code = outcome.code
    return not outcome.refused and (bool(outcome.lost) or code in MENDABLE or code > 128)


def new_logs(out: Path) -> Path:
    """Return the folder for the output of the next attempt in a run's folder; those of earlier ones stay."""
    numbers = [int(path.name.rpartition("-")[2]) for path in (out / LOGS).glob("attempt-*") if path.name[8:].isdigit()]
    return out / LOGS / f"attempt-{max(numbers, default=0) + 1}"
