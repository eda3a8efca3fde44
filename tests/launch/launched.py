"""Runs over hosts that a user has started, by whatever command: how a test finds their processes and sees their end."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pretrain.ports import free_port
from tests.distributed import held
from tests.distributed.ranks import ROOT, TIMEOUT_S
from tests.distributed.runs import SCRIPT, Hold, Workshop
from tests.launch.namespaces import Cluster, wait_for

EXAMPLES = ROOT / "docs" / "examples" / "launch"
NOWHERE = "-"


class Launched:
    """A run that a user has started; a context that is entered once its ranks wait, and leaves no process behind.

    Parameters
    ----------
    cluster, shop
        Where, and what.
    out : str
        Name of the run's folder.
    *commands : sequence
        That of the first host, of the second, ...
    phase : str
        In which the ranks of a workshop of `held.held_shop` wait; `NOWHERE`: in none of such a one.
    slots : int
        Ranks on each host, where they wait.
    env : mapping, optional
        Variables of the commands.
    """

    def __init__(
        self,
        cluster: Cluster,
        shop: Workshop,
        out: str,
        *commands: Sequence[object],
        phase: str = "",
        slots: int = 1,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster, self.shop, self.out, self.phase = cluster, shop, shop.folder / out, phase
        beside, variables = _beside(shop, out), dict(env or {})
        self.hold = None if phase in ("", NOWHERE) else Hold(Path(f"{beside}.hold"), slots * len(cluster.nodes))
        if phase:
            of_ranks = held.environment(shop, out, self.hold, phase)
            # what DeepSpeed's launcher hands on
            handed_on = Path(f"{beside}.deepspeed_env")
            handed_on.write_text("".join(f"{name}={value}\n" for name, value in of_ranks.items()))
            variables = {**of_ranks, "DS_ENV_FILE": str(handed_on), **variables}
        self.logs: list[Path] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for node, words in zip(cluster.nodes, commands, strict=False):
            self.logs.append(Path(f"{beside}.{node.name}.log"))
            self.processes.append(node.popen(*words, log=self.logs[-1], env=variables))
        self.process, self.began = self.processes[0], time.monotonic()

    def __enter__(self) -> Launched:
        with contextlib.ExitStack() as stack:
            stack.push(self)
            if self.hold:
                # the first rank alone saves
                self.reached(*([0] if self.phase == "save" else []))
            stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.cluster.nodes:
            node.kill_all()
        for process in self.processes:
            process.wait()

    def reached(self, *ranks: int) -> None:
        """Return once ranks wait, all by default."""
        with self._telling():
            self.hold.reached(*ranks, alive=lambda: self.process.poll() is None)
        self.began = time.monotonic()

    def trained(self, steps: int) -> None:
        """Return once so many steps are made."""
        metrics = self.out / "metrics.jsonl"
        self.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= steps)

    def until(self, condition: Callable[[], object]) -> None:
        """Return once something is so, before the run ends."""
        wait_for(lambda: condition() or self.process.poll() is not None)
        assert self.process.poll() is None, self.told()

    def told(self) -> str:
        """Return what the commands have written."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def preempted(self) -> dict[str, object]:
        """Return what a run that was asked to end has left."""
        path = self.out / "preempted.json"
        assert path.exists(), self.told()
        return dict(json.loads(path.read_text()))

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank."""
        return self._first(lambda process: is_rank(process) and process.environ()["RANK"] == str(number))

    def ranks(self, *nodes: int) -> list[int]:
        """Return the pids of the ranks of some hosts, all by default."""
        return [process.pid for process in self._suiting(is_rank, *nodes)]

    def agent(self, node: int) -> psutil.Process:
        """Return the agent of a host."""
        return self.module("launch.hosts.agent", node)

    def module(self, name: str, node: int) -> psutil.Process:
        """Return the process of a host that runs a module."""
        return self._first(lambda process: name in process.cmdline(), node)

    def _first(self, suits: Callable[[psutil.Process], bool], *nodes: int) -> psutil.Process:
        for process in self._suiting(suits, *nodes):
            return process
        raise AssertionError(f"there is no such process: {self.told()}")

    def _suiting(self, suits: Callable[[psutil.Process], bool], *nodes: int) -> Iterator[psutil.Process]:
        for node in nodes or range(len(self.cluster.nodes)):
            for process in self.cluster.nodes[node].processes():
                with contextlib.suppress(psutil.Error):
                    # ssh and the shell there have it on their command line too
                    if process.name().startswith("python") and suits(process):
                        yield process

    def codes(self) -> list[int]:
        """Wait for the end of all commands; return their exit codes."""
        return [process.wait(TIMEOUT_S) for process in self.processes]

    def end(self, limit_s: float = TIMEOUT_S) -> int:
        """Wait for the end of the first command; return its exit code."""
        with self._telling():
            wait_for(lambda: self.process.poll() is not None, limit_s)
        self.seconds = time.monotonic() - self.began
        return self.process.wait()

    def end_alone(self) -> int:
        """As `end`; nothing may be left on any host then."""
        code = self.end()
        assert self.cluster.strays() == [], self.told()
        return code

    def alone(self, limit_s: float = TIMEOUT_S) -> None:
        """Return once no process is left on any host."""
        with self._telling():
            wait_for(lambda: not self.cluster.strays(), limit_s)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            print(self.told(), *self.cluster.strays(), sep="\n")
            raise


def _beside(shop: Workshop, out: str) -> Path:
    """Return how the files of a run begin that are not in its folder, which may be on a disk that is full."""
    return shop.folder / out.replace("/", "-")


def is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank itself."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        script = any(word.endswith("launch/pretrain.py") for word in words)
        return script and "-u" in words and "RANK" in process.environ()
    return False


def launch_run(
    cluster: Cluster,
    shop: Workshop,
    out: str,
    *options: object,
    phase: str = "",
    slots: int = 1,
    hostfile: str = "",
    ssh: object = "ssh",
    env: Mapping[str, str] | None = None,
) -> Launched:
    """Start a run by the script of the docs, which is ``matloom launch run``, on the first host.

    Parameters
    ----------
    *options
        Of the command.
    phase, slots, env
        As in `Launched`.
    hostfile : str
        Its text; all hosts by default.
    ssh : Path or str
        What reaches the hosts.
    """
    hosts = Path(f"{_beside(shop, out)}.hosts")
    hosts.write_text(hostfile or "".join(f"{node.name} slots={slots}\n" for node in cluster.nodes))
    variables = {
        **shop.environment(), "RECIPE": str(shop.recipe), "OUT": str(shop.folder / out), "HOSTFILE": str(hosts),
        "SSH": f"{ssh} -F {cluster.folder}/ssh_config", **(env or {}),
    }  # fmt: skip
    handed_on = [f"--env={name}" for name in held.NAMES if phase]
    command = [EXAMPLES / "run.sh", *handed_on, *options]
    return Launched(cluster, shop, out, command, phase=phase, slots=slots, env=variables)


def by_pdsh(cluster: Cluster, shop: Workshop, out: str, *options: str) -> list[list[object]]:
    """Return the command of DeepSpeed's launcher, which reaches both hosts by pdsh."""
    hosts = cluster.hostfile(1, f"{out}.hosts")
    launcher = Path(sys.executable).with_name("deepspeed")
    words = [launcher, "--hostfile", hosts, "--master_port", free_port(), SCRIPT, *shop.arguments(out, *options)]
    return [words]


def attempts(shop: Workshop, out: str) -> list[int]:
    """Number of ranks of each attempt."""
    folders = sorted((shop.folder / out / "logs").iterdir())
    assert [folder.name for folder in folders] == [f"attempt-{i}" for i in range(1, len(folders) + 1)]
    return [len(list(folder.glob("rank-0000?.log"))) for folder in folders]


def without_dropout(shop: Workshop) -> Workshop:
    """Change the recipe so that the number of ranks, each of which draws its own, changes nothing else."""
    shop.recipe.write_text(re.sub("dropout = .*", "dropout = 0.0", shop.recipe.read_text()))
    return shop
