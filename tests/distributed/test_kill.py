"""SIGKILL at random moments of training and of saving; what resumes equals a run without interruption, bit for bit."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.distributed.ranks import variables
from tests.distributed.runs import Ranks, Workshop

SAVE = 4
CALLS = "calls"


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path) -> Iterator[Workshop]:
    shop = Workshop.make(tmp_path, toy_folder, epochs=4, evaluate=2, save=SAVE)
    with variables(shop.environment()):
        yield shop


def counted(owner: str, method: str, at: int | None, rank: int = 0) -> None:
    """Patch this rank: count the calls that the first ``method`` makes, and die at call ``at``.

    Calls of Python and of C functions are counted alike, so a moment may lie within a step's forward pass, between
    the write of a file and its flush, before a rename, anywhere.
    """
    if int(os.environ["RANK"]) != rank:
        return
    import pretrain.checkpoint
    import pretrain.train

    cls = {"Trainer": pretrain.train.Trainer, "Checkpoints": pretrain.checkpoint.Checkpoints}[owner]
    original = getattr(cls, method)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def patched(self: object, *args: object, **kwargs: object) -> object:
        sys.setprofile(count)
        try:
            return original(self, *args, **kwargs)
        finally:
            sys.setprofile(None)
            Path(f"{CALLS}-{method}").write_text(str(calls))
            setattr(cls, method, original)

    setattr(cls, method, patched)


MOMENTS = {"train": ("Trainer", "_train"), "save": ("Checkpoints", "save")}


def reference(shop: Workshop, world: int) -> dict[str, int]:
    """Run twice without interruption; the number of calls of the training, and of its first save."""
    calls = {}
    for name, (owner, method) in MOMENTS.items():
        patch = functools.partial(counted, owner, method, None)
        ((code, told),) = shop.run(shop.arguments(f"whole-{name}"), world=world, patch=patch)
        assert code == 0, told
        calls[name] = int((shop.folder / f"{CALLS}-{method}").read_text())
    assert shop.same("whole-save", "whole-train")
    return calls


def kill_again_and_again(shop: Workshop, moments: list[str], *, world: int, seed: int) -> list[tuple[str, int, str]]:
    """Kill a rank in each moment, and resume; returns the moments, the calls until then, and the runs.

    A run that is over before its moment is followed by another one. In the end all of them are.
    """
    calls, rng, hit, runs = reference(shop, world), random.Random(seed), [], ["killed-0"]
    while len(hit) < len(moments):
        name = moments[len(hit)]
        at = rng.randrange(1, calls[name] if name == "save" else calls[name] // 2)
        rank = rng.randrange(world)
        job = shop.arguments(runs[-1], "--resume", "auto")
        with Ranks(shop, world, job, functools.partial(counted, *MOMENTS[name], at, rank)) as ranks:
            codes = ranks.wait()
        if codes == [0] * world:
            runs.append(f"killed-{len(runs)}")
            continue
        assert codes[rank] == -signal.SIGKILL and 0 not in codes, ranks.told()
        hit.append((name, at, runs[-1]))
    ((code, told),) = shop.run(shop.arguments(runs[-1], "--resume", "auto"), world=world)
    assert code == 0, told
    return hit


@pytest.mark.parametrize(
    ("moments", "world"),
    [
        pytest.param(["train", "save", "train"], 1, id="fast"),
        pytest.param(["train", "save"] * 5, 2, marks=pytest.mark.slow, id="slow"),
    ],
)
def test_a_run_that_is_killed_again_and_again_equals_one_that_was_not(
    shop: Workshop, moments: list[str], world: int
) -> None:
    hit = kill_again_and_again(shop, moments, world=world, seed=len(moments))
    print(hit)
    assert [name for name, _, _ in hit] == moments
    for out in {out for _, _, out in hit}:
        assert shop.same(out, "whole-train")
        assert not list((shop.folder / out / "checkpoints").glob(".*"))
