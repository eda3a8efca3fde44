"""Real process trees: requests to end, and deaths, of the controller, its agent and the ranks; of DeepSpeed's launcher.

An encoder that a test brings along waits in a given phase until it is let go, so nothing depends on luck. The exit code
is asserted of what a user has started: ``matloom pretrain``, or DeepSpeed's own command, which loses some of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pretrain.ports import free_port
from pretrain.signals import REQUEST
from tests.distributed.held import EXPECTED, SAVE, WORLD, environment, finished, held_shop
from tests.distributed.ranks import TIMEOUT_S, variables
from tests.distributed.runs import SCRIPT, Hold, Workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    shop = held_shop(tmp_path_factory.mktemp("tree"), toy_folder)
    with variables(environment(shop, "-")):
        yield shop


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> str:
    finished(shop, shop.arguments("whole"))
    return "whole"


class Tree:
    """A run that a user has started, held in a phase; a context that leaves no process behind."""

    def __init__(self, shop: Workshop, out: str, phase: str, *, supervised: bool) -> None:
        self.shop, self.out = shop, shop.folder / out
        self.hold = Hold(shop.folder / f"hold-{out}", WORLD)
        self.log = shop.folder / f"{out}.log"
        if supervised:
            command = [sys.executable, "-m", "launch.cli", "pretrain", str(shop.recipe), "--out", str(self.out)]
            command += ["--accelerators", str(WORLD)]
        else:
            launcher = Path(sys.executable).with_name("deepspeed")
            command = [str(launcher), "--num_accelerators", str(WORLD), "--master_port", str(free_port()), str(SCRIPT)]
            command += shop.arguments(out)
        env = {**os.environ, **environment(shop, out, self.hold, phase)}
        self.process = subprocess.Popen(
            command, cwd=shop.folder, env=env, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        waiting = [0] if phase == "save" else range(WORLD)
        with contextlib.ExitStack() as stack:
            stack.callback(self.__exit__)
            self.hold.reached(*waiting, alive=lambda: self.process.poll() is None)
            stack.pop_all()
        self.waiting = list(waiting)
        self.members = {"top": psutil.Process(self.process.pid)}
        for process in self.members["top"].children(recursive=True):
            # what a rank runs for a moment may be gone by now
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if str(SCRIPT) in words and (rank := process.environ().get("RANK")):
                    self.members[f"rank{rank}"] = process
                elif "deepspeed.launcher.launch" in words:
                    self.members["launch"] = process
                elif "launch.hosts.agent" in words:
                    self.members["agent"] = process

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*getattr(self, "members", {}).values(), self.process]:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        self.process.wait()

    def signal(self, target: str, number: signal.Signals) -> None:
        """Signal one process, or all, as a scheduler does."""
        for process in self.members.values() if target == "all" else [self.members[target]]:
            process.send_signal(number)

    def end(self) -> tuple[int, list[str], float]:
        """Wait for what the user has started, and 30 s more for all the rest; exit code, who is left, and seconds."""
        began = time.monotonic()
        code = self.process.wait(TIMEOUT_S)
        others = [process for name, process in self.members.items() if name != "top"]
        _, left = psutil.wait_procs(others, timeout=30)
        names = [name for name, process in self.members.items() if process in left]
        return code, names, time.monotonic() - began

    def noticed(self) -> None:
        """Return once a rank knows that it is to end."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.out / REQUEST).exists():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


def newest(shop: Workshop, out: str) -> int:
    return max(shop.checkpoints(out), default=-1)


TARGETS, NUMBERS = ("top", "agent", "rank1", "all"), (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# every target gets every signal, and so does every phase
MATRIX = [
    pytest.param(target, phase, NUMBERS[(i + j) % 4], id=f"{target}-{phase}", marks=pytest.mark.slow)
    for i, target in enumerate(TARGETS)
    for j, phase in enumerate(EXPECTED)
]
FAST = [pytest.param("top", "step", signal.SIGTERM, id="fast"), pytest.param("all", "save", signal.SIGINT, id="quick")]


@pytest.mark.parametrize(("target", "phase", "number"), [*FAST, *MATRIX])
def test_a_signal_to_any_process_ends_in_one_save_and_75(
    shop: Workshop, whole: str, request: pytest.FixtureRequest, target: str, phase: str, number: signal.Signals
) -> None:
    out = request.node.callspec.id
    with Tree(shop, out, phase, supervised=True) as tree:
        tree.signal(target, number)
        tree.noticed()
        if target == "top":
            # one who is impatient does not lose the save
            tree.signal(target, signal.SIGINT)
        tree.hold.release(*tree.waiting)
        code, left, seconds = tree.end()
    told = tree.log.read_text()
    print(
        f"{number.name} to {target} in {phase}: code {code}, left {left}, newest {newest(shop, out)}, {seconds:.1f} s"
    )
    assert (code, left, newest(shop, out)) == (75, [], EXPECTED[phase]), told
    assert told.count("the same command with --resume") == 1
    finished(shop, shop.arguments(out, "--resume", "auto"))
    assert shop.same(out, whole)


# what DeepSpeed's own command gives: runner and launch.py lose the code where a signal ends them
NATIVE = [
    ("top", signal.SIGTERM, -signal.SIGTERM),
    ("top", signal.SIGKILL, -signal.SIGKILL),
    ("launch", signal.SIGTERM, 1),
    ("launch", signal.SIGKILL, 0),
    ("launch", signal.SIGUSR1, 0),
    ("rank1", signal.SIGTERM, 75),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "number", "code"), NATIVE)
def test_under_deepspeeds_own_command_all_is_saved_though_codes_are_lost(
    shop: Workshop, whole: str, request: pytest.FixtureRequest, target: str, number: signal.Signals, code: int
) -> None:
    out = request.node.callspec.id
    with Tree(shop, out, "step", supervised=False) as tree:
        tree.signal(target, number)
        tree.noticed()
        tree.hold.release()
        found, left, seconds = tree.end()
    print(
        f"deepspeed: {number.name} to {target}: code {found}, left {left}, newest {newest(shop, out)}, {seconds:.1f} s"
    )
    assert (found, left, newest(shop, out)) == (code, [], EXPECTED["step"]), tree.log.read_text()
    assert json.loads((shop.folder / out / "preempted.json").read_text())["step"] == EXPECTED["step"]
    finished(shop, shop.arguments(out, "--resume"))
    assert shop.same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "expected"),
    # whichever is heard first of the rank that is killed and the one that misses it
    [("rank1", 128 + signal.SIGKILL), ("agent", 75), ("top", -signal.SIGKILL)],
)
def test_a_killed_process_leaves_no_orphans(shop: Workshop, target: str, expected: int) -> None:
    out = f"killed-{target}"
    with Tree(shop, out, "step", supervised=True) as tree:
        tree.members[target].kill()
        if target != "rank1":
            tree.noticed()
        tree.hold.release(0, *([] if target == "rank1" else [1]))
        code, left, seconds = tree.end()
    print(f"SIGKILL to {target}: code {code}, left {left}, newest {newest(shop, out)}, {seconds:.1f} s")
    assert code == expected and not left, tree.log.read_text()
    assert newest(shop, out) == (SAVE if target == "rank1" else EXPECTED["step"])
