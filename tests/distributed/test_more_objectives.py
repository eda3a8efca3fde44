"""Two real ranks with uneven presence make loss, gradients and buffers of one process, for objectives over tuples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from pretrain.objectives.base import GlobalBatch, Objective
from tests.distributed.ranks import spawn
from tests.unit.pretrain.invariants import DIM, close, evaluate, make, rows

SIZES = [8, 4]
TABLES: list[dict[str, Any]] = [
    {"kind": "tensor", "chunk": 2, "temperature": {"learn": True, "init": 0.5}},
    {"kind": "gram", "anchor": "a", "chunk": 3},
    {"kind": "symile", "chunk": 2},
    {"kind": "symile", "negatives": "shuffled"},
    {"kind": "calmrl", "dim": DIM, "latent": 2, "warmup_steps": 1, "chunk": 2},
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
