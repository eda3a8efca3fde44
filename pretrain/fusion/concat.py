"""Concatenation: the plainest fusion, and the one to measure the others against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, FusionOptions, Width
from pretrain.fusion.layers import Join


@FUSIONS.register("concat")
class Concat(Fusion):
    """Vectors of all inputs, side by side, through a linear map or a perceptron ("early fusion").

    An absent input is a learned vector in the first map's output; see `Join`.
    """

    class Config(FusionOptions):
        """Options of `Concat`.

        Attributes
        ----------
        dim : int
            Width of the joint vector.
        hidden : int
            Width of a hidden layer with GELU; 0: a linear map.
        dropout : float
            After the hidden layer.
        """

        kind: Literal["concat"] = "concat"
        dim: int = Field(256, gt=0)
        hidden: int = Field(0, ge=0)
        dropout: float = Field(0.0, ge=0, lt=1)

    reads_tokens: ClassVar[bool] = False

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        self.dim = config.dim
        self.join = Join({name: width.dim for name, width in inputs.items()}, config.hidden or config.dim)
        self.mlp = (
            nn.Sequential(nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.dim))
            if config.hidden
            else nn.Identity()
        )

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Join the vectors."""
        return Encoded(self.mlp(self.join({name: part.vector for name, part in encoded.items()}, present)))
