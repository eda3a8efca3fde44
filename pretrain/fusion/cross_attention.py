"""Cross-attention: the tokens of every input look for something in those of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.encoders.layers import Block
from pretrain.fusion.base import FUSIONS, Fusion, Width
from pretrain.fusion.layers import (
    Adapters,
    AttentionOptions,
    CrossAttention,
    Join,
    PoolKind,
    Tokens,
    build_pools,
    concatenated,
    others,
    refuse_single,
    visible,
)
from shards.errors import ConfigError

OTHERS = "others"


class CrossBlock(nn.Module):
    """Pre-norm block: ``x + attend(norm(x), norm(context))``, averaged over the contexts; ``x + mlp(norm(x))``."""

    def __init__(self, contexts: Sequence[str], options: AttentionOptions) -> None:
        super().__init__()
        dim, hidden = options.dim, options.dim * options.mlp_ratio
        self.attend = nn.ModuleDict({name: CrossAttention(dim, options.heads) for name in contexts})
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(hidden, dim)
        )
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, contexts: Mapping[str, Tokens]) -> Tensor:
        """Update tokens (b, T, dim); a row whose contexts are all empty attends to nothing."""
        found = torch.stack([attend(x, *contexts[name]) for name, attend in self.attend.items()]).sum(dim=0)
        count = torch.stack([contexts[name][1].any(dim=1) for name in self.attend]).sum(dim=0).clamp_min(1)
        x = x + self.dropout(found / count[:, None, None])
        return x + self.dropout(self.mlp(x))


@FUSIONS.register("cross_attention")
class CrossAttentionFusion(Fusion):
    """Blocks in which every input attends to the others, self-attention, pooling, and a join of the vectors.

    All inputs are updated at once: a layer attends to what the layer before made of the others.

    MatMCL's joint encoder of table and image (npj Comput. Mater. 11:276) is ``layers = 5, self_layers = 5`` with
    ``dim = 30, heads = 5`` over a table encoder and a ViT that give tokens. What differs: its masks are causal and it
    reads the last token of each stream, which in the table's is padding; here the whole context is visible, padding
    never is, and the real tokens are pooled.
    """

    class Config(AttentionOptions):
        """Options of `CrossAttentionFusion`.

        Attributes
        ----------
        layers : int
            Blocks of cross-attention.
        self_layers : int
            Blocks of self-attention within each input afterwards.
        context : str
            ``others``: an input attends to all others at once; ``pairs``: to each with weights of its own, averaged
            (M (M - 1) attentions a layer in place of M).
        pool : str
            ``mean`` of the real tokens of each input, or what a learned ``query`` finds in them.
        """

        kind: Literal["cross_attention"] = "cross_attention"
        layers: int = Field(2, gt=0)
        self_layers: int = Field(0, ge=0)
        context: Literal["others", "pairs"] = "others"
        pool: PoolKind = "mean"

    gives_tokens: ClassVar[bool] = True

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        refuse_single(config.kind, inputs)
        refuse_pooled(inputs, pairs=config.context == "pairs")
        dim, heads = config.dim, config.heads
        self.dim = dim
        self.adapters = Adapters(inputs, dim)
        self.cross = nn.ModuleList(
            nn.ModuleDict({name: CrossBlock(self._contexts(name), config) for name in inputs})
            for _ in range(config.layers)
        )
        self.within = nn.ModuleList(
            nn.ModuleDict(
                {name: Block(dim, heads, dim // heads, dim * config.mlp_ratio, config.dropout) for name in inputs}
            )
            for _ in range(config.self_layers)
        )
        self.pool = build_pools(config.pool, inputs, dim, heads)
        self.join = Join(dict.fromkeys(inputs, dim), dim)

    def _contexts(self, name: str) -> list[str]:
        return [OTHERS] if self.config.context == "others" else [other for other in self.inputs if other != name]

    def _seen_by(self, name: str, tokens: Mapping[str, Tokens]) -> Mapping[str, Tokens]:
        return {OTHERS: others(tokens, name)} if self.config.context == "others" else tokens

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Exchange between the inputs, pool, join; the tokens are those of all inputs."""
        tokens = self.adapters(encoded, present)
        for layer in self.cross:
            blocks = cast(Any, layer)
            tokens = {name: (blocks[name](x, self._seen_by(name, tokens)), real) for name, (x, real) in tokens.items()}
        for layer in self.within:
            blocks = cast(Any, layer)
            tokens = {name: (blocks[name](x, visible(real)), real) for name, (x, real) in tokens.items()}
        pooled = {name: self.pool[name](*pair) for name, pair in tokens.items()}
        everything, real = concatenated(list(tokens.values()))
        return Encoded(self.join(pooled, present), everything, real)


def refuse_pooled(inputs: Mapping[str, Width], *, pairs: bool) -> None:
    """Refuse contexts that are one vector each: a softmax over one key is 1, and the attention a linear map."""
    if any(width.tokens for width in inputs.values()) or (len(inputs) > 2 and not pairs):
        return
    raise ConfigError(
        f"no input of {list(inputs)} has tokens: cross-attention to one vector does not depend on the query",
        where="fusions.*.kind",
        why="a softmax over a single key is 1",
        do="take encoders that give tokens, or kind = 'gmca', 'gated' or 'concat'",
    )
