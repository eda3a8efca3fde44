"""D-MPNN: messages along directed bonds, which never go straight back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.depth import Stages
from pretrain.encoders.atoms import pool_sum, tensor
from pretrain.encoders.base import ENCODERS
from pretrain.encoders.molecular import AtomFeatures, MolecularNetwork
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec


@ENCODERS.register("dmpnn")
class DMPNN(MolecularNetwork):
    """Molecular graph -> vector by directed message passing (Yang et al., J. Chem. Inf. Model. 59, 3370, 2019).

    States live on directed bonds v -> w: ``h0 = ReLU(W_i [x_v, e_vw])``, then ``layers`` times
    ``h_vw = ReLU(h0_vw + W_m m_vw)`` with ``m_vw = sum of h_kv over the neighbours k of v but w``: no message returns
    straight to the atom it came from (tottering). Atoms: ``ReLU(W_a [x_v, sum_k h_kv])``; then their sum or mean.
    W_i and W_a are split into a part of each input: the same maps, computed once an atom.

    Deviations: the features of atoms and bonds are those of the data set (`shards.molecules`), beside an embedding of
    tabulated element features. As published: ``{ kind = "dmpnn", layers = 3, dim = 300, pool = "mean", dropout = 0
    }``; its successors sum (``pool = "sum"``).
    """

    class Config(Options):
        """Options of `DMPNN`."""

        kind: Literal["dmpnn"] = "dmpnn"
        layers: int = Field(3, ge=1, description="updates of each bond's state, T")
        dim: int = Field(300, ge=2)
        pool: Literal["mean", "sum"] = "mean"
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        dim = config.dim
        self.start, self.bonds = AtomFeatures(self.atom_width, dim), nn.Linear(self.bond_width, dim, bias=False)
        self.message = nn.Linear(dim, dim, bias=False)
        self.end, self.gathered = AtomFeatures(self.atom_width, dim), nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def atoms(self, inputs: Inputs) -> Tensor:
        """Return the atoms (N, dim)."""
        target = tensor(inputs, "edge_index")[1]
        ends = self.end(inputs)
        gathered = pool_sum(self.states(inputs), target, len(ends))
        return self.dropout((ends + self.gathered(gathered)).relu())

    def states(self, inputs: Inputs) -> Tensor:
        """Return the states (E, dim) of the directed bonds after the last update."""
        index, starts = tensor(inputs, "edge_index"), self.start(inputs)
        first = (starts[index[0]] + self.bonds(tensor(inputs, "bond_features").to(starts.dtype))).relu()
        back, state = reverse_edges(index, len(starts)), first
        for _ in range(self.config.layers):
            state = self.dropout((first + self.message(messages(state, index, back, len(starts)))).relu())
        return state

    def stages(self) -> Stages:
        """Return what makes the first states, the message that is used ``layers`` times, and what makes the atoms."""
        parts = (self.start, self.bonds), (self.message,), (self.end, self.gathered)
        return [[parameter for module in part for parameter in module.parameters()] for part in parts]


def messages(state: Tensor, index: Tensor, back: Tensor, atoms: int) -> Tensor:
    """Return for each directed bond v -> w the sum of the states (E, D) that enter v, but for that of w -> v."""
    with_nothing = torch.cat([state, state.new_zeros(1, state.shape[1])])
    return pool_sum(state, index[1], atoms)[index[0]] - with_nothing[back]


def reverse_edges(index: Tensor, atoms: int) -> Tensor:
    """Return the place of each edge's reverse (E,) among the edges (2, E); E where there is none."""
    source, target = index
    key, wanted = source * atoms + target, target * atoms + source
    ordered, order = key.sort()
    place = torch.searchsorted(ordered, wanted).clamp_max(len(key) - 1)
    return torch.where(ordered[place] == wanted, order[place], len(key))
