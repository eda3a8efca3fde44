"""Gathering the ranks' embeddings into the global batch, with gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.objectives.base import GlobalBatch

# renamed in torch 2.14, from which on gloo can reduce and scatter too
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter = getattr(dist, "reduce_scatter_single", None)


class _GatherRows(torch.autograd.Function):
    """All-gather forward; reduce-scatter backward.

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
        return _summed_part(grad, ctx.rows)


def _summed_part(grad: Tensor, rows: int) -> Tensor:
    """Return the sum over the ranks of this rank's part of ``grad`` (world * rows, ...)."""
    scatter = reduce_scatter or (dist.reduce_scatter_tensor if dist.get_backend() == "nccl" else None)
    if scatter is not None:
        mine = grad.new_empty(rows, *grad.shape[1:])
        scatter(mine, grad.contiguous())
        return mine
    # a copy: what autograd hands in may not be changed in place
    grad = grad.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(grad)
    start = dist.get_rank() * rows
    return grad[start : start + rows]


def distributed() -> bool:
    """Say whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_batch(z: Mapping[str, Tensor], present: Mapping[str, Tensor], groups: Tensor | None = None) -> GlobalBatch:
    """Gather the local batch of every rank, in one collective for all embeddings.

    Parameters
    ----------
    z : mapping of str to Tensor
        (b, D) local embeddings; b may differ from rank to rank, and be 0.
    present : mapping of str to Tensor
        (b,) bool.
    groups : Tensor, optional
        (b,) int64.

    Returns
    -------
    GlobalBatch
        The rows of all ranks, rank after rank.
    """
    names = list(z)
    rows = z[names[0]].shape[0]
    if not distributed():
        return GlobalBatch(z=z, present=present, local=slice(0, rows), groups=groups)
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = _sizes(rows, z[names[0]].device)
    flags = torch.stack([present[name] for name in names], dim=1)
    widths = [z[name].shape[1] for name in names]
    packed = torch.cat([z[name].float() for name in names] + [flags.float()], dim=1)
    padded = torch.cat([packed, packed.new_zeros(max(sizes) - rows, packed.shape[1])])
    joined = _joined(_GatherRows.apply(padded), sizes)
    *parts, flags = joined.split([*widths, len(names)], dim=1)
    start = sum(sizes[:rank])
    return GlobalBatch(
        z=dict(zip(names, parts, strict=True)),
        present={name: flags[:, i] > 0.5 for i, name in enumerate(names)},
        local=slice(start, start + rows),
        world=world,
        groups=None if groups is None else _gathered_groups(groups, sizes),
    )


def _gathered_groups(groups: Tensor, sizes: list[int]) -> Tensor:
    padded = torch.cat([groups, groups.new_zeros(max(sizes) - len(groups))])
    everything = groups.new_empty(len(sizes) * max(sizes))
    all_gather(everything, padded)
    return _joined(everything, sizes)


def _joined(gathered: Tensor, sizes: list[int]) -> Tensor:
    """Drop the padding: (world * largest, ...) -> (sum of the sizes, ...)."""
    by_rank = gathered.unflatten(0, (len(sizes), max(sizes)))
    return torch.cat([by_rank[rank, :size] for rank, size in enumerate(sizes)])


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
