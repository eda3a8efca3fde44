"""Which attempts follow on which, where, and what they end with; attempts are played, hosts are names."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.findings import Finding
from launch.hosts import restarts
from launch.hosts.controller import Job, Outcome
from launch.hosts.hostfile import Host
from launch.hosts.messages import Ended
from launch.hosts.remote import Remote
from launch.hosts.restarts import Elastic, Run, mendable, new_logs
from shards.errors import HostError

THREE = Elastic(3)
HOSTS = [Host("a", (0, 1)), Host("b", (0,)), Host("c", (0,))]


class Played:
    """A run whose attempts and connections are given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.away: list[set[str]] = []
        self.outcomes: list[Outcome] = []
        self.attempts: list[tuple[list[str], Job, str]] = []
        self.shown: list[str] = []
        self.asked: list[list[str]] = []
        played = self

        class Answer:
            def __init__(self, host: Host) -> None:
                self.host, self.closed = host, False

            def close(self) -> None:
                played.closed.append(self.host.name)

        class Attempt:
            def __init__(self, links: list[Any], job: Job, logs: Path, requests: Any, show: Any) -> None:
                played.attempts.append(([link.host.name for link in links], job, logs.name))
                logs.mkdir(parents=True)

            def run(self) -> Outcome:
                return played.outcomes[len(played.attempts) - 1]

        def connect(hosts: list[Host], *rest: Any, **more: Any) -> Any:
            away = self.away[min(len(self.attempts), len(self.away) - 1)] if self.away else set()
            self.asked.append([host.name for host in hosts])
            up = [Answer(host) for host in hosts if host.name not in away]
            return up, {host.name: "refused" for host in hosts if host.name in away}

        self.closed: list[str] = []
        monkeypatch.setattr(restarts, "Attempt", Attempt)
        monkeypatch.setattr(restarts, "connect", connect)

    def run(self, *outcomes: Outcome, elastic: Elastic = THREE, job: dict[str, Any] | None = None, **check: Any) -> int:
        self.outcomes = list(outcomes)
        first = Job([sys.executable, "first"], self.folder, **(job or {}))
        self.it = Run(HOSTS, first, ["again"], Remote(), elastic, lambda text, error: self.shown.append(text), **check)
        return self.it.run()


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(tmp_path, monkeypatch)


def failed(code: int) -> Outcome:
    return Outcome([("a", Ended(0, code))])


GOOD = Outcome([("a", Ended(0, 0))])


def test_what_goes_well_is_not_repeated(played: Played) -> None:
    assert played.run(GOOD) == 0
    assert [(names, job.command, logs) for names, job, logs in played.attempts] == [
        (["a", "b", "c"], [sys.executable, "first"], "attempt-1")
    ]


@pytest.mark.parametrize("outcome", [failed(-9), failed(70), failed(7), Outcome(lost={"b": ""})])
def test_what_another_attempt_may_mend_is_repeated_from_the_newest_checkpoint(played: Played, outcome: Outcome) -> None:
    assert mendable(outcome)
    assert played.run(outcome, GOOD) == 0
    assert [(job.command, logs) for _, job, logs in played.attempts] == [
        ([sys.executable, "first"], "attempt-1"),
        (["again"], "attempt-2"),
    ]


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 75])
def test_what_none_may_mend_is_not(played: Played, code: int) -> None:
    assert played.run(failed(code)) == code
    assert len(played.attempts) == 1


def test_a_run_that_lost_a_host_goes_on_though_the_ranks_have_saved(played: Played) -> None:
    assert played.run(Outcome(lost={"b": ""}, preempted=True), GOOD) == 0


def test_a_host_that_cannot_start_its_ranks_is_not_mended_by_itself(played: Played) -> None:
    assert played.run(Outcome(refused={"a": "port 1 is taken"})) == 8
    assert len(played.attempts) == 1


@pytest.mark.parametrize("restarts", [0, 2])
def test_so_often_and_no_more(played: Played, restarts: int) -> None:
    assert played.run(*[failed(70)] * 9, elastic=Elastic(restarts)) == 70
    assert len(played.attempts) == restarts + 1


def test_a_host_that_went_away_is_done_without_and_used_again_when_it_is_back(played: Played) -> None:
    played.away = [set(), {"a"}, set()]
    assert played.run(failed(-9), failed(-9), GOOD, job={"address": "10.0.0.1"}) == 0
    assert [names for names, _, _ in played.attempts] == [["a", "b", "c"], ["b", "c"], ["a", "b", "c"]]
    # the address that was given is that of a
    assert [job.address for _, job, _ in played.attempts] == ["10.0.0.1", None, "10.0.0.1"]
    assert "matloom: host a does not answer: refused" in played.shown


def test_at_first_all_must_be_there(played: Played) -> None:
    played.away = [{"b"}]
    with pytest.raises(HostError, match="2 of the 3 hosts") as caught:
        played.run(GOOD)
    assert caught.value.exit_code == 8 and caught.value.where == "b" and "refused" in str(caught.value)
    assert played.closed == ["a", "c"] and not played.attempts


def test_unless_fewer_are_enough(played: Played) -> None:
    played.away = [{"b"}]
    assert played.run(GOOD, elastic=Elastic(3, least=2)) == 0
    assert played.attempts[0][0] == ["a", "c"]


def test_fewer_than_are_needed_end_it(played: Played) -> None:
    played.away = [set(), {"b", "c"}]
    with pytest.raises(HostError, match="1 of the 2 hosts"):
        played.run(failed(-9), GOOD, elastic=Elastic(3, least=2))


def test_spare_hosts_step_in(played: Played) -> None:
    played.away = [set(), {"a"}]
    assert played.run(failed(-9), GOOD, elastic=Elastic(3, most=2)) == 0
    assert [names for names, _, _ in played.attempts] == [["a", "b"], ["b", "c"]]
    # no more are asked than are needed
    assert played.asked == [["a", "b"], ["a", "b"], ["c"]]


class Checked:
    """A check of hosts, of whom some are not as they should be from some attempt on."""

    def __init__(self, played: Played, unfit: dict[str, int]) -> None:
        self.played, self.unfit, self.asked = played, unfit, list[list[str]]()

    def __call__(self, hosts: Sequence[Host]) -> list[Finding]:
        self.asked.append([host.name for host in hosts])
        bad = [host.name for host in hosts if len(self.played.attempts) >= self.unfit.get(host.name, 9)]
        return [Finding("code", "failed" if host.name in bad else "ok", "other code", host=host.name) for host in hosts]


def test_hosts_are_checked_again_before_a_restart(played: Played) -> None:
    check = Checked(played, {})
    assert played.run(failed(-9), GOOD, check=check) == 0
    assert check.asked == [["a", "b", "c"], ["a", "b", "c"]]


def test_a_host_that_comes_back_as_another_one_is_left_out(played: Played) -> None:
    check = Checked(played, {"a": 1})
    assert played.run(failed(-9), GOOD, check=check, job={"address": "10.0.0.1"}) == 0
    # the others have not been found ready as long as the check was broken off at one
    assert check.asked[1:] == [["a", "b", "c"], ["b", "c"]]
    assert [names for names, _, _ in played.attempts] == [["a", "b", "c"], ["b", "c"]]
    assert played.attempts[1][1].address is None and played.closed == ["a", "b", "c"]
    assert "matloom: host a is left out: code: other code" in played.shown


def test_spare_hosts_are_checked_before_they_step_in(played: Played) -> None:
    check, played.away = Checked(played, {"c": 0}), [{"b"}]
    with pytest.raises(HostError, match="1 of the 2 hosts that the run needs are ready") as caught:
        played.run(GOOD, elastic=Elastic(3, most=2), check=check)
    assert check.asked == [["a", "b"], ["a", "c"]] and caught.value.where == "c, b" and not played.attempts


def test_what_is_wrong_with_all_hosts_ends_it(played: Played) -> None:
    def check(hosts: Sequence[Host]) -> list[Finding]:
        return [Finding("disk", "failed" if played.attempts else "ok", "full")]

    with pytest.raises(HostError, match="all hosts: disk: full"):
        played.run(failed(-9), GOOD, check=check)
    assert len(played.attempts) == 1 and played.closed == ["a", "b", "c"]


@pytest.mark.parametrize("attempts", [0, 1])
def test_one_who_asks_during_the_check_is_not_started_again(played: Played, attempts: int) -> None:
    def check(hosts: Sequence[Host]) -> list[Finding]:
        if len(played.attempts) < attempts:
            return []
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the check goes on")

    assert played.run(failed(-9), GOOD, check=check) == 75
    assert len(played.attempts) == attempts


def test_data_are_staged_once_where_the_run_begins(played: Played) -> None:
    staged = []

    def stage(hosts: Sequence[Host], report: Any) -> dict[str, str]:
        staged.append([host.name for host in hosts])
        report("b: it is there")
        return {"MATLOOM_STAGE": "/scratch"}

    away = {"a": 0}
    check = lambda hosts: [Finding("host", "failed", "away", host=h.name) for h in hosts if h.name in away]  # noqa: E731
    played.away = [{"a"}]
    job = {"environment": {"X": "1"}}
    assert played.run(failed(-9), GOOD, elastic=Elastic(3, most=2), check=check, stage=stage, job=job) == 0
    assert staged == [["b", "c"]] and "b: it is there" in played.shown
    assert all(job.environment == {"X": "1", "MATLOOM_STAGE": "/scratch"} for _, job, _ in played.attempts)


def test_one_who_asks_is_not_started_again(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(self: Run, links: Any, number: int) -> Outcome:
        self.requests.wanted.append(signal.SIGTERM)
        played.attempts.append(([], self.job, ""))
        return failed(-15)

    monkeypatch.setattr(Run, "_attempt", asked)
    assert played.run(GOOD) == 143
    assert len(played.attempts) == 1


def test_one_who_asks_before_anything_runs_starts_nothing(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: Run, unfit: Any, *, first: bool) -> list[Any]:
        self.requests.wanted.append(signal.SIGINT)
        return []

    monkeypatch.setattr(Run, "_connect", connect)
    assert played.run(GOOD) == 75 and not played.attempts
    assert "matloom: SIGINT came" in played.shown[-1]


def test_what_an_earlier_run_said_of_its_end_does_not_count(played: Played) -> None:
    (played.folder / "preempted.json").touch()
    assert played.run(GOOD) == 0
    assert not (played.folder / "preempted.json").exists()


def test_what_an_earlier_attempt_said_of_its_end_does_not_count(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks saved because a host was lost; those of the next one end before they could say anything."""
    seen = []

    def run(attempt: Any) -> Outcome:
        seen.append((played.folder / "preempted.json").exists())
        (played.folder / "preempted.json").touch()
        return played.outcomes[len(played.attempts) - 1]

    monkeypatch.setattr(restarts.Attempt, "run", run)
    played.run(Outcome(lost={"b": ""}), failed(3))
    assert seen == [False, False]


def test_a_lost_host_gets_the_time_to_end_its_ranks(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(restarts.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert played.run(Outcome(lost={"b": ""}, quiet_at=130.0), GOOD) == 0
    assert 130 <= now[0] < 131 and "matloom: waiting 30 s, until b must have ended its ranks" in played.shown


def test_the_output_of_earlier_attempts_stays(tmp_path: Path) -> None:
    assert new_logs(tmp_path).name == "attempt-1"
    for name in ("attempt-1", "attempt-10", "attempt-x"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    assert new_logs(tmp_path).name == "attempt-11"
