"""Two ranks train a model with fusions and two views as one rank does, at every ZeRO stage.

One step lacks a modality on one rank, another leaves a rank without any row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn

if TYPE_CHECKING:
    from shards.batch import Batch

ROWS = 10
# rows of the first of two ranks, step by step; in the second step it lacks b, in the third the other has none
FIRST = (4, 6, ROWS)
# case: fusion, ZeRO stage
CASES = {
    f"{kind}-zero{stage}": (kind, stage)
    for kind, stages in {
        "token_transformer": (0, 1, 3), "tree": (1,), "concat": (2,), "gated": (3,), "attention_bottleneck": (1,),
        "low_rank_tensor": (2,),
    }.items()
    for stage in stages
}  # fmt: skip


def parts(rank: int, world: int) -> list[Batch]:
    from tests.fused_models import batch, samples

    found = []
    for step, first in enumerate(FIRST):
        rows = samples(ROWS, seed=step)
        if step == 1:
            for row in rows[:first]:
                row.arrays.pop("b", None)
        bounds = (0, ROWS) if world == 1 else (0, first, ROWS)
        found.append(batch(rows[bounds[rank] : bounds[rank + 1]]))
    return found


def train(cases: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Run every case on this rank."""
    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from tests.distributed.toy_engine import whole, zero
    from tests.fused_models import fusions, model, recipe

    rank, world, _ = start_process_group()
    objective = {"kind": "comm", "temperature": {"init": 0.3}}
    results = {}
    for case, (kind, stage) in cases.items():
        optim = parse_recipe(recipe(objective, fusions(kind)), where=case).optim
        engine = Engine(
            model(objective, fusions(kind)), optim, batch_size=ROWS, warmup_steps=0, total_steps=len(FIRST), seed=0,
            settings=zero(stage),
        )  # fmt: skip
        start, logs, held = whole(engine), [], []
        for step, part in enumerate(parts(rank, world)):
            held.append((len(part.ids), sorted(part.inputs)))
            logs.append(engine.compute(part, step))
            engine.apply()
        results[case] = {"logs": logs, "start": start, "parameters": whole(engine), "held": held}
    return results


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return spawn(train, 1, CASES)[0]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return spawn(train, 2, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for rank in two:
        for step in range(len(FIRST)):
            for name, value in one[case]["logs"][step].items():
                assert rank[case]["logs"][step][name] == pytest.approx(value, abs=2e-5), (step, name)
        for name, value in one[case]["parameters"].items():
            # Adam makes steps of the learning rate, 1e-2, out of gradients however small
            np.testing.assert_allclose(rank[case]["parameters"][name], value, atol=1e-4, rtol=0, err_msg=name)


def test_every_kind_is_here() -> None:
    from tests.fused_models import KINDS, TREE

    inside = {table["kind"] for table in TREE.values()}
    assert {kind for kind, _ in CASES.values()} - {"tree"} | inside == set(KINDS)


def test_the_case_is_hard_enough(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    case = "tree-zero1"
    held = [rank[case]["held"] for rank in two]
    assert "b" not in held[0][1][1] and "b" in held[1][1][1]
    assert held[1][2] == (0, [])
    for kind in CASES:
        for name, value in one[kind]["parameters"].items():
            # rows without any modality, for which `nothing` stands, are not compared
            assert name.endswith(".nothing") or np.abs(value - one[kind]["start"][name]).max() > 2e-3, (kind, name)
