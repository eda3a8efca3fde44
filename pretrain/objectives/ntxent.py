"""NT-Xent over the stacked rows of two embeddings: SimCLR's loss, and MatMCL's with a fused anchor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLoss, StreamedOptions, compared
from pretrain.objectives.streaming import log_sum_exp


def nt_xent(
    a_BD: Tensor, b_BD: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1, **criteria: Any
) -> Tensor:
    r"""NT-Xent of the n rows where both embeddings exist.

    .. math:: L = \frac1{2n} \sum_{a=1}^{2n} \Big( -S_{a\,p(a)} + \log\sum_{b \ne a} e^{S_{ab}} \Big),
              \quad S = s\, Z Z^T

    over the 2n stacked unit rows Z, where p(a) is the other embedding of the same sample: embeddings of both kinds
    are negatives (SimCLR, Chen 2020; GMC, Poklukar 2022; MatMCL, Wu 2025). Collapsed rows give log(2n - 1).

    Parameters and return value are those of `pretrain.objectives.infonce.info_nce`, without smoothing.
    """
    pair = compared(a_BD, b_BD, valid, local=local, **criteria)
    if not pair.mine:
        return pair.nothing(scale)
    # the blocks of the 2n x 2n matrix: a with b (its columns are b with a), a with a, b with b
    across, positive, _ = log_sum_exp(pair.x, pair.y, scale=scale, region=pair.region)
    alone = replace(pair.region, exclude_self=True)
    within = [log_sum_exp(z, z, scale=scale, region=alone, both=False)[0][0] for z in (pair.x, pair.y)]
    losses = torch.logaddexp(across, torch.stack(within)) - positive
    return 0.5 * losses.sum() * (world / len(pair.x))


@PAIR_LOSSES.register("ntxent")
class NTXent(PairLoss):
    """`nt_xent` as a pair loss."""

    class Config(StreamedOptions):
        """Options of `NTXent`."""

        kind: Literal["ntxent"] = "ntxent"

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        """Return this rank's share."""
        criteria = self.config.criteria(batch)
        return nt_xent(a_BD, b_BD, valid, scale=scale, local=batch.local, world=batch.world, **criteria), {}
