"""Runs over two hosts that are held in a known step while a test does something bad to them, and how they must end."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.hosts.agent import ORPHANS_S
from pretrain.ports import free_port
from shards.errors import CheckpointError
from shards.sealed import verify
from tests.distributed import held
from tests.distributed.runs import SCRIPT, Hold, Workshop
from tests.launch.namespaces import Cluster, wait_for

HOST_TIMEOUT_S, GRACE_S, HANG_S = 10, 5, 10
# of a host that is lost: heard no more, its ranks asked and then made to end; the others meanwhile. What a busy machine
# adds to it is no promise of ours
LOST_S = HOST_TIMEOUT_S + GRACE_S + ORPHANS_S
SLACK_S = 60
# what a host may take for an answer to a check, and two hosts to add up tensors
CHECK_S = 60 + 120
# from its start to its end, on a busy machine
WHOLE_S = 300
TABLE = "MATLOOM_FAULTS"


class Launched:
    """A run of two hosts that a user of the first one has started; a context that leaves no process behind.

    Parameters
    ----------
    cluster, shop
        Where, and what; the workshop is one of `held.held_shop`.
    out : str
        Name of the run's folder.
    *options
        Of ``matloom launch run``.
    phase : str
        In which its ranks wait, ``-`` for none.
    native : bool
        By DeepSpeed's own command, pdsh and ssh.
    slots : int
        Ranks a host.
    env : mapping
        Further variables.
    """

    def __init__(
        self,
        cluster: Cluster,
        shop: Workshop,
        out: str,
        *options: object,
        phase: str = "step",
        native: bool = False,
        slots: int = 1,
        check: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        self.cluster, self.shop, self.out = cluster, shop, shop.folder / out
        plain = out.replace("/", "-")
        number = sum(path.name.startswith(f"hold-{plain}.") for path in shop.folder.iterdir())
        self.hold = Hold(shop.folder / f"hold-{plain}.{number}", slots * len(cluster.nodes))
        self.log = shop.folder / f"{plain}.{number}.log"
        hosts = cluster.hostfile(slots, f"hosts-{slots}")
        variables = {**held.environment(shop, out, self.hold, phase), **(env or {})}
        if native:
            words = ["deepspeed", "--hostfile", hosts, "--master_port", free_port(), SCRIPT, *shop.arguments(out)]
            own = ("HELD_", "OMP_", "DS_ACC", "TORCH_")
            file = shop.folder / f"{plain}.deepspeed_env"
            file.write_text("".join(f"{name}={value}\n" for name, value in variables.items() if name.startswith(own)))
            variables["DS_ENV_FILE"] = str(file)
        else:
            words = [
                sys.executable, "-m", "launch.cli", "launch", "run", shop.recipe, "--out", self.out,
                "--hostfile", hosts, "--ssh", f"ssh -F {cluster.folder}/ssh_config",
                "--host-timeout", HOST_TIMEOUT_S, "--grace", GRACE_S, *([] if check else ["--no-check"]),
                *(word for name in held.NAMES for word in ("--env", name)),
            ]  # fmt: skip
        self.process = cluster.nodes[0].popen(*words, *options, log=self.log, env=variables)
        self.began = time.monotonic()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.cluster.nodes:
            node.kill_all()
        self.process.wait()

    def reached(self, *ranks: int) -> None:
        """Return once ranks wait, all by default."""
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: print(self.told()))
            self.hold.reached(*ranks, alive=lambda: self.process.poll() is None)
            stack.pop_all()
        self.began = time.monotonic()

    def told(self) -> str:
        return self.log.read_text()

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank."""
        return self._find(lambda process: is_rank(process) and process.environ()["RANK"] == str(number))

    def ranks(self, *nodes: int) -> list[int]:
        """Return the pids of the ranks of some hosts, all by default."""
        chosen = [self.cluster.nodes[number] for number in nodes or range(len(self.cluster.nodes))]
        return [process.pid for node in chosen for process in node.processes() if is_rank(process)]

    def agent(self, node: int) -> psutil.Process:
        """Return the agent of a host."""
        here = {process.pid for process in self.cluster.nodes[node].processes()}
        return self._find(lambda process: process.pid in here and "launch.hosts.agent" in process.cmdline())

    def _find(self, suits: Any) -> psutil.Process:
        for node in self.cluster.nodes:
            for process in node.processes():
                with contextlib.suppress(psutil.Error):
                    # ssh and the shell there have it on their command line too
                    if process.name().startswith("python") and suits(process):
                        return process
        raise AssertionError(f"there is no such process: {self.told()}")

    def end(self, promised_s: float = LOST_S) -> int:
        """Wait for the end within what is promised; return the exit code."""
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: print(self.told(), *self.cluster.strays(), sep="\n"))
            wait_for(lambda: self.process.poll() is not None, promised_s + SLACK_S)
            stack.pop_all()
        self.seconds = time.monotonic() - self.began
        return self.process.wait()

    def alone(self, promised_s: float = LOST_S) -> None:
        """Return once no process is left on any host."""
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: print(self.told(), *self.cluster.strays(), sep="\n"))
            wait_for(lambda: self.cluster.strays() == [], promised_s + SLACK_S)
            stack.pop_all()


def is_rank(process: psutil.Process) -> bool:
    """Whether a process is a rank itself."""
    with contextlib.suppress(psutil.Error):
        return str(SCRIPT) in process.cmdline() and "-u" in process.cmdline() and "RANK" in process.environ()
    return False


def whole_checkpoints(shop: Workshop, out: str) -> list[int]:
    """Return the steps of the published checkpoints, each of which must be whole."""
    for step in shop.checkpoints(out):
        verify(shop.folder / out / "checkpoints" / f"step-{step:08d}", error=CheckpointError)
    return shop.checkpoints(out)


def attempts(shop: Workshop, out: str) -> list[int]:
    """Number of ranks of each attempt."""
    folders = sorted((shop.folder / out / "logs").iterdir())
    return [len(list(folder.glob("rank-0000?.log"))) for folder in folders]


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


def finished(shop: Workshop, out: str, *options: str) -> None:
    """Run to the end, or go on to it, in two ranks that this process forks."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in held.environment(shop, out).items():
            patch.setenv(variable, value)
        held.finished(shop, shop.arguments(out, *options))


def reference(shop: Workshop) -> str:
    """Make a run that nobody disturbs, and return its name."""
    finished(shop, "whole")
    return "whole"


def resumed(cluster: Cluster, shop: Workshop, out: str, reference: str, *, relaunch: bool) -> None:
    """Let a run go on with ``--resume auto``; in the end it must have learned what the reference has.

    By the same command, or, which is quicker, in forked ranks.
    """
    if relaunch:
        with Launched(cluster, shop, out, "--resume", "auto", phase="-") as run:
            assert run.end(WHOLE_S) == 0, run.told()
            run.alone()
    else:
        finished(shop, out, "--resume", "auto")
    assert shop.same(out, reference)
    assert whole_checkpoints(shop, out) and not list((shop.folder / out / "checkpoints").glob(".step-*"))
