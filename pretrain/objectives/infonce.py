"""InfoNCE between two embeddings, over the rows that have both."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLoss, StreamedOptions, compared
from pretrain.objectives.streaming import log_sum_exp


def info_nce(
    a_BD: Tensor,
    b_BD: Tensor,
    valid: Tensor,
    *,
    scale: Tensor,
    local: slice,
    world: int = 1,
    smoothing: float = 0.0,
    **criteria: Any,
) -> Tensor:
    r"""Symmetric InfoNCE of the rows where both modalities exist.

    .. math:: L = \tfrac12 [ \mathrm{mean}_i(-S_{ii} + \log\sum_j e^{S_{ij}})
              + \mathrm{mean}_j(-S_{jj} + \log\sum_i e^{S_{ij}}) ],\quad S = s\, u v^T

    with unit rows u, v and logit scale s; rows that are not valid are neither positives nor negatives
    (van den Oord 2018; CLIP, Radford 2021). With label smoothing e, the target is 1 - e for the positive and e spread
    evenly over all candidates that count, the positive included (Szegedy 2016).

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
    smoothing : float
        e.
    **criteria
        ``groups`` (B,), ``above``, ``chunk``: as in `pretrain.objectives.streaming.Region`.

    Returns
    -------
    Tensor
        0-dim float32. 0 with a graph where no row is valid.
    """
    pair = compared(a_BD, b_BD, valid, local=local, **criteria)
    if not pair.mine:
        return pair.nothing(scale)
    lse, positive, gap = log_sum_exp(pair.x, pair.y, scale=scale, region=pair.region, gaps=smoothing > 0)
    losses = lse - positive + smoothing * gap if smoothing else lse - positive
    return 0.5 * losses.sum() * (world / len(pair.x))


@PAIR_LOSSES.register("infonce")
class InfoNCE(PairLoss):
    """`info_nce` as a pair loss."""

    class Config(StreamedOptions):
        """Options of `InfoNCE`.

        Attributes
        ----------
        label_smoothing : float
            Share of the target that is spread over all candidates.
        """

        kind: Literal["infonce"] = "infonce"
        label_smoothing: float = Field(0.0, ge=0, lt=1)

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        """Return this rank's share."""
        loss = info_nce(
            a_BD,
            b_BD,
            valid,
            scale=scale,
            local=batch.local,
            world=batch.world,
            smoothing=self.config.label_smoothing,
            **self.config.criteria(batch),
        )
        return loss, {}
