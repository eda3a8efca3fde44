"""Requests to end a run of several hosts: whatever process gets them, in whatever phase, all save once and end.

The exit code is asserted of what a user has started. DeepSpeed's and torchrun's own commands have codes of their own;
there it is asserted that all is saved, that the run's folder says so, and that nobody is left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pretrain.ports import free_port
from pretrain.signals import REQUEST
from tests.distributed.held import EXPECTED, SAVE, finished
from tests.distributed.ranks import TIMEOUT_S
from tests.distributed.runs import SCRIPT, Hold, Workshop
from tests.launch.launched import NOWHERE, Launched, by_pdsh, launch_run
from tests.launch.namespaces import Cluster, wait_for

pytestmark = pytest.mark.launch

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# seconds from the release of the ranks until nothing of the run is left on any host
NOBODY_S = 30
# of a run whose ranks are not where a request finds them: checkpoints before
BEFORE = {"warm-up": [], "step": [SAVE], "save": [], "eval": [SAVE]}
AGAIN = ("--no-check", "--restarts", 1, "--grace", 5)
TABLE: dict[tuple[str, ...], str] = {}


@pytest.fixture(scope="module")
def shop(shop: Workshop) -> Iterator[Workshop]:
    # under nohup tests ignore some, and so would all that they start
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield shop
    for number, handler in before.items():
        signal.signal(number, handler)
    good = sum(found.startswith("ok") for found in TABLE.values())
    print(f"\n{good} of {len(TABLE)} requests to end: saved once, nobody left behind, resumed bit for bit")


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """Print what a test has found."""
    known = set(TABLE)
    yield
    for words in TABLE.keys() - known:
        print("\n", *(f"{word:<14}" for word in words), TABLE[words], sep="", flush=True)


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> Callable[[int], str]:
    """Runs that nobody disturbs, by their number of ranks."""
    made: dict[int, str] = {}

    def run(world: int) -> str:
        if world not in made:
            made[world] = f"whole-{world}"
            finished(shop, shop.arguments(made[world]), world=world)
        return made[world]

    return run


def member(run: Launched, target: str) -> psutil.Process:
    """Return one of the processes of a run: of the first host what the user has started, of the second the others."""
    found: dict[str, Callable[[], psutil.Process]] = {
        "runner": lambda: psutil.Process(run.process.pid),
        "agent": lambda: run.agent(1),
        "launch.py": lambda: run.module("deepspeed.launcher.launch", 1),
        "rank": lambda: run.rank(run.hold.world - 1),
    }
    return found[target]()


def send(run: Launched, target: str, number: signal.Signals) -> None:
    """Signal one of them; ``group``: what a terminal's Ctrl-C would reach."""
    if target == "group":
        os.killpg(run.process.pid, number)
    else:
        member(run, target).send_signal(number)


def noticed(run: Launched) -> None:
    """Return once a rank knows that it is to end."""
    wait_for((run.out / REQUEST).exists)


def released(run: Launched, within_s: float = NOBODY_S) -> tuple[int, float]:
    """Let the ranks go on; exit code, and seconds until nobody is left."""
    began = time.monotonic()
    run.hold.release()
    code = run.end()
    run.alone(within_s)
    return code, time.monotonic() - began


def asked(run: Launched) -> tuple[int, float]:
    """Let the ranks go on once one of them knows that it is to end; as `released`."""
    noticed(run)
    return released(run)


def once_and_resumed(run: Launched, phase: str, whole: Callable[[int], str]) -> None:
    """Assert that there is exactly one new checkpoint, and that going on from it leads to where it would have led."""
    shop, out, world = run.shop, run.out.name, run.hold.world
    assert shop.checkpoints(out) == sorted({*BEFORE[phase], EXPECTED[phase]}), run.told()
    assert run.preempted()["step"] == EXPECTED[phase]
    finished(shop, shop.arguments(out, "--resume", "auto"), world=world)
    assert shop.same(out, whole(world))


def matrix(targets: tuple[str, ...], fast: set[tuple[str, str, int]]) -> list[object]:
    """Return every signal to every target in every phase; all but the fast ones are slow."""
    return [
        pytest.param(
            number, target, phase, id=f"{target}-{phase}-{number.name}",
            marks=[] if (target, phase, number) in fast else [pytest.mark.slow],
        )
        for target in targets
        for phase in EXPECTED
        for number in NUMBERS
    ]  # fmt: skip


FAST = {
    ("runner", "step", signal.SIGTERM),
    ("agent", "save", signal.SIGUSR1),
    ("rank", "eval", signal.SIGHUP),
    ("group", "warm-up", signal.SIGINT),
}


@pytest.mark.parametrize(("number", "target", "phase"), matrix(("runner", "agent", "rank", "group"), FAST))
def test_two_hosts(
    cluster: Cluster,
    shop: Workshop,
    whole: Callable[[int], str],
    number: signal.Signals,
    target: str,
    phase: str,
) -> None:
    TABLE["launch run", target, phase, number.name] = "failed"
    with launch_run(cluster, shop, f"{target}-{phase}-{number.name}", "--no-check", phase=phase) as run:
        send(run, target, number)
        code, seconds = asked(run)
        assert code == 75, run.told()
        assert run.told().count("the same command with --resume") == 1
        once_and_resumed(run, phase, whole)
    TABLE["launch run", target, phase, number.name] = f"ok, code {code}, {seconds:.1f} s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "target", "phase"),
    [
        (signal.SIGTERM, "runner", "eval"),
        (signal.SIGUSR1, "agent", "step"),
        (signal.SIGINT, "rank", "save"),
        (signal.SIGHUP, "group", "warm-up"),
    ],
)
def test_two_hosts_of_two_ranks(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str], number: signal.Signals, target: str, phase: str
) -> None:
    words = ("launch run 2x2", target, phase, number.name)
    TABLE[words] = "failed"
    with launch_run(cluster, shop, f"four-{target}", "--no-check", slots=2, phase=phase) as run:
        send(run, target, number)
        code, seconds = asked(run)
        assert code == 75, run.told()
        once_and_resumed(run, phase, whole)
    TABLE[words] = f"ok, code {code}, {seconds:.1f} s"


def test_several_requests_at_once_are_one(cluster: Cluster, shop: Workshop, whole: Callable[[int], str]) -> None:
    with launch_run(cluster, shop, "several", "--no-check", phase="step") as run:
        send(run, "runner", signal.SIGUSR1)
        noticed(run)
        send(run, "runner", signal.SIGTERM)
        send(run, "agent", signal.SIGHUP)
        send(run, "rank", signal.SIGINT)
        send(run, "runner", signal.SIGINT)
        code, _ = released(run)
        assert code == 75, run.told()
        once_and_resumed(run, "step", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_waits_for_ranks_that_cannot_hear_yet(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str], number: signal.Signals
) -> None:
    with launch_run(cluster, shop, f"early-{number.name}", "--no-check", phase="import") as run:
        agent = member(run, "agent")
        before = agent.num_ctx_switches().voluntary
        send(run, "runner", number)
        # it has looked around several times since
        wait_for(lambda: agent.num_ctx_switches().voluntary > before + 40)
        code, _ = released(run)
        assert code == 75, run.told()
        once_and_resumed(run, "warm-up", whole)


def slow_ssh(shop: Workshop, out: str, after: int) -> tuple[Path, Hold]:
    """Make an ssh whose connections wait, but for the first ``after`` ones."""
    hold = Hold(shop.folder / f"hold-ssh-{out}", 1)
    script = shop.folder / f"ssh-{out}"
    script.write_text(
        f"#!/bin/sh\necho >> {hold.folder}/asked\n"
        f"if [ $(wc -l < {hold.folder}/asked) -gt {after} ]; then\n"
        f"  touch {hold.folder}/reached-0\n  while [ ! -e {hold.folder}/go-0 ]; do sleep 0.05; done\nfi\n"
        'exec ssh "$@"\n'
    )
    script.chmod(0o755)
    return script, hold


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("check", ["--no-check", "--check"])
def test_a_request_before_any_rank_is_there_ends_it_at_once(
    cluster: Cluster, shop: Workshop, number: signal.Signals, check: str
) -> None:
    out = f"before{check}-{number.name}"
    ssh, connecting = slow_ssh(shop, out, after=0)
    with launch_run(cluster, shop, out, check, ssh=ssh, phase=NOWHERE) as run:
        connecting.reached(alive=lambda: run.process.poll() is None)
        send(run, "runner", number)
        assert run.end(NOBODY_S) == 75, run.told()
        connecting.release()
        run.alone(NOBODY_S)
        assert not (run.out / "logs").exists()
        assert "Traceback" not in run.told()


def test_a_request_between_two_attempts_starts_no_other_one(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str]
) -> None:
    # the second connection is that of the second attempt
    ssh, connecting = slow_ssh(shop, "between", after=1)
    with launch_run(cluster, shop, "between", *AGAIN, ssh=ssh, phase="step") as run:
        member(run, "rank").kill()
        run.hold.release(0)
        connecting.reached(alive=lambda: run.process.poll() is None)
        send(run, "runner", signal.SIGTERM)
        assert run.end(NOBODY_S) == 75, run.told()
        connecting.release()
        run.alone(NOBODY_S)
        assert shop.checkpoints("between") == [SAVE] and len(list((run.out / "logs").iterdir())) == 1
        finished(shop, shop.arguments("between", "--resume", "auto"))
        assert shop.same("between", whole(2))


def test_a_request_while_a_host_is_lost_ends_the_run_without_another_attempt(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str]
) -> None:
    with launch_run(cluster, shop, "lost", *AGAIN, phase="step") as run:
        cluster.nodes[1].kill_all()
        wait_for(lambda: "host node2 is lost" in run.told())
        send(run, "runner", signal.SIGUSR1)
        code, _ = released(run)
        assert code == 8, run.told()
        assert shop.checkpoints("lost") == [SAVE] and len(list((run.out / "logs").iterdir())) == 1
        finished(shop, shop.arguments("lost", "--resume", "auto"))
        assert shop.same("lost", whole(2))


def by_torchrun(cluster: Cluster, shop: Workshop, out: str) -> list[list[object]]:
    """Return the commands of torchrun on both hosts."""
    port = free_port()
    return [
        [Path(sys.executable).with_name("torchrun"), "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=1",
         "--master-addr=node1", f"--master-port={port}", SCRIPT, *shop.arguments(out)]
        for i in range(2)
    ]  # fmt: skip


# what ends DeepSpeed's runner alone, or the runner and pdsh, of neither of which a rank is a child
UNHEARD = {(by_pdsh, "runner", signal.SIGUSR1), (by_pdsh, "runner", signal.SIGHUP)}
# there ssh dies of the first line that it cannot hand on, and ranks notice at a later one, if there is one
BROKEN = {(by_pdsh, "group", signal.SIGUSR1), (by_pdsh, "group", signal.SIGHUP)}


@pytest.mark.slow
@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
@pytest.mark.parametrize("target", ["runner", "launch.py", "rank", "group"])
@pytest.mark.parametrize("launcher", [by_pdsh, by_torchrun])
def test_other_launchers_end_saved_and_leave_nobody(
    cluster: Cluster,
    shop: Workshop,
    whole: Callable[[int], str],
    launcher: Callable[..., list[list[object]]],
    target: str,
    number: signal.Signals,
) -> None:
    if launcher is by_torchrun and target == "launch.py":
        pytest.skip("torchrun has nothing between its command and the ranks")
    out, case = f"{launcher.__name__}-{target}-{number.name}", (launcher, target, number)
    words = (launcher.__name__[3:], target, "step", number.name)
    TABLE[words] = "failed"
    with Launched(cluster, shop, out, *launcher(cluster, shop, out), phase="step") as run:
        send(run, target, number)
        code, seconds = released(run, TIMEOUT_S) if case in UNHEARD | BROKEN else asked(run)
        if case in UNHEARD:
            # it goes on as if nothing had been said, and its output still comes
            assert shop.same(out, whole(2))
            TABLE[words] = f"ok, unheard, code {code}, trained to its end in {seconds:.1f} s"
            return
        found = shop.checkpoints(out)
        if case not in BROKEN:
            assert found == [SAVE, EXPECTED["step"]], run.told()
            assert run.preempted()["step"] == found[-1]
        finished(shop, shop.arguments(out, "--resume", "auto"))
        assert shop.same(out, whole(2))
    TABLE[words] = f"ok, code {code}, {seconds:.1f} s"
