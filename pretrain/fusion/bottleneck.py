"""Attention bottleneck: groups of inputs that exchange through a few tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.encoders.layers import Block
from pretrain.fusion.base import FUSIONS, Fusion, Width
from pretrain.fusion.layers import Adapters, AttentionOptions, Pool, PoolKind, concatenated, refuse_single
from shards.errors import ConfigError

SHARED = -1


@FUSIONS.register("attention_bottleneck")
class AttentionBottleneck(Fusion):
    """Transformer blocks in which a token sees its own group and the bottleneck tokens, which see everything.

    What one group knows reaches another after two layers, compressed into ``bottlenecks`` tokens; the joint vector is
    read from these alone. Madrigal (arXiv 2503.02781) has the groups [[structure, graph, viability], [transcriptome]]
    with 2 layers, 8 heads and 4 bottleneck tokens, and a code of position on the first group, which the adapters'
    biases are here. Padding and absent inputs are masked, the bottleneck tokens never are.
    """

    class Config(AttentionOptions):
        """Options of `AttentionBottleneck`.

        Attributes
        ----------
        layers : int
            Transformer blocks; with one, no group hears of another except in the joint vector.
        bottlenecks : int
            Tokens through which the groups exchange.
        groups : tuple of tuple of str
            The inputs of each group, every input once; by default each input is a group of its own.
        pool : str
            What a learned ``query`` finds in the bottleneck tokens, or their ``mean``.
        """

        kind: Literal["attention_bottleneck"] = "attention_bottleneck"
        layers: int = Field(2, gt=0)
        bottlenecks: int = Field(4, gt=0)
        groups: tuple[tuple[str, ...], ...] = ()
        pool: PoolKind = "query"

    gives_tokens: ClassVar[bool] = True

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        refuse_single(config.kind, inputs)
        groups = config.groups or tuple((name,) for name in inputs)
        check_groups(groups, inputs)
        self.group = {name: number for number, group in enumerate(groups) for name in group}
        self.dim = config.dim
        self.adapters = Adapters(inputs, config.dim)
        self.bottleneck = nn.Parameter(0.02 * torch.randn(config.bottlenecks, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dim // config.heads, config.dim * config.mlp_ratio, config.dropout)
            for _ in range(config.layers)
        )
        self.pool = Pool(config.pool, config.dim, config.heads)

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Exchange through the bottleneck and read it; its tokens are the joint tokens."""
        x, mask = self.laid_out(encoded, present)
        for block in self.blocks:
            x = block(x, mask)
        read = x[:, : self.config.bottlenecks]
        real = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
        return Encoded(self.pool(read, real), read, real)

    def laid_out(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the tokens (b, T, dim), bottlenecks first, and who sees whom (b, T, T): row = who, column = whom."""
        tokens = self.adapters(encoded, present)
        parts, there = concatenated(list(tokens.values()))
        first = self.bottleneck.expand(len(parts), -1, -1).to(parts.dtype)
        real = torch.cat([there.new_ones(first.shape[:2]), there], dim=1)
        numbers = [there.new_full(x.shape[1:2], self.group[name], dtype=torch.long) for name, (x, _) in tokens.items()]
        group = torch.cat([there.new_full(first.shape[1:2], SHARED, dtype=torch.long), *numbers])
        sees = (group[:, None] == group) | (group[:, None] == SHARED) | (group == SHARED)
        return torch.cat([first, parts], dim=1), sees & real[:, None]


def check_groups(groups: tuple[tuple[str, ...], ...], inputs: Mapping[str, Width]) -> None:
    """Raise `ConfigError` where the groups are not two or more that hold every input once."""
    if len(groups) < 2 or sorted(name for group in groups for name in group) != sorted(inputs):
        raise ConfigError(
            f"the groups {[list(group) for group in groups]} are not two or more that hold every input once",
            where="fusions.*.groups",
            why=f"the inputs are {list(inputs)}",
            do="leave 'groups' out, and each input is a group of its own",
        )
