"""The five invariants that every objective keeps (padding, content of missing rows, permutation, degenerate batches,
sharding), as checks that take an objective and fail where the invariant does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.names import parsed
from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Objective

NAMES = ("a", "b", "c")
FUSIONS = {"joint": NAMES}
DIM = 5
Z = dict[str, Tensor]


def make(
    table: Mapping[str, object], names: tuple[str, ...] = NAMES, fusions: Mapping[str, tuple[str, ...]] | None = None
) -> Objective:
    options = OBJECTIVES.options(table)
    objective = OBJECTIVES.get(options.kind)(options, names, fusions or {})
    objective.sized(DIM)
    return objective


def rows(objective: Objective, count: int, seed: int = 0, share: float = 0.6) -> GlobalBatch:
    """Random embeddings of all names that the objective reads; a fusion is there where any of its modalities is."""
    rng = torch.Generator().manual_seed(seed)
    z = {name: torch.randn(count, DIM, generator=rng) for name in objective.names}
    masks = [{name: torch.rand(count, generator=rng) < share for name in objective.modalities} for _ in range(2)]
    groups = torch.randint(0, max(count // 2, 1), (count,), generator=rng)
    return with_presence(GlobalBatch(z=z, present={}, local=slice(0, count), groups=groups), objective, masks)


def with_presence(batch: GlobalBatch, objective: Objective, masks: list[Z]) -> GlobalBatch:
    """Return the batch with the presence that modalities' masks, one set a view, give to every name."""
    present = {}
    for name in objective.names:
        base, only, view = parsed(name)
        parts = [only] if only else objective.fusions.get(base, (base,))
        present[name] = torch.stack([masks[view][part] for part in parts]).any(dim=0)
    return replace(batch, present=present)


def evaluate(objective: Objective, batch: GlobalBatch) -> tuple[float, Z]:
    """Loss, and its gradient with respect to every embedding and parameter."""
    leaves = {name: rows.clone().requires_grad_() for name, rows in batch.z.items()}
    parameters = dict(objective.named_parameters())
    loss, logs = objective(replace(batch, z=leaves))
    assert loss.dtype == torch.float32
    assert loss.ndim == 0
    assert loss.requires_grad
    assert not any(value.requires_grad for value in logs.values())
    wanted = {**leaves, **parameters}
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return loss.item(), {
        name: torch.zeros_like(wanted[name]) if grad is None else grad for name, grad in zip(wanted, grads, strict=True)
    }


def close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-5)


def check_padding(objective: Objective) -> None:
    batch = rows(objective, 9)
    loss, grads = evaluate(objective, batch)
    assert loss != 0
    more = rows(objective, 4, seed=1)
    assert batch.groups is not None and more.groups is not None
    longer = GlobalBatch(
        z={name: torch.cat([z, more.z[name]]) for name, z in batch.z.items()},
        present={name: torch.cat([m, torch.zeros(4, dtype=torch.bool)]) for name, m in batch.present.items()},
        local=slice(0, 13),
        groups=torch.cat([batch.groups, more.groups]),
    )
    padded, padded_grads = evaluate(objective, longer)
    assert padded == pytest.approx(loss, rel=1e-6, abs=1e-6)
    for name in batch.z:
        close(padded_grads[name][:9], grads[name])
        assert not padded_grads[name][9:].any()
    for name in set(grads) - set(batch.z):
        close(padded_grads[name], grads[name])


def check_content_of_missing_rows(objective: Objective) -> None:
    batch = rows(objective, 9)
    loss, grads = evaluate(objective, batch)
    for content in (float("nan"), float("inf"), 1e9, -1e9, 0.0):
        filled = {
            name: torch.where(batch.present[name][:, None], z, torch.tensor(content)) for name, z in batch.z.items()
        }
        other, other_grads = evaluate(objective, replace(batch, z=filled))
        assert other == pytest.approx(loss, rel=1e-6, abs=1e-6), content
        for name in grads:
            close(other_grads[name], grads[name])


def check_permutation(objective: Objective) -> None:
    batch = rows(objective, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    assert batch.groups is not None
    loss, grads = evaluate(objective, batch)
    shuffled = replace(
        batch,
        z={name: z[order] for name, z in batch.z.items()},
        present={name: mask[order] for name, mask in batch.present.items()},
        groups=batch.groups[order],
    )
    other, other_grads = evaluate(objective, shuffled)
    assert other == pytest.approx(loss, rel=1e-6, abs=1e-6)
    for name in batch.z:
        close(other_grads[name], grads[name][order])


def check_degenerate(objective: Objective, *, lone_row_is_zero: bool = True) -> None:
    """No valid row gives 0 with a graph; so does one alone, where a loss compares it with nothing else."""

    def case(count: int, masks: Z) -> GlobalBatch:
        return with_presence(rows(objective, count), objective, [masks, masks])

    modalities = objective.modalities
    nobody = case(6, {name: torch.zeros(6, dtype=torch.bool) for name in modalities})
    empty = case(0, {name: torch.zeros(0, dtype=torch.bool) for name in modalities})
    alone = case(6, {name: torch.arange(6) == 2 for name in modalities})
    for batch in (nobody, empty, alone):
        loss, grads = evaluate(objective, batch)
        assert np.isfinite(loss)
        assert all(grad.isfinite().all() for grad in grads.values())
        if batch is not alone or lone_row_is_zero:
            assert loss == 0.0
            for grad in grads.values():
                assert not grad.any()
    # the rows of one rank hold nothing valid, the others' do
    batch = rows(objective, 8)
    for mask in batch.present.values():
        mask[:4] = False
    loss, grads = evaluate(objective, replace(batch, local=slice(0, 4), world=2))
    assert loss == 0.0
    assert all(grad.isfinite().all() for grad in grads.values())


SHARDS = {1: [12], 2: [7, 5], 4: [5, 4, 3, 0]}


def check_sharding(objective: Objective, tolerance: float = 1e-6) -> None:
    for seed, sizes in [(seed, sizes) for seed in range(3) for sizes in SHARDS.values()]:
        batch = rows(objective, 12, seed=seed)
        for name, mask in batch.present.items():
            if parsed(name).base == "b" or parsed(name).only == "b":
                mask[:7] = False  # a modality that is missing from a whole rank
        loss, grads = evaluate(objective, batch)
        losses, total = [], {name: torch.zeros_like(grad) for name, grad in grads.items()}
        for rank, size in enumerate(sizes):
            start = sum(sizes[:rank])
            part = replace(batch, local=slice(start, start + size), world=len(sizes))
            share, mine = evaluate(objective, part)
            losses.append(share)
            total = {name: total[name] + mine[name] / len(sizes) for name in total}
        assert np.mean(losses) == pytest.approx(loss, rel=1e-6, abs=tolerance), sizes
        for name in grads:
            close(total[name], grads[name], tolerance)


def check_logs(objective: Objective) -> None:
    """The mean over the ranks of what is logged is what one rank logs."""
    batch = rows(objective, 10)
    _, whole = objective(batch)
    parts = [objective(replace(batch, local=local, world=2))[1] for local in (slice(0, 7), slice(7, 10))]
    for name, value in whole.items():
        assert sum(float(part[name]) for part in parts) / 2 == pytest.approx(float(value), rel=1e-6, abs=1e-6)


def check_half_precision(objective: Objective) -> None:
    """Half-precision embeddings give a full-precision loss."""
    batch = rows(objective, 9)
    loss, _ = evaluate(objective, batch)
    half, _ = evaluate(objective, replace(batch, z={name: z.bfloat16() for name, z in batch.z.items()}))
    assert half == pytest.approx(loss, rel=0.05)


CHECKS: dict[str, Callable[[Objective], None]] = {
    "padding": check_padding,
    "content": check_content_of_missing_rows,
    "permutation": check_permutation,
    "degenerate": check_degenerate,
    "sharding": check_sharding,
}


def failing(objective: Objective) -> set[str]:
    """Return the names of the invariants that an objective breaks."""
    failed = set()
    for name, check in CHECKS.items():
        try:
            check(objective)
        except (AssertionError, RuntimeError):
            failed.add(name)
    return failed
