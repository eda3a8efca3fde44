"""Gathering the ranks' embeddings into the global batch, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# renamed in torch 2.14
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class _GatherRows(torch.autograd.Function):
    """All-gather forward; all-reduce and slice backward.

    Each rank's loss depends on every rank's rows. Summing the ranks' gradients of a row and keeping
    one's own, together with the mean over ranks that data parallelism takes of the parameters'
    gradients, gives the gradient of the mean of the ranks' losses, exactly.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        gathered = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
        all_gather(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        # a copy: what autograd hands in may not be changed in place
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        start = dist.get_rank() * ctx.rows
        return grad[start : start + ctx.rows]


def distributed() -> bool:
    """Say whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(
    z: dict[str, Tensor], present: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], slice, int]:
    """Gather the local batch of every rank, in one collective for all modalities.

    Parameters
    ----------
    z : dict of str to Tensor
        (b, D) local embeddings; b may differ from rank to rank, and be 0.
    present : dict of str to Tensor
        (b,) bool.

    Returns
    -------
    z, present : dict of str to Tensor
        (B, D) and (B,) of the global batch, rank after rank.
    local : slice
        This rank's rows in it.
    world : int
        Number of ranks.
    """
    names = list(z)
    rows = z[names[0]].shape[0]
    if not distributed():
        return z, present, slice(0, rows), 1
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = _sizes(rows, z[names[0]].device)
    flags = torch.stack([present[name] for name in names], dim=1)
    widths = [z[name].shape[1] for name in names]
    packed = torch.cat([z[name].float() for name in names] + [flags.float()], dim=1)
    padded = torch.cat([packed, packed.new_zeros(max(sizes) - rows, packed.shape[1])])
    everything = _GatherRows.apply(padded).unflatten(0, (world, max(sizes)))
    joined = torch.cat([everything[r, : sizes[r]] for r in range(world)])
    *parts, flags = joined.split([*widths, len(names)], dim=1)
    start = sum(sizes[:rank])
    return (
        dict(zip(names, parts, strict=True)),
        {name: flags[:, i] > 0.5 for i, name in enumerate(names)},
        slice(start, start + rows),
        world,
    )


def _sizes(rows: int, device: torch.device) -> list[int]:
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    all_gather(sizes, torch.tensor([rows], device=device))
    return sizes.tolist()


def mean_over_ranks(values: dict[str, Tensor]) -> dict[str, float]:
    """Average 0-dim tensors over the ranks, in one collective."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    if distributed():
        dist.all_reduce(stacked)
        stacked = stacked / dist.get_world_size()
    return dict(zip(values, stacked.tolist(), strict=True))
