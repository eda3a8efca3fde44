"""Barlow Twins between two embeddings: their features correlate one to one, and with no other."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLoss, compared
from shards.plugins import Options


def barlow_twins(
    a_BD: Tensor,
    b_BD: Tensor,
    valid: Tensor,
    *,
    local: slice,
    world: int = 1,
    redundancy: float = 0.0051,
    eps: float = 1e-5,
) -> Tensor:
    r"""Barlow Twins of the n rows where both modalities exist (Zbontar 2021, eq. 1 and 2).

    .. math:: L = \sum_k (c_{kk} - 1)^2 + \lambda \sum_{k \ne l} c_{kl}^2,\quad
              c = \tfrac1n \hat a^T \hat b

    where every feature of a hat and b hat has mean 0 and variance 1 over ALL n rows of the global batch, without a
    learned gain. The loss is no sum over rows: each rank computes all of it (n D^2, no n x n matrix), weighted by its
    share of the rows times ``world``, so that the ranks' mean is the loss. Fewer than two rows have no correlation
    and give 0.

    Parameters
    ----------
    redundancy : float
        lambda.
    eps : float
        Added to the variances.

    The others, and the return value, are those of `pretrain.objectives.infonce.info_nce`.
    """
    pair = compared(a_BD, b_BD, valid, local=local, unit=False)
    rows = len(pair.x)
    if not pair.mine or rows < 2:
        return pair.nothing()
    correlation = _standardised(pair.x, eps).T @ _standardised(pair.y, eps) / rows
    diagonal = correlation.diagonal()
    others = correlation - torch.diag(diagonal)
    loss = (diagonal - 1).square().sum() + redundancy * others.square().sum()
    return loss * (world * pair.mine / rows)


def _standardised(z_ND: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(z_ND, dim=0, correction=0)
    return (z_ND - mean) * (variance + eps).rsqrt()


@PAIR_LOSSES.register("barlow")
class BarlowTwins(PairLoss):
    """`barlow_twins` as a pair loss."""

    tempered = False

    class Config(Options):
        """Options of `BarlowTwins`.

        Attributes
        ----------
        redundancy : float
            Weight of the correlations between different features.
        """

        kind: Literal["barlow"] = "barlow"
        redundancy: float = Field(0.0051, ge=0)

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        """Return this rank's share."""
        redundancy = self.config.redundancy
        return barlow_twins(a_BD, b_BD, valid, local=batch.local, world=batch.world, redundancy=redundancy), {}
