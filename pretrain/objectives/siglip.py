"""SigLIP's sigmoid loss between two embeddings: every pair of rows is a question of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLoss, StreamedOptions, compared
from pretrain.objectives.streaming import sigmoid_sum


def sigmoid_loss(
    a_BD: Tensor,
    b_BD: Tensor,
    valid: Tensor,
    *,
    scale: Tensor,
    bias: Tensor,
    local: slice,
    world: int = 1,
    **criteria: Any,
) -> Tensor:
    r"""Sigmoid loss of the n rows where both modalities exist (SigLIP, Zhai 2023, eq. 3).

    .. math:: L = -\frac1n \sum_{ij} \log\sigma\big(y_{ij} (t\, u_i \cdot v_j + b)\big),
              \quad y_{ij} = 1 \text{ if } i = j \text{ else } -1

    A rank computes its rows i over all columns j.

    Parameters
    ----------
    bias : Tensor
        (1,) b.

    The others, and the return value, are those of `pretrain.objectives.infonce.info_nce`, without smoothing;
    ``scale`` is t.
    """
    pair = compared(a_BD, b_BD, valid, local=local, **criteria)
    if not pair.mine:
        return pair.nothing(scale, bias)
    return sigmoid_sum(pair.x, pair.y, scale=scale, bias=bias, region=pair.region).sum() * (world / len(pair.x))


@PAIR_LOSSES.register("siglip")
class SigLIP(PairLoss):
    """`sigmoid_loss` as a pair loss; t is 1 / temperature, 10 by default."""

    class Config(StreamedOptions):
        """Options of `SigLIP`.

        Attributes
        ----------
        bias : float
            Value of b at the start; it is learned.
        """

        kind: Literal["siglip"] = "siglip"
        bias: float = -10.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.full((1,), config.bias))

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        """Return this rank's share, and the bias to log."""
        # a copy: under ZeRO-3 the parameter itself is gone until the backward pass
        bias = self.bias.float().clone()
        criteria = self.config.criteria(batch)
        loss = sigmoid_loss(a_BD, b_BD, valid, scale=scale, bias=bias, local=batch.local, world=batch.world, **criteria)
        return loss, {"bias": bias.detach()[0]}
