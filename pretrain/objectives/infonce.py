"""InfoNCE between two modalities, over the rows that have both."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from shards.schema import Strict


class TemperatureConfig(Strict):
    """Temperature of the softmax; learned on a log scale, or fixed.

    Attributes
    ----------
    learn : bool
        Learn it, or keep ``init``.
    init : float
        Value at the start.
    min : float
        A learned temperature is clamped to at least this (CLIP: 0.01, a logit scale of 100).
    """

    learn: bool = True
    init: float = Field(0.1, gt=0)
    min: float = Field(0.01, gt=0)


class Temperature(nn.Module):
    """The logit scale ``1 / temperature``, (1,): DeepSpeed cannot hold a 0-dim parameter."""

    def __init__(self, config: TemperatureConfig) -> None:
        super().__init__()
        self.limit = math.log(1 / config.min)
        log_scale = torch.full((1,), math.log(1 / config.init))
        if config.learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        """Return the logit scale, (1,)."""
        log_scale = self.log_scale.float()
        # the gradient passes the clamp: a temperature at its limit could never rise again otherwise
        return (log_scale + (log_scale.clamp(max=self.limit) - log_scale).detach()).exp()


def info_nce(a_BD: Tensor, b_BD: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    r"""Symmetric InfoNCE of the rows where both modalities exist.

    .. math:: L = \tfrac12 [ \mathrm{mean}_i(-S_{ii} + \log\sum_j e^{S_{ij}})
              + \mathrm{mean}_j(-S_{jj} + \log\sum_i e^{S_{ij}}) ],\quad S = s\, u v^T

    with unit rows u, v and logit scale s; rows that are not valid are neither positives nor negatives
    (van den Oord 2018; CLIP, Radford 2021).

    Parameters
    ----------
    a_BD, b_BD : Tensor
        (B, D) global embeddings of the two modalities.
    valid : Tensor
        (B,) bool, True where both exist.
    scale : Tensor
        (1,) logit scale.
    local : slice
        Rows of this rank; their terms alone are summed.
    world : int
        Number of ranks; the sum is divided by (valid rows of the global batch / world).

    Returns
    -------
    Tensor
        0-dim float32. 0 with a graph where no row is valid.
    """
    rows = valid.nonzero().squeeze(1)
    u, v = (F.normalize(x[rows].float(), dim=1) for x in (a_BD, b_BD))
    mine = ((rows >= local.start) & (rows < local.stop)).nonzero().squeeze(1)
    if len(mine) == 0:
        return (u.sum() + v.sum() + scale.sum()) * 0.0
    forward = F.cross_entropy(scale * (u[mine] @ v.T), mine, reduction="sum")
    backward = F.cross_entropy(scale * (v[mine] @ u.T), mine, reduction="sum")
    return 0.5 * (forward + backward) * (world / len(rows))
