"""Gathering over real processes equals one process that holds all rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import spawn

WIDTHS = {"a": 3, "b": 5}
SIZES = {2: [[4, 2], [0, 6], [6, 0], [0, 0]], 3: [[1, 0, 5], [2, 2, 2], [0, 0, 3]]}


def everything(total: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(total)
    z = {name: torch.randn(total, width, generator=rng) for name, width in WIDTHS.items()}
    return z, {name: torch.rand(total, generator=rng) < 0.5 for name in WIDTHS}


def loss_of(z: dict[str, torch.Tensor], present: dict[str, torch.Tensor], rank: int) -> torch.Tensor:
    """A loss that couples all rows and differs from rank to rank."""
    scores = z["a"] @ z["a"].T + (z["b"] @ z["b"].T).tanh()
    weights = 1.0 + rank + present["a"].float() - 2 * present["b"].float()
    return (scores * weights[:, None]).sin().sum() + 0.0 * scores.sum()


def gather_cases(cases: list[list[int]]) -> list[dict[str, Any]]:
    from pretrain.gather import gather_batch, mean_over_ranks

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = []
    for sizes in cases:
        start = sum(sizes[:rank])
        z, present = everything(sum(sizes))
        mine = {name: rows[start : start + sizes[rank]].clone().requires_grad_() for name, rows in z.items()}
        flags = {name: mask[start : start + sizes[rank]] for name, mask in present.items()}
        groups = torch.arange(sum(sizes))[start : start + sizes[rank]] - 2**62
        batch = gather_batch(mine, flags, groups)
        full, masks, local = batch.z, batch.present, batch.local
        loss_of(full, masks, rank).backward()
        assert batch.world == world
        assert batch.groups is not None and batch.groups.tolist() == [row - 2**62 for row in range(sum(sizes))]
        results.append(
            {
                "z": {name: rows.detach().numpy() for name, rows in full.items()},
                "present": {name: mask.numpy() for name, mask in masks.items()},
                "dtype": {str(mask.dtype) for mask in masks.values()},
                "local": (local.start, local.stop),
                "grad": {name: rows.grad.numpy() for name, rows in mine.items()},  # type: ignore[union-attr]
                "mean": mean_over_ranks({"x": torch.tensor(float(rank)), "y": torch.tensor([2.0])}),
            }
        )
    return results


@pytest.mark.parametrize("world", [2, 3])
def test_values_and_gradients_equal_those_of_one_process(world: int) -> None:
    results = spawn(gather_cases, world, SIZES[world])
    for case, sizes in enumerate(SIZES[world]):
        z, present = everything(sum(sizes))
        leaves = {name: rows.clone().requires_grad_() for name, rows in z.items()}
        sum(loss_of(leaves, present, rank) for rank in range(world)).backward()  # type: ignore[union-attr]
        for rank, start in enumerate([sum(sizes[:r]) for r in range(world)]):
            result = results[rank][case]
            assert result["local"] == (start, start + sizes[rank])
            assert result["mean"] == {"x": sum(range(world)) / world, "y": 2.0}
            assert result["dtype"] == {"torch.bool"}
            for name in WIDTHS:
                assert (result["z"][name] == z[name].numpy()).all()
                assert (result["present"][name] == present[name].numpy()).all()
                expected = leaves[name].grad[start : start + sizes[rank]]  # type: ignore[index]
                torch.testing.assert_close(torch.from_numpy(result["grad"][name]), expected, atol=1e-5, rtol=1e-5)


def test_one_process_gathers_itself() -> None:
    from pretrain.gather import gather_batch, mean_over_ranks

    z, present = everything(5)
    batch = gather_batch(z, present)
    assert (batch.z, batch.present, batch.local, batch.world) == (z, present, slice(0, 5), 1)
    assert mean_over_ranks({"x": torch.tensor(3.0)}) == {"x": 3.0}
