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


def second_half(folder: str, names: dict[str, str], lively: bool = False) -> dict[str, Any]:
    """Resume in a new engine, or in one that has gone on (a roll-back)."""
    from pretrain.checkpoint import ENGINE, Checkpoints

    results = {}
    for name, settings in names.items():
        found = Checkpoints(Path(folder) / name, keep=2).newest()
        run = engine(SETTINGS[settings], steps=STEPS)
        batches = parts(STEPS)
        if lively:
            trained(run, batches)
            run.compute(batches[0], 0)
        run.load(found / ENGINE)
        results[name] = {
            "middle": states(run), "logs": trained(run, batches), "end": states(run),
            "read": Checkpoints.read(found)[0], "extra": {n: v.numpy() for n, v in Checkpoints.extra(found).items()},
            "left": sorted(path.name for path in (Path(folder) / name).iterdir()),
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
    return {world: spawn(first_half, world, str(folder / str(world)), list(SETTINGS)) for world in (1, 2)}


@pytest.fixture(scope="module")
def read(folder: Path, written: Runs) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """By the number of ranks that wrote and that read them."""
    same = {name: name for name in SETTINGS}
    return {(old, new): spawn(second_half, new, str(folder / str(old)), same) for old, new in ((2, 2), (1, 2), (2, 1))}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_ranks_go_on_bit_for_bit(name: str, written: Runs, read: Any) -> None:
    for before, after in zip(written[2], read[2, 2], strict=True):
        same(before[name], after[name])


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for when in ("middle", "end"):
        assert before[when].keys() == after[when].keys()
        for key, value in before[when].items():
            np.testing.assert_array_equal(after[when][key], value, err_msg=f"{when} {key}")
    assert after["logs"] == before["logs"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_with_the_same_states(
    name: str, old: int, new: int, written: Runs, read: Any
) -> None:
    close(written[old][0][name], read[old, new], name)


def close(before: dict[str, Any], ranks: list[dict[str, Any]], name: str) -> None:
    moved = before["end"]
    for rank in ranks:
        after = rank[name]
        for key, value in before["middle"].items():
            np.testing.assert_allclose(after["middle"][key], value, atol=1e-6, rtol=1e-6, err_msg=key)
            np.testing.assert_allclose(after["end"][key], moved[key], atol=1e-5, rtol=0, err_msg=key)
        for step, logs in enumerate(before["logs"]):
            assert after["logs"][step] == pytest.approx(logs, abs=1e-5)
        # no copy in another format is left, and matrices alone decay, as before
        assert after["left"] == ["step-00000002"]
        assert after["decay"] == [0.05, 0.0]
    assert any(np.abs(before["end"][key] - before["middle"][key]).max() > 1e-3 for key in moved)


def test_what_is_saved_beside_the_engine_comes_back(written: Runs, read: Any) -> None:
    found = read[2, 2][1]["zero3"]
    assert found["read"] == {"step": 2, "world": 2, "score": None}
    first = next(name for name in written[2][0]["zero3"]["middle"] if name.endswith("/weight"))
    assert list(found["extra"]) == ["twice"]
    assert found["extra"]["twice"].shape == written[2][0]["zero3"]["middle"][first].shape


def test_an_engine_that_has_gone_on_goes_back(folder: Path, written: Runs) -> None:
    for before, after in zip(
        written[2], spawn(second_half, 2, str(folder / "2"), {n: n for n in SETTINGS}, True), strict=True
    ):
        for name in SETTINGS:
            same(before[name], after[name])
