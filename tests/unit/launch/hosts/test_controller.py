"""An attempt on this host: agents are real, ranks are small programs. Several agents stand for several hosts."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launch.hosts.controller import Attempt, Job, Outcome, Requests, report
from launch.hosts.hostfile import Host
from launch.hosts.link import Link, connect
from launch.hosts.messages import Ended
from launch.hosts.orders import Listener
from launch.hosts.remote import Remote
from pretrain.signals import HANG_REPORT

# a rank that can be asked to end; `first` and `second` say what else it does
POLITE = """
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
def end(number, frame):
    print("asked by", number, flush=True)
    Path("preempted.json").touch()
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, end)
Path(f"ready-{rank}").write_text(str(os.getpid()))
while not all(os.path.exists(f"ready-{other}") for other in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
if rank == 1:
    SECOND
while True:
    time.sleep(0.02)
"""


class Stage:
    """Hosts, all of them this one, and what is shown."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        self.folder, self.requests = folder, Requests()
        self.shown: list[str] = []

    def run(
        self,
        program: str,
        hosts: int = 2,
        meanwhile: Callable[[list[Link]], None] | None = None,
        **job: float,
    ) -> Outcome:
        names = [Host("localhost", (0,)), *[Host("127.0.0.1", (0,))] * (hosts - 1)]
        links, failed = connect(names, Remote(), queue.SimpleQueue(), 60)
        assert len(links) == hosts and not failed
        thread = threading.Thread(target=self._when_ready, args=(links, meanwhile))
        if meanwhile:
            thread.start()
        command = [sys.executable, "-c", program]
        try:
            outcome = Attempt(
                links, Job(command, self.folder, **job), self.folder / "logs", self.requests, self._show
            ).run()
        finally:
            if meanwhile:
                thread.join()
            for link in links:
                with contextlib.suppress(OSError):
                    link.process.kill()
        report(outcome, self.folder / "logs", self.folder, self._show)
        return outcome

    def pid(self, rank: int) -> int:
        return int((self.folder / f"ready-{rank}").read_text())

    def alive(self) -> list[int]:
        """Ranks that still run."""
        pids = [int(path.read_text()) for path in self.folder.glob("ready-*")]
        found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        return [process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def _when_ready(self, links: list[Link], meanwhile: Callable[[list[Link]], None]) -> None:
        for rank in range(len(links)):
            for _ in range(3000):
                if (self.folder / f"ready-{rank}").exists() and (self.folder / f"ready-{rank}").read_text():
                    break
                threading.Event().wait(0.02)
        meanwhile(links)

    def _show(self, text: str, error: bool) -> None:
        self.shown.append(text)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def polite(second: str = "pass") -> str:
    return POLITE.replace("SECOND", second)


def test_all_goes_well(stage: Stage) -> None:
    outcome = stage.run("import os; print('hello from', os.environ['RANK'])")
    assert outcome.code == 0 and outcome.cause is None and not outcome.lost
    assert stage.shown == ["hello from 0"]
    assert [(stage.folder / "logs" / f"rank-0000{rank}.log").read_text() for rank in (0, 1)] == [
        "hello from 0\n",
        "hello from 1\n",
    ]


@pytest.mark.parametrize(
    ("second", "code", "how"),
    [
        ("print('the reason', file=sys.stderr); os._exit(6)", 6, "ended with exit code 6"),
        ("print('the reason', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", 139, "was ended by SIGSEGV"),
    ],
)
def test_the_rank_that_fails_ends_the_others_and_is_named(stage: Stage, second: str, code: int, how: str) -> None:
    # the first rank does not leave when it is asked to
    program = polite(second).replace("sys.exit(75)", "pass").replace('Path("preempted.json").touch()', "pass")
    outcome = stage.run(program, grace_s=0.5)
    assert outcome.code == code and not stage.alive()
    log = stage.folder / "logs" / "rank-00001.log"
    assert stage.shown[-2:] == [f"matloom: rank 1 on 127.0.0.1 {how}; its output: {log}", "  | the reason"]
    assert [(ended.rank, ended.ours) for _, ended in outcome.ended] == [(1, False), (0, True)]


def test_those_that_fail_because_one_was_killed_are_not_the_cause() -> None:
    peer, killed = Ended(0, 70, []), Ended(1, -signal.SIGKILL, [])
    assert Outcome([("a", peer), ("b", killed)]).cause == ("b", killed)
    assert Outcome([("a", peer), ("b", killed)]).code == 137
    # unless we had killed it, because it did not end
    assert Outcome([("a", peer), ("b", Ended(1, -signal.SIGKILL, [], ours=True))]).code == 70
    assert Outcome([("b", Ended(1, -signal.SIGKILL, [], ours=True))], lost={"a": "no sign of life"}).cause is None
    # nor because one has found what is wrong
    assert Outcome([("b", Ended(1, 70, [])), ("a", Ended(0, 3, []))]).code == 3
    assert Outcome([("b", Ended(1, 3, [])), ("a", Ended(0, -signal.SIGKILL, []))]).code == 137
    # gloo aborts, when others have gone
    assert Outcome([("a", peer), ("b", Ended(1, -signal.SIGABRT, []))]).code == 70


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(preempted=True, lost={"a": ""}), 75),
        (Outcome([("b", Ended(0, 70))], lost={"a": ""}), 8),
        (Outcome(refused={"a": "no"}), 8),
        (Outcome([("a", Ended(0, 0)), ("a", Ended(1, 75))]), 75),
        (Outcome([("a", Ended(0, 75)), ("a", Ended(1, 3))]), 3),
        (Outcome([("a", Ended(0, 0))]), 0),
    ],
)
def test_exit_codes(outcome: Outcome, code: int) -> None:
    assert outcome.code == code


def test_what_all_ranks_find_out_the_first_one_has_said(stage: Stage) -> None:
    outcome = Outcome([("b", Ended(1, 2, [])), ("a", Ended(0, 2, ["the recipe is wrong"]))])
    report(outcome, stage.folder / "logs", stage.folder, stage._show)
    assert stage.shown == [
        f"matloom: rank 0 on a ended with exit code 2; its output: {stage.folder}/logs/rank-00000.log"
    ]


def test_a_hang_is_explained_by_the_watchdogs_report(stage: Stage) -> None:
    (stage.folder / HANG_REPORT).write_text("rank 1 of 2 hangs in step 3\n")
    report(Outcome([("a", Ended(0, 7, []))]), stage.folder / "logs", stage.folder, stage._show)
    assert stage.shown[-1] == "rank 1 of 2 hangs in step 3"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_to_all_ranks_once(stage: Stage, number: signal.Signals) -> None:
    def ask(links: list[Link]) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)

    with stage.requests:
        outcome = stage.run(polite(), meanwhile=ask)
    assert outcome.code == 75 and outcome.preempted and not stage.alive()
    logs = [(stage.folder / "logs" / f"rank-0000{rank}.log").read_text() for rank in (0, 1)]
    assert logs == [f"asked by {number.value}\n"] * 2
    # no word of a failure
    assert stage.shown == [f"asked by {number.value}"]


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Requests() as requests:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not requests.wanted and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_agent_that_is_killed_loses_its_host_and_leaves_no_orphan(stage: Stage) -> None:
    outcome = stage.run(polite(), meanwhile=lambda links: links[1].process.kill())
    assert list(outcome.lost) == ["127.0.0.1"] and "signal 9" in outcome.lost["127.0.0.1"]
    assert not stage.alive()
    # its rank was told by the kernel, the other one by us: both have saved
    assert outcome.code == 75
    assert any(line.startswith("matloom: host 127.0.0.1 is lost: ") for line in stage.shown)


def test_an_agent_that_is_stopped_is_noticed(stage: Stage) -> None:
    outcome = stage.run(
        polite(), meanwhile=lambda links: os.kill(links[1].process.pid, signal.SIGSTOP), host_timeout_s=3.0
    )
    assert outcome.lost == {"127.0.0.1": "no sign of life for 3 s"} and not stage.alive()


def test_ranks_that_cannot_start_end_it_for_all(stage: Stage) -> None:
    links, _ = connect([Host("localhost", (0,))], Remote(), queue.SimpleQueue(), 60)
    outcome = Attempt(
        links, Job(["/nowhere/python"], stage.folder), stage.folder / "logs", stage.requests, stage._show
    ).run()
    report(outcome, stage.folder / "logs", stage.folder, stage._show)
    assert outcome.code == 8
    assert stage.shown == ["matloom: host localhost cannot start its ranks: No such file or directory: /nowhere/python"]


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.hosts.terminal import show

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        show("a line")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


class Fails(Remote):
    """Reaches no host: runs a program that ends with some last words."""

    def command(self, host: str, module: str) -> list[str]:
        return ["sh", "-c", f"echo 'ssh: cannot reach {host}' >&2; exit 255"]


def test_a_host_that_does_not_answer_has_last_words() -> None:
    links, failed = connect([Host("away", (0,))], Fails(), queue.SimpleQueue(), 60)
    assert not links and failed == {"away": "ssh: cannot reach away; exit code 255"}


class Greets(Remote):
    """Reaches a host whose shell greets whoever comes, on one line or several, and ends none of them."""

    def command(self, host: str, module: str) -> list[str]:
        greeting = f'printf "{{}}\\nnull\\n[1]\\nWelcome to {host}"; exec "$@"'
        return ["sh", "-c", greeting, "sh", sys.executable, "-m", module]


def test_a_greeting_is_no_word_of_the_agent() -> None:
    (link,), failed = connect([Host("polite", (0,))], Greets(), queue.SimpleQueue(), 60)
    assert link.here is not None and not failed
    assert list(link.words) == ["{}", "null", "[1]", "Welcome to polite"]
    link.close()
    listener = Listener("polite", Greets(), "launch.hosts.examine")
    try:
        assert isinstance(listener.ask("clock", 60), float)
    finally:
        listener.close()


class Silent(Remote):
    """Reaches a host that says nothing that an agent would say."""

    def command(self, host: str, module: str) -> list[str]:
        return ["sh", "-c", "echo 'Welcome!'; exec sleep 1000"]


def test_a_host_that_says_nothing_is_not_waited_for() -> None:
    links, failed = connect([Host("mute", (0,))], Silent(), queue.SimpleQueue(), 0.5)
    assert not links and failed == {"mute": "no answer for 0 s"}
