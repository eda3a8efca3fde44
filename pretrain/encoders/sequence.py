"""Transformer over sequences of token ids: SMILES, and whatever else is written in a closed vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.layers import Block
from pretrain.encoders.ragged import masked_mean, padded
from shards.batch import Inputs
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import ModalitySpec, Value
from shards.vocabulary import FIRST, PADDING, UNKNOWN


@ENCODERS.register("smiles_transformer")
class SmilesTransformer(Encoder):
    """Token ids -> vector by a transformer.

    The encoder of the SMILES Transformer (Honda et al., arXiv 1911.04738): 4 blocks of 4 heads, 256 wide, mean over
    the tokens. Of that size: ``{ kind = "smiles_transformer", depth = 4, heads = 4, head_dim = 64, mlp_dim = 256,
    dim = 256, dropout = 0.1 }``.

    Deviations: pre-norm, learned places, a start token (so that no sequence is empty), and the mean alone where
    theirs joins mean, maximum and first token of two layers. Padding is masked; the masked token of augmentation
    (`shards.vocabulary.MASK`) is a token like others.
    """

    class Config(Options):
        """Options of `SmilesTransformer`."""

        kind: Literal["smiles_transformer"] = "smiles_transformer"
        dim: int = Field(128, ge=2)
        depth: int = Field(2, ge=0)
        heads: int = Field(4, ge=1)
        head_dim: int = Field(32, ge=1)
        mlp_dim: int = Field(256, ge=1)
        max_tokens: int = Field(256, ge=1, description="longer sequences are cut")
        dropout: float = Field(0.1, ge=0, lt=1)

    reads: ClassVar[frozenset[str]] = frozenset({"sequence"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim, self.vocabulary = config.dim, int(fitted["vocabulary"])
        self.field, self.axis = sequence_field(spec)
        self.token = nn.Embedding(self.vocabulary, config.dim, padding_idx=PADDING)
        self.place = nn.Embedding(1 + config.max_tokens, config.dim)
        self.start = nn.Parameter(torch.zeros(1, config.dim))
        for weight in (self.token.weight, self.place.weight, self.start):
            nn.init.normal_(weight, std=0.1)
        with torch.no_grad():
            self.token.weight[PADDING].zero_()
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.head_dim, config.mlp_dim, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Take the size of the vocabulary from the feature step, or from the training values where it names none."""
        if "vocabulary" in spec.feature:
            return {"vocabulary": int(spec.feature["vocabulary"])}
        name, _ = sequence_field(spec)
        tops = [int(np.max(cast(Mapping, value)[name], initial=FIRST)) for value in values]
        return {"vocabulary": max(tops, default=FIRST) + 1}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R sequences; the first token is the start."""
        ids, mask = padded(
            cast(Tensor, inputs[self.field]), cast(Tensor, inputs[f"{self.axis}_ptr"]), most=self.config.max_tokens
        )
        return self.encode(torch.where(mask, ids.long(), PADDING), mask)

    def encode(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Encode padded ids (R, T); ``mask`` (R, T) is True for real tokens, and ids elsewhere do not matter."""
        known = torch.where((ids >= 0) & (ids < self.vocabulary), ids, UNKNOWN)
        x = torch.cat([self.start.expand(len(ids), 1, -1), self.token(known)], dim=1)
        x = x + self.place(torch.arange(x.shape[1], device=ids.device))
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Encoded(masked_mean(x, mask), x, mask)


def sequence_field(spec: ModalitySpec) -> tuple[str, str]:
    """Return the one field of token ids and its ragged axis."""
    names = [name for name, field in spec.fields.items() if len(field.shape) == 1 and field.ragged_axis == 0]
    if len(names) != 1:
        raise ConfigError(f"modality '{spec.name}' has fields {sorted(spec.fields)}, a sequence encoder reads one")
    return names[0], str(spec.fields[names[0]].shape[0])
