"""The same faults under DeepSpeed's own command over two hosts: nothing is left for ever, though nobody may be named.

What ends the ranks here are they themselves: their watchdog, and their notice that the launcher has died.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.distributed import held
from tests.distributed.runs import Workshop
from tests.launch.faulty import (
    HANG_S,
    HANGS,
    LOST_S,
    WHOLE_S,
    Fault,
    counted,
    ended_alone,
    resumed,
    whole_checkpoints,
)
from tests.launch.launched import Launched, by_pdsh
from tests.launch.namespaces import Cluster, wait_for

pytestmark = [pytest.mark.launch, pytest.mark.slow, pytest.mark.usefixtures("apart")]


@dataclass(frozen=True)
class Native(Fault):
    """One of a native run.

    Attributes
    ----------
    gone : tuple of int
        The hosts whose ranks have ended when it is mended: before that, the command goes on.
    steps : tuple of int
        The checkpoints that are there in the end.
    """

    within: str = "at once"
    gone: tuple[int, ...] = (0, 1)
    steps: tuple[int, ...] = (held.SAVE,)


def runner(number: signal.Signals) -> Callable[[Launched], None]:
    return lambda run: run.process.send_signal(number)


WATCHED, NEVER = f"SIGSTOP, guards.hang_timeout_s = {HANG_S}", "never; the ranks: `guards.hang_timeout_s` + 10 s"
# pdsh outlives its runner, and the ranks train on under it
FAULTS = [
    Native("a rank killed", "SIGKILL", lambda run: run.rank(1).kill(), 247),
    Native("a host dies", "SIGKILL to everything on it", lambda run: run.cluster.nodes[1].kill_all(), 255),
    Native(
        "a rank stopped", WATCHED, lambda run: run.rank(1).suspend(), 7,
        within=f"{NEVER}, but for the one that is stopped", mend=lambda run: run.rank(1).resume(), gone=(0,),
    ),
    Native(
        "link of the other host down", f"its cable is cut, guards.hang_timeout_s = {HANG_S}",
        lambda run: run.cluster.nodes[1].wire(up=False), 7,
        within=NEVER, mend=lambda run: run.cluster.nodes[1].mend(),
    ),
    Native(
        "the runner killed", "SIGKILL", runner(signal.SIGKILL), -signal.SIGKILL,
        within="the end of the training", steps=(10, 12),
    ),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_nothing_is_left_for_ever(cluster: Cluster, shop: Workshop, whole: str, fault: Native) -> None:
    out = fault.id
    with counted("native", f"deepspeed: {fault.name}", fault.how, fault.code, fault.within) as row:
        with Launched(cluster, shop, out, *by_pdsh(cluster, shop, out, *HANGS), phase="step") as run:
            fault.provoke(run)
            run.hold.release()
            if fault.mend:
                # pdsh waits for its ssh as long as TCP does, and launch.py for a rank that is stopped
                wait_for(lambda: not run.ranks(*fault.gone), HANG_S + 10 + LOST_S + WHOLE_S)
                assert run.process.poll() is None, run.told()
                fault.mend(run)
            ended_alone(row, run, HANG_S + 10 + LOST_S + WHOLE_S)
            told = run.told()
        assert row["code"] == fault.code, told
        if fault.name == "a rank stopped":
            assert re.search("rank 1 of 2 hangs in step 8 .* on node2", told)
        assert whole_checkpoints(shop, out) == list(fault.steps), told
        resumed(cluster, shop, out, whole, relaunch=False)
