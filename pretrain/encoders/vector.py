"""A perceptron over a fixed vector: the smallest complete encoder plug-in, and the one to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec, Value


@ENCODERS.register("vector")
class VectorEncoder(Encoder):
    """Every field of the modality, flattened and standardised by training statistics -> one hidden layer -> vector."""

    class Config(Options):
        """Options of `VectorEncoder`."""

        kind: Literal["vector"] = "vector"
        hidden: int = Field(256, ge=1)
        dim: int = Field(128, ge=2)

    reads: ClassVar[frozenset[str]] = frozenset({"vector"})
    centre: Tensor
    scale: Tensor

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.register_buffer("centre", torch.tensor(fitted["mean"]))
        self.register_buffer("scale", torch.tensor(fitted["std"]))
        self.mlp = nn.Sequential(
            nn.Linear(len(fitted["mean"]), config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
        )

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn mean and deviation of every entry."""
        arrays = [cast(Mapping[str, np.ndarray], value) for value in values]
        rows = np.stack([np.concatenate([np.ravel(value[name]) for name in spec.fields]) for value in arrays])
        return {"mean": rows.mean(0).tolist(), "std": (rows.std(0) + 1e-6).tolist()}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R vectors."""
        flat = torch.cat([cast(Tensor, inputs[name]).flatten(1).float() for name in self.spec.fields], dim=1)
        return Encoded(self.mlp(((flat - self.centre) / self.scale).to(self.centre.dtype)))
