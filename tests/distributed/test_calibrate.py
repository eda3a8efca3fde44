"""Calibration: real steps in a child process that leaves nothing behind, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.calibrate import calibrate, run_children
from launch.estimates.work import Work
from pretrain.config import Recipe, load_recipe
from pretrain.memory import buffers_of
from shards.errors import DataError, MatloomError
from tests.distributed.ranks import TIMEOUT_S, apart
from tests.distributed.runs import Workshop

STEPS = 3
LOADED = 200 << 20


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    (tmp_path / "tmp").mkdir()
    for name, value in {"TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    return Workshop.make(tmp_path, toy_folder, epochs=4, evaluate=2, save=5)


def measured(recipe: Recipe, settings: dict[str, Any], world: int, folder: str) -> dict[str, Any]:
    from launch.estimates.measure import measure

    tables = recipe.model_dump(mode="json")
    return measure(tables, settings, world, STEPS, Path(folder), time.perf_counter())


CASES: dict[str, tuple[list[str], dict[str, Any], int]] = {
    "plain": ([], {}, 1),
    "a rank's share, in micro-batches": (["optim.micro_batch=2", "optim.accumulate=2"], {}, 2),
    "ZeRO 3 with an average": (["optim.ema=0.9"], {"zero_optimization": {"stage": 3}}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_those_of_a_rank(name: str, shop: Workshop) -> None:
    overrides, settings, world = CASES[name]
    recipe = load_recipe(shop.recipe, overrides)
    work = Work(**apart(measured, recipe, settings, world, str(shop.folder)))
    spent = work.spent
    assert work.rows == 12 // world and work.steps == STEPS
    assert work.pieces == -(-work.rows // (recipe.optim.micro_batch or work.rows))
    assert work.accumulate == recipe.optim.accumulate and work.average == (recipe.optim.ema is not None)
    assert work.stage == settings.get("zero_optimization", {"stage": 1})["stage"] and work.bucket == 0
    assert min(spent.forward, spent.backward, spent.loss, spent.optimizer, work.operations) > 0
    assert 0 < spent.forward + spent.backward < spent.total
    assert (work.total_steps, work.evaluations, work.embeddings, work.dim) == (12, 2, 3, 8)
    assert min(work.save, work.start, work.evaluate, work.sample, work.weights) > 0
    assert work.buffers == buffers_of(settings) and work.weights >= 4 * work.trained


def test_a_child_leaves_nothing_behind(shop: Workshop) -> None:
    before = sorted(path.name for path in shop.folder.iterdir())
    work = calibrate(load_recipe(shop.recipe), {}, world=1, steps=1)
    assert work.steps == 1 and work.spent.total > 0
    assert not list((shop.folder / "tmp").iterdir())
    assert sorted(path.name for path in shop.folder.iterdir()) == before, "no record, no run, no checkpoint"


def test_what_the_run_would_refuse_is_refused_alike(shop: Workshop) -> None:
    recipe = load_recipe(shop.recipe, ["data.path=/nowhere"])
    with pytest.raises(DataError) as refused:
        calibrate(recipe, {}, world=1, steps=1)
    assert "/nowhere" in str(refused.value)


def test_a_child_that_fails_ends_those_that_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('no such adapter')\ntime.sleep(600)"
    )
    began = time.monotonic()
    ranks = [{**os.environ, "RANK": str(rank)} for rank in range(2)]
    with pytest.raises(MatloomError, match="exit code 1") as failed:
        run_children([sys.executable, str(tmp_path / "child.py")], ranks, tmp_path)
    assert "no such adapter" in str(failed.value) and time.monotonic() - began < TIMEOUT_S


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_it_no_process_and_no_folder_stay(ended_by: signal.Signals, shop: Workshop) -> None:
    code = (
        "import sys; from pathlib import Path; from launch.calibrate import calibrate; "
        "from pretrain.config import load_recipe; "
        "calibrate(load_recipe(Path(sys.argv[1])), {}, world=1, steps=10**9)"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(shop.recipe)], env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE
    )
    temporary, deadline = shop.folder / "tmp", time.monotonic() + TIMEOUT_S
    process = psutil.Process(parent.pid)
    # the child has loaded torch, which takes seconds
    while not (process.children() and process.children()[0].memory_info().rss > LOADED):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    child = process.children()[0]
    parent.send_signal(ended_by)
    assert parent.wait(TIMEOUT_S) == -ended_by
    gone, alive = psutil.wait_procs([child], TIMEOUT_S)
    assert gone and not alive
    while list(temporary.glob("matloom*")):
        assert time.monotonic() < deadline, "the folder stays"
        time.sleep(0.05)
