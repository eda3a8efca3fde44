"""Ranks stay in step whatever they lack: 2 and 4 ranks, every ZeRO stage, encoders of EQUAL size, with a fusion.

A modality is missing from one rank while another one is missing from the next, from all ranks, and ranks have no rows
at all. The reference is plain PyTorch on the whole batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.ranks import OUT_OF_STEP, spawn

STEPS, WARMUP, TOLERANCE = 5, 1, 1e-5
# Adam divides by the size of the gradient: the rounding of a sum over four ranks, where it is small, times the rate
LR = 2e-3
FUSED = {"joint": {"kind": "token_transformer", "dim": 8, "heads": 2, "dropout": 0.0}}
# step by step, the rows of each rank
ROWS = {
    2: [[6, 6], [6, 6], [12, 0], [0, 12], [7, 5]],
    4: [[3, 3, 3, 3], [4, 2, 3, 3], [6, 0, 6, 0], [0, 0, 0, 12], [3, 3, 3, 3]],
}


def batches(world: int) -> list[list[Any]]:
    """Even ranks lack a and odd ones b; then nobody has a; then some ranks have no rows; last, nobody has anything."""
    from dataclasses import replace

    from tests.fused_models import samples

    def without(sample: Any, names: str) -> Any:
        return replace(sample, arrays={name: value for name, value in sample.arrays.items() if name not in names})

    found = []
    for step, sizes in enumerate(ROWS[world]):
        rank_of = [rank for rank, size in enumerate(sizes) for _ in range(size)]
        rows = samples(12, seed=step, share=0.8)
        lost = {0: lambda rank: "ab"[rank % 2], 1: lambda rank: "a", 4: lambda rank: "abc"}.get(step, lambda rank: "")
        found.append([without(row, lost(rank)) for row, rank in zip(rows, rank_of, strict=True)])
    return found


def build() -> Any:
    from tests.fused_models import model

    return model({"kind": "all_pairs", "temperature": {"init": 0.3}}, FUSED)


def train(stages: tuple[int, ...] = (0, 1, 2, 3)) -> dict[int, Any]:
    from pretrain.config import OptimConfig
    from pretrain.engine import Engine, start_process_group
    from shards.batch import collate
    from tests.fused_models import SPECS

    rank, world, _ = start_process_group()
    results = {}
    for stage in stages:
        spread = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        optim = OptimConfig(lr=LR, precision="fp32", grad_clip=0.0)
        engine = Engine(
            build(), optim, batch_size=12, warmup_steps=WARMUP, total_steps=STEPS, seed=0,
            settings={"zero_optimization": {"stage": stage, **spread}},
        )  # fmt: skip
        losses, held = [], []
        for step, rows in enumerate(batches(world)):
            first = sum(ROWS[world][step][:rank])
            part = collate(rows[first : first + ROWS[world][step][rank]], SPECS)
            held.append("".join(sorted(part.inputs)))
            losses.append(engine.compute(part, step)["loss"])
            engine.apply()
        with engine.whole():
            found = {n: p.detach().float().cpu().numpy().copy() for n, p in engine.module.named_parameters()}
        results[stage] = {"losses": losses, "held": held, "parameters": found}
    return results


def plain(world: int) -> dict[str, Any]:
    """The reference: one process, the whole batch, AdamW."""
    from pretrain.accumulate import contrast
    from pretrain.config import OptimConfig
    from pretrain.optimizer import learning_rate, parameter_groups
    from shards.batch import collate
    from tests.fused_models import SPECS

    net, optim = build(), OptimConfig(lr=LR, precision="fp32", grad_clip=0.0)
    adam = torch.optim.AdamW(parameter_groups(net, optim.weight_decay), betas=optim.betas, weight_decay=0.0)
    losses = []
    for step, rows in enumerate(batches(world)):
        adam.zero_grad()
        losses.append(float(contrast(net, net.objective, torch.Tensor.backward, collate(rows, SPECS))[0]))
        for group in adam.param_groups:
            group["lr"] = learning_rate(optim, step, warmup=WARMUP, total=STEPS)
        adam.step()
    return {"losses": losses, "parameters": {name: value.detach().numpy() for name, value in net.named_parameters()}}


def gap(one: dict[str, Any], two: dict[str, Any]) -> float:
    return max(float(np.abs(one["parameters"][name] - value).max()) for name, value in two["parameters"].items())


@pytest.fixture(scope="module", params=[2, 4])
def trained(request: pytest.FixtureRequest) -> tuple[int, list[dict[int, Any]]]:
    return request.param, spawn(train, request.param)


@pytest.mark.parametrize("stage", range(4))
def test_ranks_that_lack_modalities_train_as_one_that_has_all_rows(
    stage: int, trained: tuple[int, list[dict[int, Any]]]
) -> None:
    world, ranks = trained
    right = plain(world)
    for rank in ranks:
        assert rank[stage]["losses"] == pytest.approx(right["losses"], abs=TOLERANCE)
        assert gap(rank[stage], right) < TOLERANCE


def test_the_case_is_hard_enough(trained: tuple[int, list[dict[int, Any]]]) -> None:
    """Ranks lack different modalities of equal size at once; every parameter moves by far more than the tolerance."""
    world, ranks = trained
    held = [rank[0]["held"] for rank in ranks]
    assert all("a" not in held[rank][0] and "b" in held[rank][0] for rank in range(0, world, 2))
    assert all("b" not in held[rank][0] and "a" in held[rank][0] for rank in range(1, world, 2))
    assert not any("a" in rank[1] for rank in held)
    assert held[1][2] == "" and held[0][3] == "" and not any(rank[4] for rank in held)
    start = {name: value.detach().numpy() for name, value in build().named_parameters()}
    sizes = {k: [v.shape for n, v in start.items() if n.startswith(f"encoders.{k}.")] for k in "ab"}
    assert sizes["a"] == sizes["b"]
    moved = {name: float(np.abs(ranks[0][0]["parameters"][name] - value).max()) for name, value in start.items()}
    assert min(moved.values()) > 100 * TOLERANCE, moved


def skipping() -> dict[int, Any]:
    """The wrong way: a rank that lacks a modality does not run its encoder."""
    from pretrain.encoders.base import Encoded
    from pretrain.model import MultimodalModel

    right = MultimodalModel._encoded

    def skipped(self: Any, name: str, batch: Any) -> Any:
        if name in batch.inputs:
            return right(self, name, batch)
        return Encoded(torch.zeros(1, 6), torch.zeros(1, 3, 6) if name in "ab" else None)

    MultimodalModel._encoded = skipped  # type: ignore[method-assign]
    return train((2,))


def test_skipping_the_encoder_of_an_absent_modality_is_caught() -> None:
    try:
        ranks = spawn(skipping, 2, timeout_s=60)
    except (RuntimeError, TimeoutError) as error:
        if not OUT_OF_STEP.search(str(error)):
            raise
        return
    right = plain(2)
    assert max(gap(rank[2], right) for rank in ranks) > 100 * TOLERANCE
