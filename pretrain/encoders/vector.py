"""A perceptron over a fixed vector: the smallest complete encoder plug-in, and the one to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.mlp import Activation, perceptron
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec, Value


@ENCODERS.register("vector")
class VectorEncoder(Encoder):
    """Every field of the modality, flattened and standardised by training statistics -> perceptron -> vector.

    As published for MultiMat's 768 numbers of a frozen MatBERT (arXiv 2312.00111): ``{ kind = "vector", layers = 2,
    hidden = 512, dim = 128, activation = "relu", standardise = false }``.
    """

    class Config(Options):
        """Options of `VectorEncoder`."""

        kind: Literal["vector"] = "vector"
        layers: int = Field(1, ge=0, description="hidden layers")
        hidden: int = Field(256, ge=1)
        dim: int = Field(128, ge=2)
        activation: Activation = "gelu"
        dropout: float = Field(0.0, ge=0, lt=1)
        standardise: bool = True

    reads: ClassVar[frozenset[str]] = frozenset({"vector"})
    centre: Tensor
    scale: Tensor

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim, width = config.dim, len(fitted["mean"])
        self.register_buffer("centre", torch.tensor(fitted["mean"]))
        self.register_buffer("scale", torch.tensor(fitted["std"]))
        self.mlp = perceptron((width, *[config.hidden] * config.layers, self.dim), config.activation, config.dropout)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn mean and deviation of every entry."""
        arrays = [cast(Mapping[str, np.ndarray], value) for value in values]
        rows = np.stack([np.concatenate([np.ravel(value[name]) for name in spec.fields]) for value in arrays])
        if not config.standardise:
            return {"mean": [0.0] * rows.shape[1], "std": [1.0] * rows.shape[1]}
        return {"mean": rows.mean(0).tolist(), "std": (rows.std(0) + 1e-6).tolist()}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R vectors."""
        flat = torch.cat([cast(Tensor, inputs[name]).flatten(1).float() for name in self.spec.fields], dim=1)
        return Encoded(self.mlp(((flat - self.centre) / self.scale).to(self.centre.dtype)))
