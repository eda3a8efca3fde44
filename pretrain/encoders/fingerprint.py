"""A perceptron over fingerprints: bits or counts, most of them zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pretrain.encoders.atoms import tensor
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.mlp import perceptron
from shards.batch import Inputs
from shards.errors import ConfigError
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
        self.mlp = perceptron((_length(spec), *config.hidden, config.dim), dropout=config.dropout, norm=True)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R fingerprints."""
        (name,) = self.spec.fields
        counts = tensor(inputs, name).float().log1p()
        return Encoded(self.mlp(counts.to(next(self.parameters()).dtype)))


def _length(spec: ModalitySpec) -> int:
    """Return the number of entries of a fingerprint, or raise where the vectors are none: a log needs counts."""
    shapes = [field.shape for field in spec.fields.values() if np.issubdtype(field.dtype, np.unsignedinteger)]
    if len(spec.fields) != 1 or [len(shape) for shape in shapes] != [1]:
        fields = ", ".join(f"{name}: {field.dtype} {field.shape}" for name, field in spec.fields.items())
        raise ConfigError(
            f"encoder 'fingerprint' cannot read the vectors of '{spec.name}'",
            where=f"modalities.{spec.name}.encoder",
            why=f"they are {fields}, not one row of unsigned integers",
            do="use encoder.kind = 'vector', or a modality made by the feature step 'fingerprint'",
        )
    return int(shapes[0][0])
