"""Gated multi-head cross-attention: each input takes from the others what a gate lets in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, Width
from pretrain.fusion.layers import (
    Adapters,
    AttentionOptions,
    CrossAttention,
    Join,
    PoolKind,
    build_pools,
    concatenated,
    others,
    refuse_single,
)


class GatedMerge(nn.Module):
    r"""Merge tokens with what they found: ``norm(g c + (1 - g) x)``, ``g = sigmoid(W [x; c] + b)`` as wide as x.

    Where nothing could be found, x stays as it is.
    """

    def __init__(self, dim: int, bias: float) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.gate.bias, bias)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, c: Tensor, found: Tensor) -> Tensor:
        """Return (b, T, dim) for x, c (b, T, dim) and found (b,) bool."""
        g = self.gate(torch.cat([x, c], dim=-1)).sigmoid() * found[:, None, None]
        return self.norm(g * c + (1 - g) * x)


@FUSIONS.register("gmca")
class GMCA(Fusion):
    """Cross-attention to the others, a gate between what it found and the input, pooling, and a join of the vectors.

    After GMCA-SDP (Wang and Liu, Appl. Sci. 15, 11259), which joins code metrics with two graphs of a program. The
    gate sees both sides, so that products of inputs can be expressed (an XOR), which gates that see their own input
    alone cannot: also with one vector an input, where the attention itself is linear.
    """

    class Config(AttentionOptions):
        """Options of `GMCA`.

        Attributes
        ----------
        gate_bias : float
            At the start; negative: near the inputs themselves.
        pool : str
            ``mean`` of the real tokens of each input, or what a learned ``query`` finds in them.
        """

        kind: Literal["gmca"] = "gmca"
        gate_bias: float = Field(-2.0, allow_inf_nan=False)
        pool: PoolKind = "mean"

    gives_tokens: ClassVar[bool] = True

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        refuse_single(config.kind, inputs)
        self.dim = config.dim
        self.adapters = Adapters(inputs, config.dim)
        self.attend = nn.ModuleDict({name: CrossAttention(config.dim, config.heads) for name in inputs})
        self.merge = nn.ModuleDict({name: GatedMerge(config.dim, config.gate_bias) for name in inputs})
        self.dropout = nn.Dropout(config.dropout)
        self.pool = build_pools(config.pool, inputs, config.dim, config.heads)
        self.join = Join(dict.fromkeys(inputs, config.dim), config.dim)

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Attend, gate, pool, join; the tokens are those of all inputs."""
        tokens = self.adapters(encoded, present)
        merged = {}
        for name, (x, real) in tokens.items():
            context, there = others(tokens, name)
            found = self.dropout(self.attend[name](x, context, there))
            merged[name] = self.merge[name](x, found, there.any(dim=1)), real
        pooled = {name: self.pool[name](*pair) for name, pair in merged.items()}
        everything, real = concatenated(list(merged.values()))
        return Encoded(self.join(pooled, present), everything, real)
