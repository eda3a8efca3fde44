"""What the networks on molecules share: features of atoms and bonds in, atoms out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretrain.encoders.atoms import ElementEmbedding, pool_mean, pool_sum, tensor
from pretrain.encoders.base import Encoded, Encoder
from pretrain.encoders.graphs import need_fields
from pretrain.encoders.ragged import padded
from shards.batch import Inputs
from shards.schema import ModalitySpec

FIELDS = ("atomic_numbers", "masses_u", "atom_features", "edge_index", "bond_features")
MASS_UNIT_U = 100.0


class AtomFeatures(nn.Module):
    """Element, chemical environment and mass of each atom -> (N, dim), linear."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.elements = ElementEmbedding(dim)
        self.linear = nn.Linear(width + 1, dim, bias=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """Embed the atoms of R molecules."""
        elements = self.elements(tensor(inputs, "atomic_numbers"))
        mass = tensor(inputs, "masses_u").float()[:, None] / MASS_UNIT_U
        features = torch.cat([tensor(inputs, "atom_features").float(), mass], dim=1)
        return elements + self.linear(features.to(elements.dtype))


class MolecularNetwork(Encoder):
    """Frame of the networks on molecules: a subclass implements `atoms`; they are the tokens, their pool the vector.

    Nothing follows the pool, so that with ``pool = "sum"`` the vector of two molecules in one row is the sum of theirs.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"graph"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        need_fields(spec, config.kind, FIELDS, "molecule")
        self.dim = config.dim
        self.atom_width, self.bond_width = (int(spec.fields[name].shape[1]) for name in FIELDS[2::2])

    def atoms(self, inputs: Inputs) -> Tensor:
        """Return what the messages make of each atom: (N, dim)."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R molecules; tokens are the atoms."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        x = self.atoms(inputs)
        vector = (pool_sum if self.config.pool == "sum" else pool_mean)(x, row, rows)
        if not self.tokens_wanted:
            return Encoded(vector)
        return Encoded(vector, *padded(x, tensor(inputs, "atoms_ptr")))
