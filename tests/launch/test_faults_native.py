"""The same faults under DeepSpeed's own command over two hosts: nothing is left for ever, though nobody may be named.

What ends the ranks here are they themselves: their watchdog, and their notice that the launcher has died.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed import held
from tests.distributed.runs import Workshop
from tests.launch.faulty import HANG_S, LOST_S, WHOLE_S, Launched, counted, reference, resumed, whole_checkpoints
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.test_native import apart  # noqa: F401

pytestmark = [pytest.mark.launch, pytest.mark.slow, pytest.mark.usefixtures("apart")]
HANGS = ("--set", f"guards.hang_timeout_s={HANG_S}")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    return held.held_shop(tmp_path_factory.mktemp("native"), toy_folder)


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> str:
    return reference(shop)


@dataclass(frozen=True)
class Fault:
    """Something bad that is done to a native run whose ranks wait.

    Attributes
    ----------
    name, how : str
        What it is, and how it is provoked.
    provoke : callable
        Does it.
    code : object
        Exit code of the command.
    within : str
        In what time it must have ended.
    mend : callable, optional
        Where the command does not end before: takes the fault away, once the ranks of the hosts `gone` have ended.
    gone : tuple of int
        Those hosts.
    steps : tuple of int
        The checkpoints that are there then.
    """

    name: str
    how: str
    provoke: Callable[[Launched], None]
    code: object = "not 0"
    within: str = "at once"
    mend: Callable[[Launched], None] | None = None
    gone: tuple[int, ...] = (0, 1)
    steps: tuple[int, ...] = (held.SAVE,)


def runner(number: signal.Signals) -> Callable[[Launched], None]:
    return lambda run: run.process.send_signal(number)


WATCHED, NEVER = f"SIGSTOP, guards.hang_timeout_s = {HANG_S}", "never; the ranks: `guards.hang_timeout_s` + 10 s"
# pdsh outlives its runner, and the ranks train on under it
FAULTS = [
    Fault("a rank killed", "SIGKILL", lambda run: run.rank(1).kill(), 247),
    Fault("a host dies", "SIGKILL to everything on it", lambda run: run.cluster.nodes[1].kill_all(), 255),
    Fault(
        "a rank stopped", WATCHED, lambda run: run.rank(1).suspend(), 7, f"{NEVER}, but for the one that is stopped",
        lambda run: run.rank(1).resume(), (0,),
    ),
    Fault(
        "link of the other host down", f"its cable is cut, guards.hang_timeout_s = {HANG_S}",
        lambda run: run.cluster.nodes[1].wire(up=False), 7, NEVER, lambda run: run.cluster.nodes[1].mend(),
    ),
    Fault(
        "the runner killed", "SIGKILL", runner(signal.SIGKILL), -signal.SIGKILL, "the end of the training",
        steps=(10, 12),
    ),
]  # fmt: skip


@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name.replace(" ", "-")) for f in FAULTS])
def test_nothing_is_left_for_ever(cluster: Cluster, shop: Workshop, whole: str, fault: Fault) -> None:
    out = fault.name.replace(" ", "-")
    with counted("native", f"deepspeed: {fault.name}", fault.how, fault.code, fault.within) as row:
        with Launched(cluster, shop, out, *HANGS, native=True) as run:
            run.reached()
            fault.provoke(run)
            run.hold.release()
            if fault.mend:
                # pdsh waits for its ssh as long as TCP does, and launch.py for a rank that is stopped
                wait_for(lambda: not run.ranks(*fault.gone), HANG_S + 10 + LOST_S + WHOLE_S)
                assert run.process.poll() is None, run.told()
                fault.mend(run)
            row["code"] = run.end(HANG_S + 10 + LOST_S + WHOLE_S)
            row["seconds"] = run.seconds
            run.alone()
            told = run.told()
        assert row["code"] == fault.code, told
        if fault.name == "a rank stopped":
            assert re.search("rank 1 of 2 hangs in step 8 .* on node2", told)
        assert whole_checkpoints(shop, out) == list(fault.steps), told
        resumed(cluster, shop, out, whole, relaunch=False)
