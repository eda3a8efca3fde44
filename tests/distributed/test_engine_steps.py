"""What happens to a gradient before the optimizer's step: thrown away, not finite, too large for fp16, accumulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn
from tests.distributed.toy_engine import engine, parts, whole, zero

STEPS = 4
STAGES = {f"zero{stage}": zero(stage) for stage in range(4)}
WINDOWS = [(thrown, computed) for thrown in (1, 2) for computed in (False, True)]
OFFLOADED = {
    f"offload{stage}": zero(stage, offload_optimizer={"device": "cpu", "pin_memory": False}) for stage in (1, 2, 3)
}


def results(names: list[str], alone: bool) -> dict[str, Any]:
    return {
        name: {
            "never": without_second(STAGES[name], never),
            "discarded": without_second(STAGES[name], discarded),
            "kept": without_second(STAGES[name], kept) if name == "zero0" else None,
            **({} if alone and name != "zero0" else more(STAGES[name])),
        }
        for name in names
    }


def more(settings: dict[str, Any]) -> dict[str, Any]:
    windows = {how: window(settings, *how) for how in WINDOWS}
    return {
        "poisoned": poisoned(settings),
        "windows": windows,
        "accumulated": accumulated(settings),
        "half": half(settings),
    }


def without_second(settings: dict[str, Any], second: Any) -> dict[str, np.ndarray]:
    """The parameters after the batches 0, 2 and 3, and what ``second`` makes of batch 1."""
    run = engine(settings, steps=STEPS, grad_clip=0.1)
    for step, part in enumerate(parts(STEPS)):
        if step == 1:
            second(run, part)
            continue
        run.compute(part, step)
        run.apply()
    return whole(run)


def never(run: Any, part: Any) -> None:
    pass


def discarded(run: Any, part: Any) -> None:
    run.compute(part, 1)
    run.discard()
    assert run.pending == 0


def window(settings: dict[str, Any], thrown: int, computed: bool) -> dict[str, np.ndarray]:
    """Two batches a step; the gradient is thrown away after ``thrown`` of the first two, or they are never computed."""
    run = engine(settings, steps=STEPS, accumulate=2, grad_clip=0.1)
    for step, part in enumerate(parts(STEPS)):
        if step < thrown and not computed:
            continue
        run.compute(part, step)
        if step + 1 == thrown:
            run.discard()
        else:
            run.apply()
    return whole(run)


def kept(run: Any, part: Any) -> None:
    """The wrong variant: the step is made after all."""
    run.compute(part, 1)
    run.apply()


def poisoned(settings: dict[str, Any]) -> dict[str, Any]:
    """The gradient of one weight becomes NaN on the last rank, while the loss of all is finite."""
    import torch

    run = engine(settings, steps=STEPS)
    batches, found = parts(STEPS), []
    weight = next(run.module.projections["b"].parameters())
    handles = [weight.register_hook(lambda g: g * torch.nan)] if run.rank == run.world - 1 else []
    found.append(run.compute(batches[0], 0))
    run.discard()
    for handle in handles:
        handle.remove()
    found.append(run.compute(batches[1], 1))
    run.apply()
    return {"values": found, "finite": all(np.isfinite(value).all() for value in whole(run).values())}


def accumulated(settings: dict[str, Any]) -> dict[str, Any]:
    """Two batches a step of the optimizer, and the mean of their gradients."""
    run = engine(settings, steps=STEPS, accumulate=2)
    pending, norms = [], []
    for step, part in enumerate(parts(STEPS)):
        norms.append(run.compute(part, step).get("grad_norm"))
        run.apply()
        pending.append(run.pending)
    return {"pending": pending, "norms": norms, "parameters": whole(run)}


def half(settings: dict[str, Any]) -> dict[str, Any]:
    """In fp16, from a scale at which the first gradients overflow."""
    run = engine(settings, steps=STEPS, precision="fp16")
    run.scale.value = 2.0**40
    before, logs = whole(run), []
    batches = parts(STEPS)
    for step in range(40):
        logs.append(run.compute(batches[step % STEPS], step % STEPS))
        run.apply()
        if not logs[-1]["overflow"]:
            break
        after = whole(run)
        assert all(np.array_equal(after[name], before[name]) for name in before), "a step was made after an overflow"
    return {"logs": logs, "norms": run.norms.parts, "parameters": whole(run)}


Runs = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    return {world: spawn(results, world, list(STAGES), world == 1) for world in (1, 2)}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_discarded_gradient_leaves_no_trace(world: int, stage: str, runs: Runs) -> None:
    for rank in runs[world]:
        expected = rank[stage]["never"]
        for name, value in rank[stage]["discarded"].items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
        assert any(np.abs(rank["zero0"]["kept"][name] - value).max() > 1e-3 for name, value in expected.items())


@pytest.mark.parametrize("thrown", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_discarded_window_leaves_no_trace(thrown: int, stage: str, runs: Runs) -> None:
    for rank in runs[2]:
        windows = rank[stage]["windows"]
        for name, value in windows[thrown, False].items():
            np.testing.assert_array_equal(windows[thrown, True][name], value, err_msg=name)
        assert any(np.abs(windows[1, False][name] - value).max() > 1e-3 for name, value in windows[2, False].items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_nan_on_one_rank_is_seen_by_all_before_the_step(stage: str, runs: Runs) -> None:
    for rank in runs[2]:
        bad, good = rank[stage]["poisoned"]["values"]
        assert np.isfinite(bad["loss"]) and bad["finite"] == 0.0 and "grad_norm" not in bad
        assert good["finite"] == 1.0 and good["grad_norm"] > 0
        assert rank[stage]["poisoned"]["finite"]


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_batches_make_one_step(stage: str, runs: Runs) -> None:
    single = runs[1][0]["zero0"]["accumulated"]
    assert single["pending"] == [1, 0, 1, 0] and [n is None for n in single["norms"]] == [True, False, True, False]
    for rank in runs[2]:
        mine = rank[stage]["accumulated"]
        assert mine["pending"] == single["pending"]
        assert mine["norms"][1::2] == pytest.approx(single["norms"][1::2], abs=1e-5)
        for name, value in single["parameters"].items():
            np.testing.assert_allclose(mine["parameters"][name], value, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_lowers_its_scale_until_the_gradient_fits(stage: str, runs: Runs) -> None:
    for rank in [*runs[1][:1], *runs[2]] if stage == "zero0" else runs[2]:
        logs = rank[stage]["half"]["logs"]
        assert 1 < len(logs) < 40
        assert all(entry["finite"] == 1.0 for entry in logs)
        assert [entry["loss_scale"] for entry in logs] == [2.0 ** (40 - step) for step in range(len(logs))]
        # the norm is that of the gradient itself, not of the scaled one
        assert 0.01 < logs[-1]["grad_norm"] < 10


def offloaded(names: list[str]) -> dict[str, Any]:
    return {
        name: {
            "never": without_second(OFFLOADED[name], never),
            "discarded": without_second(OFFLOADED[name], discarded),
            "poisoned": poisoned(OFFLOADED[name]),
        }
        for name in names
    }


@pytest.mark.parametrize("name", OFFLOADED)
def test_an_offloaded_optimizer_does_the_same(name: str, offloads: list[dict[str, Any]], runs: Runs) -> None:
    expected = runs[2][0]["zero0"]["never"]
    for rank in offloads:
        for parameter, value in rank[name]["discarded"].items():
            np.testing.assert_array_equal(value, rank[name]["never"][parameter])
            np.testing.assert_allclose(value, expected[parameter], atol=1e-5, rtol=0)
        assert [values["finite"] for values in rank[name]["poisoned"]["values"]] == [0.0, 1.0]


@pytest.fixture(scope="module")
def offloads() -> list[dict[str, Any]]:
    return spawn(offloaded, 2, list(OFFLOADED))
