"""Encoders of process tables: the FT-Transformer and a perceptron."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.layers import Block
from pretrain.encoders.mlp import Activation, perceptron
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec, Value


class TableEncoder(Encoder):
    """Common part: numbers standardised by the training values that are known, categories by number.

    A table has the fields ``numeric`` (n,) with ``known`` (n,), ``categories`` (m,), or both
    (`shards.features.table`). What stands in a number's place where it is not known never matters.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"table"})
    centre: Tensor
    scale: Tensor

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.register_buffer("centre", torch.tensor(fitted["mean"], dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(fitted["std"], dtype=torch.float32))
        self.counts: list[int] = fitted["counts"]

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Any, values: Iterable[Value]) -> dict[str, Any]:
        """Learn mean and deviation of every numeric column, and how many categories every other one has."""
        rows = [cast(Mapping[str, np.ndarray], value) for value in values]
        fitted: dict[str, Any] = {"mean": [], "std": [], "counts": []}
        if "numeric" in spec.fields:
            known = np.stack([row["known"] for row in rows]).astype(bool)
            numeric = np.stack([row["numeric"] for row in rows]).astype(np.float64)
            count = np.maximum(known.sum(0), 1)
            mean = numeric.sum(0, where=known) / count
            deviation = np.sqrt(((numeric - mean) ** 2).sum(0, where=known) / count)
            fitted["mean"] = mean.tolist()
            # a column that is constant in training, but for rounding, says nothing about how much a change means
            fitted["std"] = np.where(deviation > 1e-9 * np.abs(mean), deviation, 1.0).tolist()
        if "categories" in spec.fields:
            named = spec.feature.get("categorical")
            most = np.stack([row["categories"] for row in rows]).max(0)
            fitted["counts"] = [1 + len(names) for names in named.values()] if named else (1 + most).tolist()
        return fitted

    def numbers(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return standardised numbers (R, n), 0 where unknown, and which are known (R, n)."""
        known = cast(Tensor, inputs["known"]).bool()
        scaled = (cast(Tensor, inputs["numeric"]).float() - self.centre.float()) / self.scale.float()
        return scaled.masked_fill(~known, 0.0).to(self.centre.dtype), known

    def codes(self, inputs: Inputs) -> Tensor:
        """Return categories (R, m) as rows of one embedding table; a category that training never had is unknown, 0."""
        categories = cast(Tensor, inputs["categories"]).long()
        counts = torch.tensor(self.counts, device=categories.device)
        return torch.where(categories < counts, categories, 0) + counts.cumsum(0) - counts


@ENCODERS.register("ft_transformer")
class FTTransformer(TableEncoder):
    """Table -> vector by the FT-Transformer (Gorishniy et al., NeurIPS 2021, arXiv 2106.11959).

    Every column is a token: a number times a vector of its column, a category's embedding, both plus a bias of the
    column; a number that is not known is a learned token of its column. A class token is put before them, pre-norm
    blocks follow, and norm, ReLU and a linear map read the class token. As MatMCL has it: ``{ kind =
    "ft_transformer", depth = 3, heads = 8, head_dim = 24, mlp_dim = 256, dim = 192 }``.

    Deviations: GELU instead of ReGLU, and a norm before the first attention too. Tokens are the columns.
    """

    class Config(Options):
        """Options of `FTTransformer`."""

        kind: Literal["ft_transformer"] = "ft_transformer"
        dim: int = Field(128, ge=2)
        depth: int = Field(2, ge=0)
        heads: int = Field(4, ge=1)
        head_dim: int = Field(32, ge=1)
        mlp_dim: int = Field(256, ge=1)
        dropout: float = Field(0.1, ge=0, lt=1)

    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        dim, numeric, categorical = config.dim, len(self.centre), len(self.counts)

        def vectors(count: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, dim).uniform_(-(dim**-0.5), dim**-0.5))

        self.cls = vectors(1)
        if numeric:
            self.weight, self.bias, self.unknown = vectors(numeric), vectors(numeric), vectors(numeric)
        if categorical:
            self.category, self.category_bias = nn.Embedding(sum(self.counts), dim), vectors(categorical)
            nn.init.uniform_(self.category.weight, -(dim**-0.5), dim**-0.5)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.head_dim, config.mlp_dim, config.dropout) for _ in range(config.depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))

    def columns(self, inputs: Inputs) -> Tensor:
        """Return a token for every column (R, n + m, dim)."""
        tokens = []
        if len(self.centre):
            numbers, known = self.numbers(inputs)
            tokens.append(torch.where(known[..., None], numbers[..., None] * self.weight + self.bias, self.unknown))
        if self.counts:
            tokens.append(self.category(self.codes(inputs)) + self.category_bias)
        return torch.cat(tokens, dim=1)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R rows."""
        columns = self.columns(inputs)
        x = torch.cat([self.cls.expand(len(columns), -1, -1), columns], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.out(x)
        return Encoded(x[:, 0], x[:, 1:])


@ENCODERS.register("table_mlp")
class TableMLP(TableEncoder):
    """Table -> vector by a perceptron over the numbers, which of them are known, and the categories' embeddings.

    As MatMCL has it, whose conditions are all known: ``{ kind = "table_mlp", layers = 4, hidden = 512, dim = 128,
    activation = "relu", dropout = 0 }``.
    """

    class Config(Options):
        """Options of `TableMLP`."""

        kind: Literal["table_mlp"] = "table_mlp"
        dim: int = Field(128, ge=2)
        layers: int = Field(2, ge=0, description="hidden layers")
        hidden: int = Field(256, ge=1)
        category_dim: int = Field(8, ge=1, description="width of a category's embedding")
        activation: Activation = "gelu"
        dropout: float = Field(0.1, ge=0, lt=1)

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        width = 2 * len(self.centre) + config.category_dim * len(self.counts)
        self.category = nn.Embedding(sum(self.counts), config.category_dim) if self.counts else None
        self.mlp = perceptron((width, *[config.hidden] * config.layers, config.dim), config.activation, config.dropout)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R rows."""
        parts = []
        if len(self.centre):
            numbers, known = self.numbers(inputs)
            parts += [numbers, known.to(numbers.dtype)]
        if self.category is not None:
            parts.append(self.category(self.codes(inputs)).flatten(1))
        return Encoded(self.mlp(torch.cat(parts, dim=1)))
