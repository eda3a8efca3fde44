"""Checkpoints of the real engine: what a run that resumes has, at the same and at another number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn
from tests.distributed.toy_engine import engine, parts, whole, zero

STEPS = 4
SETTINGS = {f"zero{stage}": zero(stage) for stage in range(4)}
WRITTEN = {1: ["zero1", "zero3"], 2: list(SETTINGS)}
# folder of a checkpoint, settings of the run that reads it, whether that one has gone on
Job = tuple[str, str, bool]
# ranks and stage that wrote it; stage and ranks that read it, and whether they have gone on
Resumed = tuple[int, str, str, int, bool]
SAME: list[Resumed] = [(2, name, name, 2, lively) for name in SETTINGS for lively in (False, True)]
ANOTHER: list[Resumed] = [
    (1, "zero1", "zero1", 2, False), (1, "zero3", "zero3", 2, False), (2, "zero0", "zero0", 1, False),
    (2, "zero2", "zero2", 1, False), (2, "zero3", "zero3", 1, False), (2, "zero2", "zero1", 1, False),
]  # fmt: skip


def states(run: Any) -> dict[str, np.ndarray]:
    """Parameters and the optimizer's moments, whole, on every rank."""
    found = {f"{name}/weight": value for name, value in whole(run).items()}
    for name, parameter in run.module.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            found[f"{name}/{moment}"] = moments(run, parameter, moment).detach().numpy().copy()
    return found


def moments(run: Any, parameter: Any, moment: str) -> Any:
    import torch
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_optimizer_state

    if run.stage == 0:
        return run.optimizer.state[parameter][moment]
    if run.stage == 3:
        return safe_get_full_optimizer_state(parameter, moment)
    # DeepSpeed's accessor knows the first of several groups only
    buffer, mapping = torch.zeros(parameter.numel()), parameter._hp_mapping
    if mapping is not None:
        zero, here, there = run.engine.optimizer, mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = zero.optimizer.state[zero.single_partition_of_fp32_groups[mapping.param_group_index]][moment]
        buffer.narrow(0, there.start, there.numel).copy_(flat.narrow(0, here.start, here.numel))
    dist.all_reduce(buffer)
    return buffer


def first_half(folder: str, names: list[str]) -> dict[str, Any]:
    """Train to the end and save in the middle; the state in the middle, and what came after it."""
    from pretrain.checkpoint import Checkpoints

    results = {}
    for name in names:
        run = engine(SETTINGS[name], steps=STEPS)
        batches = parts(STEPS)
        for step in range(2):
            run.compute(batches[step], step)
            run.apply()
        weights = run.weights()
        extra = {"twice": 2 * weights[next(iter(weights))]} if weights else None
        Checkpoints(Path(folder) / name, keep=2).save(run, 2, {}, {}, extra=extra)
        middle = states(run)
        results[name] = {"middle": middle, "logs": trained(run, batches), "end": states(run)}
    return results


def trained(run: Any, batches: list[Any]) -> list[dict[str, float]]:
    logs = []
    for step in range(2, STEPS):
        logs.append(run.compute(batches[step], step))
        run.apply()
    return logs


def second_half(jobs: list[Job]) -> dict[Job, Any]:
    """Resume in a new engine, or in one that has gone on (a roll-back)."""
    from pretrain.checkpoint import ENGINE, Checkpoints

    results = {}
    for job in jobs:
        folder, settings, lively = job
        found = Checkpoints(Path(folder), keep=2).newest()
        run = engine(SETTINGS[settings], steps=STEPS)
        batches = parts(STEPS)
        if lively:
            trained(run, batches)
            run.compute(batches[0], 0)
        run.load(found / ENGINE)
        results[job] = {
            "middle": states(run), "logs": trained(run, batches), "end": states(run),
            "read": Checkpoints.read(found)[0],
            "extra": {name: value.numpy() for name, value in Checkpoints.extra(found).items()},
            "left": sorted(path.name for path in Path(folder).iterdir()),
            "decay": [group["weight_decay"] for group in run.optimizer.param_groups],
        }  # fmt: skip
    return results


Runs = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def written(folder: Path) -> Runs:
    """By the number of ranks that wrote them."""
    return {world: spawn(first_half, world, str(folder / str(world)), names) for world, names in WRITTEN.items()}


@pytest.fixture(scope="module")
def read(folder: Path, written: Runs) -> dict[Resumed, list[Any]]:
    results = {}
    for world in (1, 2):
        jobs = {case: job(folder, case) for case in [*SAME, *ANOTHER] if case[3] == world}
        ranks = spawn(second_half, world, list(jobs.values()))
        results |= {case: [rank[one] for rank in ranks] for case, one in jobs.items()}
    return results


def job(folder: Path, case: Resumed) -> Job:
    old, stage, other, _, lively = case
    return str(folder / str(old) / stage), other, lively


@pytest.mark.parametrize("case", SAME, ids=str)
def test_the_same_ranks_go_on_bit_for_bit(case: Resumed, written: Runs, read: dict[Resumed, list[Any]]) -> None:
    for before, after in zip(written[case[0]], read[case], strict=True):
        for when in ("middle", "end"):
            assert before[case[1]][when].keys() == after[when].keys()
            for key, value in before[case[1]][when].items():
                np.testing.assert_array_equal(after[when][key], value, err_msg=f"{when} {key}")
        assert after["logs"] == before[case[1]]["logs"]


@pytest.mark.parametrize("case", ANOTHER, ids=str)
def test_other_ranks_go_on_with_the_same_states(case: Resumed, written: Runs, read: dict[Resumed, list[Any]]) -> None:
    close(written[case[0]][0][case[1]], read[case])


def close(before: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    moved = before["end"]
    for after in ranks:
        for key, value in before["middle"].items():
            np.testing.assert_allclose(after["middle"][key], value, atol=1e-6, rtol=1e-6, err_msg=key)
            np.testing.assert_allclose(after["end"][key], moved[key], atol=1e-5, rtol=0, err_msg=key)
        for step, logs in enumerate(before["logs"]):
            assert after["logs"][step] == pytest.approx(logs, abs=1e-5)
        # no copy in another format is left, and matrices alone decay, as before
        assert after["left"] == ["step-00000002"]
        assert after["decay"] == [0.05, 0.0]
    assert any(np.abs(before["end"][key] - before["middle"][key]).max() > 1e-3 for key in moved)


def test_what_is_saved_beside_the_engine_comes_back(written: Runs, read: dict[Resumed, list[Any]]) -> None:
    found = read[2, "zero3", "zero3", 2, False][1]
    assert found["read"] == {"step": 2, "world": 2, "score": None}
    assert list(found["extra"]) == ["twice"] and found["extra"]["twice"].size > 0


def refused(folder: str, stage: str) -> str:
    from pretrain.checkpoint import ENGINE, Checkpoints
    from shards.errors import CheckpointError

    try:
        engine(SETTINGS[stage], steps=STEPS).load(Checkpoints(Path(folder), keep=2).newest() / ENGINE)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_stage_that_cannot_be_converted_is_refused(folder: Path, written: Runs) -> None:
    message = spawn(refused, 1, str(folder / "2" / "zero3"), "zero1")[0]
    assert "ZeRO stage 3, this run has 1" in message and "zero_optimization.stage = 3" in message


def frozen(folder: str, load: bool) -> dict[str, Any]:
    """Save frozen weights that are not those of a new run; or load them into a new run."""
    from pretrain.checkpoint import ENGINE, Checkpoints

    found = {}
    for name in ("zero2", "zero3"):
        run = engine(SETTINGS[name], steps=STEPS, frozen=0.0 if load else 0.5)
        checkpoints = Checkpoints(Path(folder) / name, keep=2)
        if load:
            run.load(checkpoints.newest() / ENGINE)
        else:
            run.compute(parts(1)[0], 0)
            run.apply()
            checkpoints.save(run, 1, {}, {})
        found[name] = {key: value.numpy() for key, value in run.weights().items()}
    return found


def test_frozen_weights_and_buffers_come_back_at_another_number_of_ranks(tmp_path: Path) -> None:
    before = spawn(frozen, 2, str(tmp_path), False)[0]
    after = spawn(frozen, 1, str(tmp_path), True)[0]
    for name, weights in before.items():
        assert weights["encoders.c.centre"].max() == 0.5, "the buffers of a new run"
        for key, value in weights.items():
            np.testing.assert_array_equal(after[name][key], value, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4), (4, 1), (1, 4)])
def test_four_ranks(tmp_path: Path, old: int, new: int) -> None:
    before = spawn(first_half, old, str(tmp_path), list(SETTINGS))
    after = spawn(second_half, new, [(str(tmp_path / name), name, False) for name in SETTINGS])
    for name in SETTINGS:
        close(before[0][name], [rank[str(tmp_path / name), name, False] for rank in after])
