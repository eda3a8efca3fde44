"""Layers that the fusions share: adapters to a common width, a join of vectors, attention to a context, pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain.encoders.attention import attend
from pretrain.encoders.base import Encoded
from pretrain.encoders.ragged import masked_mean
from pretrain.fusion.base import FusionOptions, Width, token_view
from shards.errors import ConfigError

PoolKind = Literal["mean", "query"]
Tokens = tuple[Tensor, Tensor]
"""(b, T, dim), and (b, T) bool, True = real token."""


class AttentionOptions(FusionOptions):
    """What every fusion by attention takes.

    Attributes
    ----------
    dim, heads, mlp_ratio : int
        Width of the tokens, heads of ``dim / heads`` each, hidden width of the perceptrons in units of ``dim``.
    dropout : float
        Of attended values and in the perceptrons.
    """

    dim: int = Field(256, gt=0)
    heads: int = Field(8, gt=0)
    mlp_ratio: int = Field(4, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> AttentionOptions:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} cannot be cut into {self.heads} heads")
        return self


class Adapters(nn.Module):
    """A linear map to a common width for each input; its bias tells the inputs' tokens apart."""

    def __init__(self, inputs: Mapping[str, Width], dim: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width.dim, dim) for name, width in inputs.items()})

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> dict[str, Tokens]:
        """Return the tokens of every input, of which the first is its vector."""
        views = {name: token_view(encoded[name], present[name]) for name in self.maps}
        return {name: (self.maps[name](tokens), real) for name, (tokens, real) in views.items()}


class Join(nn.Module):
    """Linear map of the concatenated vectors of all inputs, a learned vector in place of what is absent.

    The map of a concatenation is the sum of one map an input, and is computed as such: ``sum_m W_m h_m + b_m``, with
    a vector ``a_m`` in place of the summand where m is absent. Zeros with flags of presence give the same functions.
    """

    def __init__(self, widths: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in widths.items()})
        for name in widths:
            # its own parameters, not a ParameterDict's: ZeRO 3 gathers those of the module whose forward runs
            self.register_parameter(f"absent_{name}", nn.Parameter(0.02 * torch.randn(dim)))

    def forward(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return (b, dim) from vectors (b, D) by input."""
        parts = [
            torch.where(present[name][:, None], linear(vectors[name]), self.get_parameter(f"absent_{name}"))
            for name, linear in self.maps.items()
        ]
        return torch.stack(parts).sum(dim=0)


class CrossAttention(nn.Module):
    """What tokens find in a context: multi-head attention of ``norm(x)`` to ``norm(context)``; zero where it is empty.

    Not torch's MultiheadAttention, of which ZeRO 3 cannot gather the output's weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_context = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # a softmax does not change with a bias of the keys: its gradient is rounding, which Adam would follow
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, real: Tensor) -> Tensor:
        """Return (b, T, dim) for tokens x (b, T, dim), a context (b, C, dim) and its mask (b, C)."""
        context = self.norm_context(context)
        projected = self.query(self.norm(x)), self.key(context), self.value(context)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in projected)
        # rows without any key attend to all, which is finite, and their result is dropped
        found = attend(query, key, value, visible(real)[:, None, None])
        empty = ~real.any(dim=1)
        return self.out(found.transpose(1, 2).flatten(2)).masked_fill(empty[:, None, None], 0.0)


class Pool(nn.Module):
    """Tokens -> one vector: the mean of the real ones, or what a learned query finds in them; zero where none is."""

    def __init__(self, kind: PoolKind, dim: int, heads: int) -> None:
        super().__init__()
        if kind == "query":
            self.query = nn.Parameter(0.02 * torch.randn(1, dim))
            self.attend = CrossAttention(dim, heads)
        else:
            self.norm = nn.LayerNorm(dim)
        self.kind = kind

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Return (b, dim)."""
        if self.kind == "query":
            return self.attend(self.query.expand(len(tokens), -1, -1), tokens, real)[:, 0]
        return masked_mean(self.norm(tokens), real)


def visible(real: Tensor) -> Tensor:
    """Return a mask (b, T) under which a softmax is finite: rows without any real token see their zeros."""
    return real | ~real.any(dim=1, keepdim=True)


def build_pools(kind: PoolKind, inputs: Mapping[str, Width], dim: int, heads: int) -> nn.ModuleDict:
    """Return a pool for every input; where it is one vector, a query would find the same whatever it asks."""
    return nn.ModuleDict({name: Pool(kind if width.tokens else "mean", dim, heads) for name, width in inputs.items()})


def concatenated(tokens: Sequence[Tokens]) -> Tokens:
    """Join sequences of tokens to one."""
    return torch.cat([x for x, _ in tokens], dim=1), torch.cat([real for _, real in tokens], dim=1)


def others(tokens: Mapping[str, Tokens], name: str) -> Tokens:
    """Return the tokens of all inputs but one."""
    return concatenated([pair for other, pair in tokens.items() if other != name])


def refuse_single(kind: str, inputs: Mapping[str, Width]) -> None:
    """Refuse a fusion of one input where the inputs attend to each other."""
    if len(inputs) < 2:
        raise ConfigError(
            f"a fusion '{kind}' joins two inputs or more, here {list(inputs)}",
            where="fusions.*.inputs",
            why="its inputs attend to each other",
            do="add inputs, or take kind = 'token_transformer'",
        )
