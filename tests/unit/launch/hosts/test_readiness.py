"""On which hosts a run begins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from launch.findings import Finding
from launch.hosts.hostfile import Host
from launch.hosts.preflight import UNREACHED
from launch.hosts.readiness import ready
from shards.errors import HostError

HOSTS = [Host(name, (0,)) for name in "abcd"]


class Asked:
    """A check that finds some hosts away, and others with something wrong."""

    def __init__(self, away: str = "", wrong: str = "") -> None:
        self.away, self.wrong, self.asked, self.shown = away, wrong, list[str](), list[str]()

    def __call__(self, hosts: Sequence[Host]) -> list[Finding]:
        names = "".join(host.name for host in hosts)
        self.asked.append(names)
        found = [Finding(UNREACHED, "failed", "no route", "see its cable", name) for name in names if name in self.away]
        found += [Finding("code", "failed", "differs", "update it", name) for name in names if name in self.wrong]
        return [*found, Finding("clock", "warning", "2 s ahead", "chronyc", names[0])]

    def begin(self, least: int, most: int) -> str:
        found = ready(HOSTS, least, most, self, lambda line, error: self.shown.append(line))
        return "".join(host.name for host in found)


@pytest.mark.parametrize(
    ("away", "least", "most", "begins", "asked"),
    [
        ("", 4, 4, "abcd", ["abcd"]),
        ("", 2, 2, "ab", ["ab"]),
        ("b", 2, 2, "ac", ["ab", "ac"]),
        ("bc", 2, 2, "ad", ["ab", "ac", "ad"]),
        ("ab", 2, 2, "cd", ["ab", "cd"]),
        ("b", 3, 4, "acd", ["abcd", "acd"]),
        ("abd", 1, 2, "c", ["ab", "cd", "c"]),
    ],
)
def test_spare_hosts_take_the_place_of_those_that_are_away(
    away: str, least: int, most: int, begins: str, asked: list[str]
) -> None:
    check = Asked(away)
    assert check.begin(least, most) == begins
    assert check.asked == asked
    assert all(any(f"without {name}" in line or f", {name}" in line for line in check.shown) for name in away)
    # of those that it begins on alone
    assert sum("2 s ahead" in line for line in check.shown) == 1


@pytest.mark.parametrize(("away", "least", "most"), [("b", 4, 4), ("bcd", 2, 2), ("abcd", 1, 4)])
def test_too_few_are_refused_with_the_reasons(away: str, least: int, most: int) -> None:
    with pytest.raises(HostError, match="no route"):
        Asked(away).begin(least, most)


def test_a_host_that_is_wrong_is_no_reason_to_take_another() -> None:
    """Its user is to mend it."""
    check = Asked(wrong="b")
    with pytest.raises(HostError, match="b: code: differs"):
        check.begin(1, 2)
    assert check.asked == ["ab"]
