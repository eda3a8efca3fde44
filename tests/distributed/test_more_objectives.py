"""Two real ranks with uneven presence make loss, gradients and buffers of one process, for objectives over tuples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrain.objectives.base import GlobalBatch, Objective
from tests.distributed import toy_engine
from tests.distributed.ranks import spawn
from tests.unit.pretrain.invariants import close, evaluate, make, rows

SIZES = [8, 4]
TABLES: list[dict[str, Any]] = [
    {"kind": "tensor", "chunk": 2, "temperature": {"learn": True, "init": 0.5}},
    {"kind": "gram", "anchor": "a", "chunk": 3},
    {"kind": "symile", "chunk": 2},
    {"kind": "symile", "negatives": "shuffled"},
    {"kind": "calmrl", "latent": 2, "warmup_steps": 1, "chunk": 2},
]
STEPS = 3


def batches(objective: Objective) -> list[GlobalBatch]:
    found = [rows(objective, sum(SIZES), seed=seed, share=0.8) for seed in range(STEPS)]
    for batch in found:
        batch.present["b"][SIZES[0] :] = False  # the last rank has none of it
    return found


def numbers(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def shares(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of several training steps, so that what buffers hold counts."""
    from pretrain.gather import gather_batch, mean_over_ranks

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    part = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    results = []
    for table in tables:
        objective = make(table)
        for batch in batches(objective):
            objective.zero_grad()
            leaves = {name: z[part].clone().requires_grad_() for name, z in batch.z.items()}
            everything = gather_batch(leaves, {name: mask[part] for name, mask in batch.present.items()})
            loss, logs = objective(everything)
            loss.backward()
        parameters = {}
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameters[name] = parameter.grad / world
        grads = {name: z.grad / world for name, z in leaves.items() if z.grad is not None}
        results.append(
            {
                "logs": mean_over_ranks({"loss": loss, **logs}),
                "grads": numbers({**grads, **parameters}),
                "buffers": numbers(dict(objective.named_buffers())),
            }
        )
    return results


def test_two_ranks_equal_one_process() -> None:
    by_rank = spawn(shares, 2, TABLES)
    for number, table in enumerate(TABLES):
        objective = make(table)
        *earlier, last = (replace(batch, groups=None) for batch in batches(objective))
        for batch in earlier:
            objective(batch)
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        loss, expected = evaluate(objective, last)
        after = {name: value.clone() for name, value in objective.named_buffers()}
        objective.load_state_dict(before)
        logs = {"loss": torch.tensor(loss), **objective(last)[1]}
        assert loss != 0
        for rank, results in enumerate(by_rank):
            found, part = results[number], slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
            close(torch.tensor(list(found["logs"].values())), torch.stack(list(logs.values())), 1e-5)
            for name, grad in found["grads"].items():
                close(torch.from_numpy(grad), expected[name][part] if name in last.z else expected[name], 1e-5)
            for name, value in found["buffers"].items():
                close(torch.from_numpy(value), after[name])
                # not only close: ranks must never drift apart
                assert (value == by_rank[0][number]["buffers"][name]).all(), (table, name)
        assert any(results[number]["grads"]["c"].any() for results in by_rank)


# Through DeepSpeed, with encoders, as a run does


def train(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from pretrain.model import MultimodalModel

    start_process_group()
    results = []
    for table, stage in zip(tables, (3, 2, 1, 0, 3), strict=True):
        config = parse_recipe({**toy_engine.recipe(), "objective": table}, where="toy")
        torch.manual_seed(0)
        fitted = {name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in toy_engine.NAMES}
        model = MultimodalModel(config, toy_engine.specs(), fitted)
        options = {"batch_size": toy_engine.BATCH, "warmup_steps": 0, "total_steps": STEPS, "seed": 0}
        run = Engine(model, config.optim, settings=toy_engine.zero(stage), **options)
        logs = []
        for step, part in enumerate(toy_engine.parts()):
            logs.append(run.compute(part, step))
            run.apply()
        buffers = numbers(dict(run.module.objective.named_buffers()))
        results.append({"logs": logs, "parameters": toy_engine.whole(run), "buffers": buffers})
    return results


def test_two_ranks_train_as_one_at_every_zero_stage() -> None:
    (one,), two = spawn(train, 1, TABLES), spawn(train, 2, TABLES)
    for number, table in enumerate(TABLES):
        for rank in two:
            for ours, theirs in zip(rank[number]["logs"], one[number]["logs"], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), table
            for part in ("parameters", "buffers"):
                for name, value in one[number][part].items():
                    np.testing.assert_allclose(rank[number][part][name], value, atol=2e-5, rtol=1e-4)
    assert all(any(logs["loss"] != 0 for logs in result["logs"]) for result in one)
