"""Requests to end: noticed in every phase, obeyed by all ranks at one step, saved once, resumed bit for bit."""

from __future__ import annotations

import functools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.signals import HANG_REPORT, REQUEST
from pretrain.watchdog import FOLDER as WATCHED
from tests.distributed.ranks import TIMEOUT_S, variables
from tests.distributed.runs import Hold, Ranks, Workshop

WORLD, SAVE, EVALUATE, EPOCHS = 2, 5, 2, 4
# the step (from 0) in which `step` waits
STEP = 7
PHASES = ["warm-up", "step", "save", "eval", "data"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("signals")
    shop = Workshop.make(folder, toy_folder, epochs=EPOCHS, evaluate=EVALUATE, save=SAVE)
    with variables(shop.environment()):
        yield shop


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> str:
    (code, told), *_ = shop.run(shop.arguments("whole"), world=WORLD)
    assert code == 0, told
    return "whole"


def held(phase: str, hold: Hold) -> None:
    """Patch this rank so that it waits in a phase, once; and count the checkpoints that are saved."""
    import pretrain.train
    from pretrain.checkpoint import Checkpoints
    from pretrain.engine import Engine
    from pretrain.model import MultimodalModel
    from shards.stream import BatchStream

    done: list[str] = []

    def once() -> None:
        if not done:
            done.append(phase)
            hold.here()

    def before(owner: object, name: str, here: object) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def patched(*args: object, **kwargs: object) -> object:
            if here(*args):  # type: ignore[operator]
                once()
            return original(*args, **kwargs)

        setattr(owner, name, patched)

    def counted(checkpoints: Checkpoints, engine: Engine, step: int, *rest: object) -> bool:
        with (hold.folder / f"saves-{engine.rank}").open("a") as file:
            file.write(f"{step}\n")
        return False

    steps = iter(range(10**6))
    before(Checkpoints, "save", counted)
    if phase == "warm-up":
        before(pretrain.train, "Guards", lambda *args: True)
    elif phase == "step":
        before(MultimodalModel, "forward", lambda *args: next(steps) == STEP)
    elif phase == "save":
        before(Engine, "save", lambda *args: True)
    elif phase == "eval":
        before(MultimodalModel, "encode", lambda model, batch: not model.training)
    else:
        # the second rank's data come no more from the third epoch on, which begins with step 7
        before(BatchStream, "_batch", lambda stream, rows, epoch: stream.rank == 1 and epoch == 2)


# the signal, the ranks that get it, the ranks that wait, the saves, the step of the newest checkpoint
CASES = {
    "warm-up": (signal.SIGTERM, [1], [0, 1], [0], 0),
    "step": (signal.SIGUSR1, [0, 1], [0, 1], [SAVE, STEP + 2], STEP + 2),
    "save": (signal.SIGINT, [0], [0, 1], [SAVE], SAVE),
    "eval": (signal.SIGHUP, [1], [0, 1], [SAVE, 6], 6),
    "data": (signal.SIGTERM, [0], [1], [SAVE, 6], 6),
}


def noticed(out: Path) -> None:
    """Return once a rank of a run has noticed that it is to end."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (out / REQUEST).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ended(shop: Workshop, whole: str) -> dict[str, tuple[list[int | None], str]]:
    """A run that is ended early in each phase; and then each of them resumed."""
    found = {}
    for phase, (number, targets, waiting, _, _) in CASES.items():
        hold = Hold(shop.folder / f"hold-{phase}", WORLD)
        with Ranks(shop, WORLD, shop.arguments(phase), functools.partial(held, phase, hold)) as ranks:
            hold.reached(*waiting)
            ranks.signal(number, *targets)
            noticed(shop.folder / phase)
            if phase == "save":
                # somebody who cannot wait
                ranks.signal(signal.SIGTERM, 0, 1)
            if phase != "data":
                hold.release()
            found[phase] = ranks.wait(60), ranks.told()
        shop.copy(phase, f"{phase}-resumed")
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_one_save_and_exit_75(shop: Workshop, ended: dict[str, tuple[list[int | None], str]], phase: str) -> None:
    codes, told = ended[phase]
    assert codes == [75, 75], told
    assert told.count("the same command with --resume") == 1
    _, _, _, saves, newest = CASES[phase]
    for rank in range(WORLD):
        lines = (shop.folder / f"hold-{phase}" / f"saves-{rank}").read_text().split()
        assert [int(line) for line in lines] == saves
    assert shop.checkpoints(phase)[-1] == newest
    note = json.loads((shop.folder / phase / "preempted.json").read_text())
    assert note["step"] == newest and note["checkpoint"].endswith(f"step-{newest:08d}")
    assert CASES[phase][0].name in note["reason"]


def test_what_was_ended_early_resumes_bit_for_bit(
    shop: Workshop, whole: str, ended: dict[str, tuple[list[int | None], str]]
) -> None:
    names = [f"{phase}-resumed" for phase in ended]
    options = ["--resume", "auto"]
    for name, (code, told) in zip(
        names, shop.run(*(shop.arguments(name, *options) for name in names), world=WORLD), strict=True
    ):
        assert code == 0, told
        assert shop.same(name, whole), name
        for left in ("preempted.json", WATCHED, HANG_REPORT):
            assert not (shop.folder / name / left).exists()
