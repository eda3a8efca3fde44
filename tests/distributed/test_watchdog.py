"""A rank that hangs: the run ends, and the rank is named with its step and its stacks."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

from pretrain.signals import EXIT_HANG, HANG_REPORT
from pretrain.watchdog import Position, culprit
from tests.distributed.runs import Hold, Ranks, Workshop

WORLD, STEP, TIMEOUT_S = 2, 4, 3.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    folder = tmp_path_factory.mktemp("watchdog")
    return Workshop.make(folder, toy_folder, epochs=2, evaluate=2, save=100)


def hanging(hold: Hold, hung: int) -> None:
    """Patch this rank so that ``hung`` waits for ever in an encoder, and the watchdog has little patience from then."""
    from pretrain.encoders.vector import VectorEncoder
    from pretrain.watchdog import Watchdog

    forward, beat = VectorEncoder.forward, Watchdog.beat
    here = []

    def impatient(self: Watchdog, phase: str, step: int) -> None:
        beat(self, phase, step)
        if phase == "forward and backward" and step == STEP:
            here.append(step)
            self.timeout_s, self.interval_s = TIMEOUT_S, TIMEOUT_S / 10

    def stuck(self: VectorEncoder, inputs: object) -> object:
        if here and int(os.environ["RANK"]) == hung:
            hold.here()
        return forward(self, inputs)  # type: ignore[arg-type]

    Watchdog.beat, VectorEncoder.forward = impatient, stuck  # type: ignore[method-assign, assignment]


@pytest.fixture(scope="module", params=["waits", "stopped"])
def hung(shop: Workshop, request: pytest.FixtureRequest) -> tuple[str, list[int | None], str]:
    hold = Hold(shop.folder / f"hold-{request.param}", WORLD)
    job = shop.arguments(request.param, "--set", "guards.hang_timeout_s=40")
    with Ranks(shop, WORLD, job, functools.partial(hanging, hold, 1)) as ranks:
        hold.reached(1)
        if request.param == "stopped":
            ranks.signal(signal.SIGSTOP, 1)
        return request.param, ranks.wait(), ranks.told()


def test_the_run_ends_and_names_the_rank_that_hangs(shop: Workshop, hung: tuple[str, list[int | None], str]) -> None:
    name, codes, told = hung
    # one that was stopped is made to write its stacks, and may find the time to end by itself
    assert codes[0] == EXIT_HANG and codes[1] in (EXIT_HANG, -signal.SIGKILL), told
    report = (shop.folder / name / HANG_REPORT).read_text()
    assert report in told
    phase = "forward and backward, here at distributed/runs.py" if name == "waits" else "does not answer: stopped"
    assert report.startswith(f"rank 1 of 2 hangs in step {STEP} ({phase}"), report
    assert "rank 0: step 4, forward and backward, " in report


def test_the_report_has_the_stacks_of_all_threads(shop: Workshop, hung: tuple[str, list[int | None], str]) -> None:
    report = (shop.folder / hung[0] / HANG_REPORT).read_text()
    guilty, innocent = report.split("stacks of rank 1:")[1].split("stacks of rank 0:")
    assert "in stuck" in guilty and "in here" in guilty and "in _watch" in guilty
    assert "in stuck" not in innocent and "gather.py" in innocent


def test_a_rank_that_waits_for_others_is_innocent() -> None:
    def at(rank: int, step: int, *, waiting: bool, idle_s: float = 5.0) -> Position:
        return Position(rank, 100 + rank, "here", step, "forward and backward", "", waiting, idle_s)

    assert culprit([at(0, 7, waiting=True), at(1, 7, waiting=False), at(2, 7, waiting=True)], []) == 1
    assert culprit([at(0, 8, waiting=True), at(1, 7, waiting=True), at(2, 8, waiting=True)], []) == 1
    assert culprit([at(0, 7, waiting=True, idle_s=4), at(1, 7, waiting=True, idle_s=9)], []) == 1
    # it does not even answer
    assert culprit([at(0, 7, waiting=False), at(1, 7, waiting=True)], [1]) == 1
