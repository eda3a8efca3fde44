"""Tensor fusion of low rank: products of the inputs, of every order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, FusionOptions, Width


@FUSIONS.register("low_rank_tensor")
class LowRankTensor(Fusion):
    r"""A linear map of the outer product of all ``[h_m; 1]``, of low rank (LMF, Liu et al., arXiv 1806.00064).

    .. math:: z = \frac{1}{R} \sum_{r=1}^{R} \prod_m (W_m^r h_m + b_m^r)

    An absent input leaves its bias, and the product is one of lower order. The biases are 1 at the start, so that
    all orders are there; LMF's weights of the summands are part of W and b.
    """

    class Config(FusionOptions):
        """Options of `LowRankTensor`; ``rank`` is the number of summands R."""

        kind: Literal["low_rank_tensor"] = "low_rank_tensor"
        dim: int = Field(256, gt=0)
        rank: int = Field(4, gt=0)

    reads_tokens: ClassVar[bool] = False

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        self.dim, self.rank = config.dim, config.rank
        self.factors = nn.ModuleDict()
        for name, width in inputs.items():
            factor = nn.Linear(width.dim, config.rank * config.dim)
            nn.init.ones_(factor.bias)
            self.factors[name] = factor

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Multiply the factors; that of an absent input, whose vector is zero, is its bias."""
        parts = torch.stack([factor(encoded[name].vector) for name, factor in self.factors.items()])
        return Encoded(parts.prod(dim=0).unflatten(1, (self.rank, self.dim)).mean(dim=1))
