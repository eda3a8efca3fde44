"""Two real ranks with uneven presence make the loss and gradients of one process, for every pair loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed.ranks import spawn
from tests.unit.pretrain.invariants import FUSIONS, GlobalBatch, Objective, close, evaluate, make, rows

SIZES = [9, 5]
MASKED = {"mask_same_group": True, "mask_above": 0.4, "chunk": 3}
TABLES: list[dict[str, Any]] = [
    *({"kind": "all_pairs", "pair_loss": loss} for loss in ("infonce", "ntxent", "siglip", "barlow")),
    *({"kind": "all_pairs", "pair_loss": {"kind": loss, **MASKED}} for loss in ("infonce", "ntxent", "siglip")),
    {"kind": "frozen_anchor", "anchor": "a", "pair_loss": {"kind": "infonce", "label_smoothing": 0.1, "chunk": 2}},
    {"kind": "fused_anchor", "temperature": {"per_pair": True}},
    {"kind": "weighted_sum", "weights": "uncertainty",
     "terms": [{"objective": {"kind": "all_pairs"}}, {"objective": {"kind": "all_pairs", "pair_loss": "siglip"}}]},
]  # fmt: skip


def case(table: dict[str, Any]) -> tuple[Objective, GlobalBatch]:
    objective = make(table, fusions=FUSIONS if table["kind"] == "fused_anchor" else None)
    batch = rows(objective, sum(SIZES))
    batch.present["b"][: SIZES[0]] = False  # the first rank has none of it
    return objective, batch


def shares(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from pretrain.gather import gather_batch, mean_over_ranks

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    part = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    results = []
    for table in tables:
        objective, batch = case(table)
        assert batch.groups is not None
        leaves = {name: z[part].clone().requires_grad_() for name, z in batch.z.items()}
        present = {name: mask[part] for name, mask in batch.present.items()}
        everything = gather_batch(leaves, present, batch.groups[part] if objective.needs_groups else None)
        assert (everything.local, everything.world) == (part, world)
        loss, logs = objective(everything)
        loss.backward()
        parameters = {}
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameters[name] = (parameter.grad / world).numpy()
        # data parallelism averages what reaches the encoders
        grads = {
            name: (torch.zeros_like(z) if z.grad is None else z.grad / world).numpy() for name, z in leaves.items()
        }
        results.append({"logs": mean_over_ranks({"loss": loss, **logs}), "grads": grads, "parameters": parameters})
    return results


def test_two_ranks_equal_one_process() -> None:
    by_rank = spawn(shares, 2, TABLES)
    for number, table in enumerate(TABLES):
        objective, batch = case(table)
        if not objective.needs_groups:
            batch = replace(batch, groups=None)
        loss, expected = evaluate(objective, batch)
        logs = {"loss": torch.tensor(loss), **objective(batch)[1]}
        for rank, results in enumerate(by_rank):
            found, part = results[number], slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
            close(torch.tensor(list(found["logs"].values())), torch.stack(list(logs.values())))
            for name, grad in found["grads"].items():
                close(torch.from_numpy(grad), expected[name][part])
            for name, grad in found["parameters"].items():
                close(torch.from_numpy(grad), expected[name])
        assert any(result["grads"]["c"].any() for result in (results[number] for results in by_rank)), table
