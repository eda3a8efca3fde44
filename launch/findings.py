"""What a check of a machine has found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shards.errors import HostError

Status = Literal["ok", "warning", "failed"]
MARKS: dict[Status, str] = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes
    ----------
    name : str
        What was looked at.
    status : str
        ``ok``; ``warning``: it may work; ``failed``: it cannot.
    value : str
        What was found.
    do : str
        How to mend what is not ok.
    host : str
        Where; empty: on all hosts, or on this one where there is no other.
    """

    name: str
    status: Status
    value: str
    do: str = ""
    host: str = ""


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return findings as plain values."""
    return [asdict(finding) for finding in findings]


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line a finding; one for all hosts of which the same was found."""
    hosts: dict[tuple[str, ...], list[str]] = {}
    for finding in findings:
        key = (MARKS[finding.status], finding.name, finding.value, finding.do)
        hosts.setdefault(key, []).append(finding.host)
    several = len({finding.host for finding in findings if finding.host}) > 1
    lines = []
    for (mark, name, value, do), where in hosts.items():
        names = f"{_names(where):20} " if several else ""
        lines.append(f"{mark}  {name:20} {names}{value}" + (f"  -> {do}" if do else ""))
    return lines


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return what failed."""
    return [finding for finding in findings if finding.status == "failed"]


def refuse(findings: Iterable[Finding]) -> None:
    """Raise `HostError` with everything that failed, where something did."""
    failed = failures(findings)
    if not failed:
        return
    hosts = list(dict.fromkeys(finding.host or "all hosts" for finding in failed))
    lines = [f"{finding.host or 'all hosts'}: {finding.name}: {finding.value}" for finding in failed]
    remedies = list(dict.fromkeys(finding.do for finding in failed if finding.do))
    raise HostError(
        f"the hosts are not ready: {len(failed)} check{'s' if len(failed) > 1 else ''} failed",
        where=", ".join(hosts),
        why="\n         ".join(lines),
        do="\n         ".join(remedies),
    )


def _names(hosts: Sequence[str]) -> str:
    return f"{len(hosts)} hosts" if len(hosts) > 3 else ", ".join(hosts)
