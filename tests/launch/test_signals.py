"""Requests to end a run of several hosts: whatever process gets them, in whatever phase, all save once and end.

The exit code is asserted of what a user has started. DeepSpeed's and torchrun's own commands have codes of their own;
there it is asserted that all is saved, that the run's folder says so, and that nobody is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pretrain.ports import free_port
from pretrain.signals import REQUEST
from tests.distributed.held import EXPECTED, NAMES, SAVE, environment, finished, held_shop
from tests.distributed.ranks import TIMEOUT_S
from tests.distributed.runs import SCRIPT, Hold, Workshop
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.test_native import apart  # noqa: F401  a fixture

pytestmark = pytest.mark.launch

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# seconds from the release of the ranks until nothing of the run is left on any host
NOBODY_S = 30
# of a run whose ranks are not where a request finds them: checkpoints before
BEFORE = {"warm-up": [], "step": [SAVE], "save": [], "eval": [SAVE]}
TABLE: dict[tuple[str, ...], str] = {}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    shop = held_shop(tmp_path_factory.mktemp("signals"), toy_folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(shop, "-").items():
            patch.setenv(name, value)
        # tests in the background, or under nohup, ignore some, and so would all that they start
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGUSR1)}
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
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


class Held:
    """A run on two hosts that a user has started, held in a phase; leaves no process behind.

    Parameters
    ----------
    phase : str
        Where it waits; ``"-"``: nowhere.
    slots : int
        Ranks on each host.
    ssh : Path, optional
        What reaches the hosts.
    commands : list of list, optional
        The command of the first host, or those of both; by default ``matloom launch run`` with ``options``.
    """

    def __init__(
        self,
        cluster: Cluster,
        shop: Workshop,
        out: str,
        phase: str,
        *options: object,
        slots: int = 1,
        ssh: object = "ssh",
        commands: Sequence[Sequence[object]] = (),
    ) -> None:
        self.cluster, self.shop, self.out, self.log = cluster, shop, shop.folder / out, shop.folder / f"{out}.log"
        self.hold = Hold(shop.folder / f"hold-{out}", 2 * slots)
        self.waiting = [0] if phase == "save" else list(range(2 * slots))
        hosts = cluster.hostfile(slots, f"{out}.hosts")
        env = environment(shop, out, self.hold, phase)
        # what DeepSpeed's launcher hands on
        handed_on = shop.folder / f"{out}.env"
        handed_on.write_text("".join(f"{name}={value}\n" for name, value in env.items()))
        run = [
            sys.executable, "-m", "launch.cli", "launch", "run", shop.recipe, "--out", self.out, "--hostfile", hosts,
            "--ssh", f"{ssh} -F {cluster.folder}/ssh_config", *(f"--env={name}" for name in NAMES), *options,
        ]  # fmt: skip
        self.processes = [
            node.popen(*words, log=self.log.with_suffix(f".{node.name}"), env={**env, "DS_ENV_FILE": str(handed_on)})
            for node, words in zip(cluster.nodes, commands or [run], strict=False)
        ]
        self.process = self.processes[0]
        if phase != "-":
            with contextlib.ExitStack() as stack:
                stack.callback(self.__exit__)
                self.hold.reached(*self.waiting, alive=lambda: self.process.poll() is None)
                stack.pop_all()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.cluster.nodes:
            node.kill_all()
        for process in self.processes:
            process.wait()

    def told(self) -> str:
        return "".join(log.read_text(errors="replace") for log in self.log.parent.glob(f"{self.out.name}.node?"))

    def find(self, node: int, word: str, **variables: str) -> psutil.Process | None:
        """Return the process of a host that has this word on its command line, and these variables."""
        for process in self.cluster.nodes[node].processes():
            with contextlib.suppress(psutil.Error):
                if word in process.cmdline() and process.environ().items() >= variables.items():
                    return process
        return None

    def member(self, target: str) -> psutil.Process:
        last = str(self.hold.world - 1)
        found = {
            "runner": lambda: psutil.Process(self.process.pid),
            "agent": lambda: self.find(1, "launch.hosts.agent"),
            "launch.py": lambda: self.find(1, "deepspeed.launcher.launch"),
            "rank": lambda: self.find(1, "-u", RANK=last, LOCAL_RANK=str(int(last) // 2)),
        }[target]()
        assert found is not None, f"there is no {target}: {self.told()}"
        return found

    def signal(self, target: str, number: signal.Signals) -> None:
        """Signal one of them; ``group``: what a terminal's Ctrl-C would reach."""
        if target == "group":
            os.killpg(self.process.pid, number)
        else:
            self.member(target).send_signal(number)

    def noticed(self) -> None:
        """Return once a rank knows that it is to end."""
        wait_for((self.out / REQUEST).exists)

    def release(self, within_s: float = NOBODY_S) -> tuple[int, float]:
        """Let the ranks go on; exit code, and seconds until nobody is left."""
        began = time.monotonic()
        self.hold.release()
        code = self.process.wait(TIMEOUT_S)
        wait_for(lambda: not self.cluster.strays(), within_s)
        return code, time.monotonic() - began

    def asked(self) -> tuple[int, float]:
        """Let the ranks go on once one of them knows that it is to end; as `release`."""
        self.noticed()
        return self.release()

    def preempted(self) -> dict[str, object]:
        path = self.out / "preempted.json"
        assert path.exists(), self.told()
        return dict(json.loads(path.read_text()))


def once_and_resumed(held: Held, phase: str, whole: Callable[[int], str]) -> None:
    """Assert that there is exactly one new checkpoint, and that going on from it leads to where it would have led."""
    shop, out, world = held.shop, held.out.name, held.hold.world
    assert shop.checkpoints(out) == sorted({*BEFORE[phase], EXPECTED[phase]}), held.told()
    assert held.preempted()["step"] == EXPECTED[phase]
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
    with Held(cluster, shop, f"{target}-{phase}-{number.name}", phase, "--no-check") as held:
        held.signal(target, number)
        code, seconds = held.asked()
        assert code == 75, held.told()
        assert held.told().count("the same command with --resume") == 1
        once_and_resumed(held, phase, whole)
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
    with Held(cluster, shop, f"four-{target}", phase, "--no-check", slots=2) as held:
        held.signal(target, number)
        code, seconds = held.asked()
        assert code == 75, held.told()
        once_and_resumed(held, phase, whole)
    TABLE[words] = f"ok, code {code}, {seconds:.1f} s"


def test_several_requests_at_once_are_one(cluster: Cluster, shop: Workshop, whole: Callable[[int], str]) -> None:
    with Held(cluster, shop, "several", "step", "--no-check") as held:
        held.signal("runner", signal.SIGUSR1)
        held.noticed()
        held.signal("runner", signal.SIGTERM)
        held.signal("agent", signal.SIGHUP)
        held.signal("rank", signal.SIGINT)
        held.signal("runner", signal.SIGINT)
        code, _ = held.release()
        assert code == 75, held.told()
        once_and_resumed(held, "step", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_waits_for_ranks_that_cannot_hear_yet(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str], number: signal.Signals
) -> None:
    with Held(cluster, shop, f"early-{number.name}", "import", "--no-check") as held:
        agent = held.member("agent")
        before = agent.num_ctx_switches().voluntary
        held.signal("runner", number)
        # it has looked around several times since
        wait_for(lambda: agent.num_ctx_switches().voluntary > before + 40)
        code, _ = held.release()
        assert code == 75, held.told()
        once_and_resumed(held, "warm-up", whole)


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
    with Held(cluster, shop, out, "-", check, ssh=ssh) as held:
        connecting.reached(alive=lambda: held.process.poll() is None)
        held.signal("runner", number)
        assert held.process.wait(NOBODY_S) in (128 + number, -number), held.told()
        connecting.release()
        wait_for(lambda: not cluster.strays(), NOBODY_S)
        assert not (held.out / "logs").exists()
        assert "Traceback" not in held.told()


def test_a_request_between_two_attempts_starts_no_other_one(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str]
) -> None:
    # the second connection is that of the second attempt
    ssh, connecting = slow_ssh(shop, "between", after=1)
    with Held(cluster, shop, "between", "step", "--no-check", "--restarts", 1, "--grace", 5, ssh=ssh) as held:
        held.member("rank").kill()
        held.hold.release(0)
        connecting.reached(alive=lambda: held.process.poll() is None)
        held.signal("runner", signal.SIGTERM)
        assert held.process.wait(NOBODY_S) == 128 + signal.SIGTERM, held.told()
        connecting.release()
        wait_for(lambda: not cluster.strays(), NOBODY_S)
        assert shop.checkpoints("between") == [SAVE] and len(list((held.out / "logs").iterdir())) == 1
        finished(shop, shop.arguments("between", "--resume", "auto"))
        assert shop.same("between", whole(2))


def test_a_request_while_a_host_is_lost_ends_the_run_without_another_attempt(
    cluster: Cluster, shop: Workshop, whole: Callable[[int], str]
) -> None:
    with Held(cluster, shop, "lost", "step", "--no-check", "--restarts", 1, "--grace", 5) as held:
        cluster.nodes[1].kill_all()
        wait_for(lambda: "host node2 is lost" in held.told())
        held.signal("runner", signal.SIGUSR1)
        code, _ = held.release()
        assert code == 8, held.told()
        assert shop.checkpoints("lost") == [SAVE] and len(list((held.out / "logs").iterdir())) == 1
        finished(shop, shop.arguments("lost", "--resume", "auto"))
        assert shop.same("lost", whole(2))


def by_pdsh(cluster: Cluster, shop: Workshop, out: str) -> list[list[object]]:
    """Return the command of DeepSpeed's launcher, which reaches both hosts by pdsh."""
    hosts = cluster.hostfile(1, f"{out}.hosts")
    launcher = Path(sys.executable).with_name("deepspeed")
    words = [launcher, "--hostfile", hosts, "--master_port", free_port(), SCRIPT, *shop.arguments(out)]
    return [words]


def by_torchrun(cluster: Cluster, shop: Workshop, out: str) -> list[list[object]]:
    """Return the commands of torchrun on both hosts."""
    port = free_port()
    return [
        [Path(sys.executable).with_name("torchrun"), "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=1",
         "--master-addr=node1", f"--master-port={port}", SCRIPT, *shop.arguments(out)]
        for i in range(2)
    ]  # fmt: skip


# what ends DeepSpeed's runner alone, or the runner, pdsh and ssh, of all of which no rank is a child
UNHEARD = {(by_pdsh, "runner", signal.SIGUSR1), (by_pdsh, "runner", signal.SIGHUP)}
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
    with Held(cluster, shop, out, "step", commands=launcher(cluster, shop, out)) as held:
        held.signal(target, number)
        code, seconds = held.release(TIMEOUT_S) if case in UNHEARD | BROKEN else held.asked()
        if case in UNHEARD:
            # it goes on as if nothing had been said, and its output still comes
            assert shop.same(out, whole(2))
            TABLE[words] = f"ok, unheard, code {code}, trained to its end in {seconds:.1f} s"
            return
        found = shop.checkpoints(out)
        # where ssh is gone, ranks notice at the next line that they print
        assert found[:-1] == [SAVE] and (found[-1] == EXPECTED["step"] or case in BROKEN), held.told()
        assert held.preempted()["step"] == found[-1]
        finished(shop, shop.arguments(out, "--resume", "auto"))
        assert shop.same(out, whole(2))
    TABLE[words] = f"ok, code {code}, {seconds:.1f} s"
