"""Faults of runs over two hosts: each ends within its time-out with the host named, nothing left, and then resumes.

Ranks wait in step 8 of 12 while something bad is done to them; steps up to 5 are in a checkpoint. Whatever happens,
what `--resume auto` makes of it is the undisturbed run, bit for bit. `python -m benchmarks.faults` counts.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from pretrain.ports import free_port
from pretrain.signals import REQUEST
from tests.distributed import held
from tests.distributed.runs import Workshop
from tests.launch.faulty import (
    HANG_S,
    HANGS,
    HOST_TIMEOUT_S,
    LOST_S,
    SLACK_S,
    UNCHECKED,
    WHOLE_S,
    Fault,
    counted,
    ended,
    ended_alone,
    marked,
    resumed,
    whole_checkpoints,
)
from tests.launch.launched import Launched, launch_run, without_dropout
from tests.launch.namespaces import Cluster, hosts, wait_for

pytestmark = pytest.mark.launch
ONCE = ("--restarts", 0)
SMALL = "small"


@pytest.fixture(scope="module")
def shop(shop: Workshop) -> Iterator[Workshop]:
    """Its sub-folder ``SMALL`` is a disk of 8 MiB."""
    small = shop.folder / SMALL
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], capture_output=True)
    yield without_dropout(shop)
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, shop: Workshop) -> Iterator[Cluster]:
    """Hosts of this module's own, which see its small disk."""
    with hosts(tmp_path_factory, 2) as cluster:
        yield cluster


def wire(node: int, **orders: float | bool) -> Callable[[Launched], None]:
    return lambda run: run.cluster.nodes[node].wire(**orders)


def mended(run: Launched) -> None:
    for node in run.cluster.nodes:
        node.mend()


def every(node: int, number: signal.Signals, *, but: str = "-") -> Callable[[Launched], None]:
    def send(run: Launched) -> None:
        for process in run.cluster.nodes[node].processes():
            if but not in process.cmdline():
                process.send_signal(number)

    return send


def to(target: str, number: signal.Signals) -> Callable[[Launched], None]:
    """Signal ``rank1`` or ``agent1``."""

    def send(run: Launched) -> None:
        find = run.rank if target[:-1] == "rank" else run.agent
        find(int(target[-1])).send_signal(number)

    return send


def orphaned(run: Launched) -> None:
    """Kill the controller; the ranks, which train on when they are let go, know then that they are to end."""
    run.process.kill()
    wait_for((run.out / REQUEST).exists)


def filled(run: Launched) -> None:
    """Fill the disk of the run to its last byte."""
    subprocess.run(["dd", "if=/dev/zero", f"of={run.out.parent / 'filler'}", "bs=4k"], capture_output=True)


LOST, SILENT = ("host node2 is lost",), ("host node2 is lost: no sign of life for 10 s",)
HANGS_S = HANG_S + 10 + LOST_S
KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT
SOON, WATCHED = "`--grace`", "`guards.hang_timeout_s` + 10 s + `--grace`"
FAULTS = [
    Fault("link of the other host down", "its cable is cut", wire(1, up=False), 8, LOST, mend=mended),
    Fault("link of the controller's host down", "its cable is cut", wire(0, up=False), 8, LOST, mend=mended),
    Fault("a host dies", "SIGKILL to everything on it", every(1, KILL), 8, LOST, within=SOON),
    Fault("a host freezes", "SIGSTOP to everything on it", every(1, STOP), 8, LOST, mend=every(1, CONT)),
    Fault(
        "a host's ranks killed", "SIGKILL", to("rank1", KILL), 137, ("rank 1 on node2 was ended by SIGKILL",),
        within=SOON,
    ),
    Fault(
        "the first rank killed", "SIGKILL", to("rank0", KILL), 137, ("rank 0 on node1 was ended by SIGKILL",),
        within=SOON,
    ),
    Fault("an agent killed", "SIGKILL", to("agent1", KILL), 75, LOST, within=SOON),
    Fault("an agent stopped", "SIGSTOP", to("agent1", STOP), 8, SILENT, mend=to("agent1", CONT), release=False),
    Fault("the controller killed", "SIGKILL", orphaned, -KILL, (), within=SOON),
    Fault(
        "a rank stopped", f"SIGSTOP, guards.hang_timeout_s = {HANG_S}", to("rank1", STOP), 7,
        ("rank 1 of 2 hangs in step 8", "on node2"), HANGS, HANGS_S, within=WATCHED,
    ),
    Fault(
        "the first rank stopped", f"SIGSTOP, guards.hang_timeout_s = {HANG_S}", to("rank0", STOP), 7,
        ("rank 0 of 2 hangs in step 8", "on node1"), HANGS, HANGS_S, within=WATCHED,
    ),
    Fault(
        "disk full", "the last byte of the file system of the run's folder is taken", filled, 4,
        ("cannot be written", "No space left on device"), mend=lambda run: (run.out.parent / "filler").unlink(),
        within="the next save",
    ),
]  # fmt: skip
QUICK = {"link of the other host down", "a host's ranks killed", "an agent stopped"}
RELAUNCHED = {"link of the controller's host down", "a host dies"}


@pytest.mark.parametrize("fault", marked(FAULTS, QUICK))
def test_a_fault_ends_the_run_which_then_resumes(cluster: Cluster, shop: Workshop, whole: str, fault: Fault) -> None:
    out = f"{SMALL}/out" if fault.name == "disk full" else fault.id
    with counted("running", fault.name, fault.how, fault.code, fault.within) as row:
        with launch_run(cluster, shop, out, *UNCHECKED, *ONCE, *fault.options, phase="step") as run:
            fault.provoke(run)
            if fault.release:
                run.hold.release()
            ended(row, run, fault.promised_s)
            if fault.mend:
                fault.mend(run)
            run.alone(LOST_S + SLACK_S)
            told = run.told()
        assert row["code"] == fault.code, told
        assert all(words in told for words in fault.says), told
        saved = fault.code == 75 or fault.name == "the controller killed"
        assert whole_checkpoints(shop, out) == [held.SAVE, held.EXPECTED["step"]][: 1 + saved], told
        resumed(cluster, shop, out, whole, relaunch=fault.name in RELAUNCHED)


def outage(run: Launched) -> None:
    run.cluster.nodes[1].wire(up=False)
    run.hold.release()
    # more than a beat, less than the time-out
    time.sleep(HOST_TIMEOUT_S / 2)
    run.cluster.nodes[1].mend()


TROUBLES = [
    Fault("delay of 500 ms", "each frame to and from the other host comes 500 ms late", wire(1, delay_s=0.5)),
    Fault("loss of 30 %", "of the frames to and from the other host", wire(1, loss=0.3)),
    Fault("link down for less than the time-out", f"for {HOST_TIMEOUT_S / 2:.0f} s", outage),
    Fault("MLflow away", "no server at the address of the tracking server", lambda run: None),
]


@pytest.mark.parametrize("trouble", marked(TROUBLES, ()))
def test_a_run_lives_with_it(cluster: Cluster, shop: Workshop, whole: str, trouble: Fault) -> None:
    out = trouble.id.replace("%", "percent")
    away = {"MLFLOW_TRACKING_URI": f"http://{cluster.gateway}:{free_port()}"} if "MLflow" in out else {}
    # retransmissions back off: silence of more than 10 s is to be expected where every third frame is lost
    patient = ("--host-timeout", 60) if "loss" in out else ()
    with counted("lived with", trouble.name, trouble.how, 0) as row:
        with launch_run(cluster, shop, out, *UNCHECKED, *ONCE, *patient, phase="step", env=away) as run:
            trouble.provoke(run)
            run.hold.release()
            ended_alone(row, run, WHOLE_S)
        assert row["code"] == 0, run.told()
        assert shop.same(out, whole)
