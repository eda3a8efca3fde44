"""Runs over two hosts that are held in a known step while a test does something bad to them, and how they must end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.hosts.agent import ORPHANS_S
from shards.errors import CheckpointError
from shards.sealed import verify
from tests.distributed.held import finished
from tests.distributed.runs import Workshop
from tests.launch.launched import NOWHERE, Launched, launch_run
from tests.launch.namespaces import Cluster

HOST_TIMEOUT_S, GRACE_S, HANG_S = 10, 5, 10
TIMES = ("--host-timeout", HOST_TIMEOUT_S, "--grace", GRACE_S)
UNCHECKED = (*TIMES, "--no-check")
HANGS = ("--set", f"guards.hang_timeout_s={HANG_S}")
# of a host that is lost: heard no more, its ranks asked and then made to end; the others meanwhile. What a busy machine
# adds to it is no promise of ours
LOST_S = HOST_TIMEOUT_S + GRACE_S + ORPHANS_S
SLACK_S = 60
# what a host may take for an answer to a check, and two hosts to add up tensors
CHECK_S = 60 + 120
# from its start to its end, on a busy machine
WHOLE_S = 300
TABLE = "MATLOOM_FAULTS"


@dataclass(frozen=True)
class Fault:
    """Something bad that is done to a run whose ranks wait, or to a host before.

    Attributes
    ----------
    name, how : str
        What it is, and how it is provoked.
    provoke : callable
        Does it to the run; before the start: makes a context in which it is so.
    code : object
        Exit code of the run.
    says : tuple of str
        What stands in its output.
    options : tuple
        Of the run.
    promised_s : float
        In how long the command must have ended.
    within : str
        That time in words.
    mend : callable, optional
        Takes away what hinders the next run, and what keeps processes from ending.
    release : bool
        Whether the ranks go on then; toys would be done before some faults are noticed.
    """

    name: str
    how: str
    provoke: Callable[[Any], Any]
    code: object = 0
    says: tuple[str, ...] = ()
    options: tuple[object, ...] = ()
    promised_s: float = LOST_S
    within: str = "`--host-timeout` + `--grace`"
    mend: Callable[[Launched], None] | None = None
    release: bool = True

    @property
    def id(self) -> str:
        """Its name as that of a test, or of a folder."""
        return self.name.replace(" ", "-").replace("'", "").replace(",", "")


def whole_checkpoints(shop: Workshop, out: str) -> list[int]:
    """Return the steps of the published checkpoints, each of which must be whole."""
    for step in shop.checkpoints(out):
        verify(shop.folder / out / "checkpoints" / f"step-{step:08d}", error=CheckpointError)
    return shop.checkpoints(out)


def marked(faults: Iterable[Fault], quick: Collection[str]) -> list[object]:
    """Return the parameters of a test; all faults but the quick ones are slow."""
    return [pytest.param(f, id=f.id, marks=() if f.name in quick else pytest.mark.slow) for f in faults]


def ended(row: dict[str, Any], run: Launched, promised_s: float = LOST_S) -> None:
    """Wait for the end of the command within what is promised; write its code and time into a row of the table."""
    row["code"] = run.end(promised_s + SLACK_S)
    row["seconds"] = run.seconds


def ended_alone(row: dict[str, Any], run: Launched, promised_s: float = LOST_S) -> None:
    """As `ended`, and then wait until no process is left on any host."""
    ended(row, run, promised_s)
    run.alone(LOST_S + SLACK_S)


@contextlib.contextmanager
def counted(group: str, fault: str, how: str, expected: object, within: str = "") -> Iterator[dict[str, Any]]:
    """Write down, where the variable `TABLE` names a file, whether what was tried went as it must.

    Parameters
    ----------
    group : str
        Part of the table.
    fault, how : str
        What it is, and how it is provoked.
    expected : object
        The exit code that it must have.
    within : str
        In what time the command must have ended.
    """
    told: dict[str, Any] = {"group": group, "fault": fault, "how": how, "expected": expected, "within": within}
    told["good"] = False
    try:
        yield told
        told["good"] = True
    finally:
        if os.environ.get(TABLE):
            with Path(os.environ[TABLE]).open("a") as file:
                file.write(json.dumps(told) + "\n")


def resumed(cluster: Cluster, shop: Workshop, out: str, whole: str, *, relaunch: bool) -> None:
    """Let a run go on with ``--resume auto``; in the end it must have learned what one has that nobody disturbs.

    By the same command, or, which is quicker, in forked ranks.
    """
    again = ("--resume", "auto")
    if relaunch:
        with launch_run(cluster, shop, out, *UNCHECKED, *again, phase=NOWHERE) as run:
            assert run.end(WHOLE_S + SLACK_S) == 0, run.told()
            run.alone(LOST_S + SLACK_S)
    else:
        finished(shop, shop.arguments(out, *again))
    assert shop.same(out, whole)
    assert whole_checkpoints(shop, out) and not list((shop.folder / out / "checkpoints").glob(".step-*"))
