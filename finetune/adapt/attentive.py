"""A learned query attends to the tokens of frozen encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from finetune.adapt.base import ADAPTATIONS
from finetune.adapt.frozen import OnFrozen
from finetune.featurizer import Weighing
from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FusionOptions, Width, any_present
from pretrain.fusion.layers import Adapters, Pool, concatenated, visible

if TYPE_CHECKING:
    from finetune.featurizer import MakeJoin


@ADAPTATIONS.register("attentive")
class Attentive(OnFrozen):
    """Attentive probe: one query, one cross-attention over the tokens of all modalities, and the head.

    As in CAE (Chen et al., arXiv 2202.03026), where it tells what frozen tokens hold that their mean does not.

    Attributes
    ----------
    dim, heads : int
        Width to which tokens are mapped, and heads of the attention.
    """

    kind: Literal["attentive"] = "attentive"
    dim: int = Field(128, gt=0)
    heads: int = Field(4, gt=0)

    @model_validator(mode="after")
    def _whole_heads(self) -> Attentive:
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} cannot be cut into {self.heads} heads")
        return self

    def join(self) -> MakeJoin:
        """Return the probe."""
        return lambda widths: AttentiveJoin(widths, self.dim, self.heads)


class AttentiveJoin(Weighing):
    """What a learned query finds in the vectors and tokens of all inputs; a learned vector where there is nothing."""

    def __init__(self, inputs: Mapping[str, Width], dim: int, heads: int) -> None:
        super().__init__(FusionOptions(kind="attentive"), inputs)
        self.dim = dim
        self.adapters, self.pool = Adapters(inputs, dim), Pool("query", dim, heads)
        self.nothing = nn.Parameter(0.02 * torch.randn(dim))

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Attend."""
        found = self.pool(*concatenated(list(self.adapters(encoded, present).values())))
        return Encoded(torch.where(any_present(present)[:, None], found, self.nothing))

    def importance(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Tensor:
        """Return what of the attention, mean over the heads, goes to the tokens of each input (b, M)."""
        parts = self.adapters(encoded, present)
        context, real = concatenated(list(parts.values()))
        attention = self.pool.attend
        query = attention.query(attention.norm(self.pool.query)).unflatten(-1, (attention.heads, -1))
        key = attention.key(attention.norm_context(context)).unflatten(-1, (attention.heads, -1))
        scores = torch.einsum("qhd,bthd->bht", query, key) / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~visible(real)[:, None], float("-inf")).softmax(dim=-1).mean(dim=1) * real
        return torch.stack([part.sum(dim=1) for part in weights.split([t.shape[1] for t, _ in parts.values()], 1)], 1)
