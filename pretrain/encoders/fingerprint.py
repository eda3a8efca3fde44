"""A perceptron over fingerprints: bits or counts, most of them zero."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pretrain.encoders.atoms import tensor
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec


@ENCODERS.register("fingerprint")
class Fingerprint(Encoder):
    """Fingerprint -> vector: ``log(1 + count)`` of every entry, then linear maps with layer norm, GELU and dropout.

    Unlike `VectorEncoder` it does not standardise: an environment that no training molecule has would be divided by
    a deviation of zero, and a new molecule that has it would drown everything else. The log keeps 0 at 0, bits in
    proportion, and counts (up to 255) in bounds. The usual partner of graphs in multimodal studies of molecules; its
    widths are ours.
    """

    class Config(Options):
        """Options of `Fingerprint`."""

        kind: Literal["fingerprint"] = "fingerprint"
        hidden: tuple[int, ...] = Field((512,), min_length=1, description="widths of the hidden layers")
        dim: int = Field(128, ge=2)
        dropout: float = Field(0.2, ge=0, lt=1)

    reads: ClassVar[frozenset[str]] = frozenset({"vector"})

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        (field,) = spec.fields.values()
        widths = (int(field.shape[0]), *config.hidden)
        hidden = [
            layer
            for first, second in pairwise(widths)
            for layer in (nn.Linear(first, second), nn.LayerNorm(second), nn.GELU(), nn.Dropout(config.dropout))
        ]
        self.mlp = nn.Sequential(*hidden, nn.Linear(widths[-1], config.dim))

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R fingerprints."""
        (name,) = self.spec.fields
        counts = tensor(inputs, name).float().log1p()
        return Encoded(self.mlp(counts.to(next(self.parameters()).dtype)))
