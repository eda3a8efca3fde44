"""Which hosts a run begins on: those that pass the check, spare ones in place of others that cannot be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launch.findings import Finding, as_lines, refuse
from launch.hosts.hostfile import Host

# says what it finds of hosts, at the first of which the ranks are to meet
Check = Callable[[Sequence[Host]], Sequence[Finding]]


def ready(hosts: Sequence[Host], least: int, most: int, check: Check, show: Callable[[str, bool], None]) -> list[Host]:
    """Return the hosts that a run may begin on; say what may go wrong there.

    Parameters
    ----------
    hosts : sequence of Host
        Those that may be used, in the order of preference.
    least, most : int
        Number of hosts that the run needs, and that it uses.
    check : callable
        Asks them whether they are ready.
    show : callable
        Gets each line that the user is to see, and whether it belongs to stderr.

    Raises
    ------
    HostError
        Where a host that can be reached is not ready, or too few can be reached.
    """
    from launch.hosts.preflight import unreachable

    chosen, spare = list(hosts[:most]), list(hosts[most:])
    while True:
        findings = check(chosen)
        away = unreachable(findings)
        rest = [host for host in chosen if host.name not in away] + spare[: len(away)]
        if not away or len(rest) < least:
            break
        show(f"matloom: goes on without {', '.join(away)}, not reached", True)
        chosen, spare = rest, spare[len(away) :]
    for line in as_lines([finding for finding in findings if finding.status == "warning"]):
        show(line, True)
    refuse(findings)
    return chosen
