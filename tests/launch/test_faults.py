"""Faults of runs over two hosts: each ends within its time-out with the host named, nothing left, and then resumes.

Ranks wait in step 8 of 12 while something bad is done to them; steps up to 5 are in a checkpoint. Whatever happens,
what `--resume auto` makes of it is the undisturbed run, bit for bit. `python -m benchmarks.faults` counts.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pretrain.ports import free_port
from tests.distributed import held
from tests.distributed.runs import Workshop
from tests.launch.faulty import (
    HANG_S,
    HOST_TIMEOUT_S,
    LOST_S,
    WHOLE_S,
    Launched,
    counted,
    reference,
    resumed,
    whole_checkpoints,
)
from tests.launch.namespaces import Cluster, hosts

pytestmark = pytest.mark.launch
ONCE = ("--restarts", 0)
SMALL = "small"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    """Its sub-folder ``SMALL`` is a disk of 8 MiB."""
    folder = tmp_path_factory.mktemp("faults")
    shop = held.held_shop(folder, toy_folder)
    # each rank draws its own: the only thing that the number of ranks changes
    shop.recipe.write_text(re.sub("dropout = .*", "dropout = 0.0", shop.recipe.read_text()))
    (folder / SMALL).mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder / SMALL], capture_output=True)
    yield shop
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", folder / SMALL], check=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, shop: Workshop) -> Iterator[Cluster]:
    """Hosts of this module's own, which see its small disk."""
    with hosts(tmp_path_factory, 2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> str:
    return reference(shop)


@dataclass(frozen=True)
class Fault:
    """Something bad that is done to a run whose ranks wait.

    Attributes
    ----------
    name, how : str
        What it is, and how it is provoked.
    provoke : callable
        Does it.
    code : int
        Exit code of the run.
    says : tuple of str
        What stands in its output.
    options : tuple
        Of the run.
    promised_s : float
        In how long the command must have ended.
    mend : callable
        Takes away what hinders the next run, and what keeps processes from ending.
    release : bool
        Whether the ranks go on then; toys would be done before some faults are noticed.
    within : str
        That time in words.
    """

    name: str
    how: str
    provoke: Callable[[Launched], None]
    code: int
    says: tuple[str, ...]
    options: tuple[object, ...] = ONCE
    promised_s: float = LOST_S
    mend: Callable[[Launched], None] = field(default=lambda run: None)
    release: bool = True
    within: str = "`--host-timeout` + `--grace`"


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
    """Signal ``rank1``, ``agent1`` or the ``controller``."""

    def send(run: Launched) -> None:
        if target == "controller":
            run.process.send_signal(number)
        else:
            find = run.rank if target[:-1] == "rank" else run.agent
            find(int(target[-1])).send_signal(number)

    return send


def filled(run: Launched) -> None:
    """Fill the disk of the run to its last byte."""
    subprocess.run(["dd", "if=/dev/zero", f"of={run.out.parent / 'filler'}", "bs=4k"], capture_output=True)


LOST, SILENT = ("host node2 is lost",), ("host node2 is lost: no sign of life for 10 s",)
HANGS = ("--set", f"guards.hang_timeout_s={HANG_S}", *ONCE)
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
    Fault("the controller killed", "SIGKILL", to("controller", KILL), -KILL, (), within=SOON),
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


def name(fault: Fault) -> str:
    return fault.name.replace(" ", "-").replace("'", "")


def marked(faults: list[Fault]) -> list[object]:
    return [pytest.param(f, id=name(f), marks=() if f.name in QUICK else pytest.mark.slow) for f in faults]


@pytest.mark.parametrize("fault", marked(FAULTS))
def test_a_fault_ends_the_run_which_then_resumes(cluster: Cluster, shop: Workshop, whole: str, fault: Fault) -> None:
    out = f"{SMALL}/out" if fault.name == "disk full" else name(fault)
    with counted("running", fault.name, fault.how, fault.code, fault.within) as row:
        with Launched(cluster, shop, out, *fault.options) as run:
            run.reached()
            fault.provoke(run)
            if fault.release:
                run.hold.release()
            row["code"] = run.end(fault.promised_s)
            row["seconds"] = run.seconds
            fault.mend(run)
            run.alone()
            told = run.told()
        assert row["code"] == fault.code, told
        assert all(words in told for words in fault.says), told
        saved = fault.code == 75 or fault.name == "the controller killed"
        assert whole_checkpoints(shop, out) == [held.SAVE, held.EXPECTED["step"]][: 1 + saved], told
        resumed(cluster, shop, out, whole, relaunch=fault.name in RELAUNCHED)


@dataclass(frozen=True)
class Trouble:
    """Something bad that a run must live with."""

    name: str
    how: str
    provoke: Callable[[Launched], None]


def outage(run: Launched) -> None:
    run.cluster.nodes[1].wire(up=False)
    run.hold.release()
    # more than a beat, less than the time-out
    time.sleep(HOST_TIMEOUT_S / 2)
    run.cluster.nodes[1].mend()


TROUBLES = [
    Trouble("delay of 500 ms", "each frame to and from the other host comes 500 ms late", wire(1, delay_s=0.5)),
    Trouble("loss of 30 %", "of the frames to and from the other host", wire(1, loss=0.3)),
    Trouble("link down for less than the time-out", f"for {HOST_TIMEOUT_S / 2:.0f} s", outage),
    Trouble("MLflow away", "no server at the address of the tracking server", lambda run: None),
]


@pytest.mark.parametrize(
    "trouble", [pytest.param(t, id=t.name.replace(" ", "-"), marks=pytest.mark.slow) for t in TROUBLES]
)
def test_a_run_lives_with_it(cluster: Cluster, shop: Workshop, whole: str, trouble: Trouble) -> None:
    out = trouble.name.replace(" ", "-").replace("%", "percent")
    away = {"MLFLOW_TRACKING_URI": f"http://{cluster.gateway}:{free_port()}"} if "MLflow" in out else {}
    # retransmissions back off: silence of more than 10 s is to be expected where every third frame is lost
    patient = ("--host-timeout", 60) if "loss" in out else ()
    with counted("lived with", trouble.name, trouble.how, 0) as row:
        with Launched(cluster, shop, out, *ONCE, *patient, env=away) as run:
            run.reached()
            trouble.provoke(run)
            run.hold.release()
            row["code"] = run.end(WHOLE_S)
            row["seconds"] = run.seconds
            run.alone()
        assert row["code"] == 0, run.told()
        assert shop.same(out, whole)
