"""A transformer over the tokens of all inputs and one that reads them: CoMM's fusion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.encoders.layers import Block
from pretrain.fusion.base import FUSIONS, Fusion, Width
from pretrain.fusion.layers import Adapters, AttentionOptions, concatenated


@FUSIONS.register("token_transformer")
class TokenTransformer(Fusion):
    """[CLS; all inputs' vectors and tokens] through pre-norm transformer blocks; the joint vector is what CLS becomes.

    CoMM (arXiv 2409.07402) has one block with 8 heads and a perceptron of 4 widths, without dropout; its QuickGELU is
    GELU here, a norm follows the last block, and an input's vector is one more token. Padding and absent inputs are
    masked in every block, in training as in evaluation (the published code forgets it where an input is masked out).
    """

    class Config(AttentionOptions):
        """Options of `TokenTransformer`; ``layers`` is the number of blocks."""

        kind: Literal["token_transformer"] = "token_transformer"
        layers: int = Field(1, gt=0)
        dropout: float = Field(0.0, ge=0, lt=1)

    gives_tokens: ClassVar[bool] = True

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        self.dim = config.dim
        self.adapters = Adapters(inputs, config.dim)
        self.cls = nn.Parameter(0.02 * torch.randn(1, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dim // config.heads, config.dim * config.mlp_ratio, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Attend among all real tokens; CLS is there in every row."""
        x, real = concatenated(list(self.adapters(encoded, present).values()))
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        mask = torch.cat([real.new_ones(len(x), 1), real], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Encoded(x[:, 0], x[:, 1:], real)
