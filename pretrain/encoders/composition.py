"""Composition: attention over the set of a crystal's elements and their amounts, blind to the structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain.encoders.atoms import ElementEmbedding, gaussians, tensor
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.graphs import need_fields
from pretrain.encoders.layers import Block
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec

ELEMENTS = 119  # Z = 0 ... 118


def element_set(numbers: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the elements of R rows, in ascending order, as (R, T) atomic numbers, their fractions and the mask.

    Parameters
    ----------
    numbers, row : Tensor
        (N,) atomic numbers, and the row of each atom.
    rows : int
        R.
    """
    counts = torch.zeros(rows, ELEMENTS, device=row.device)
    counts = counts.index_put((row, numbers.long()), counts.new_ones(()), accumulate=True)
    fractions = counts / counts.sum(1, keepdim=True).clamp_min(1)
    there = counts > 0
    longest = int(there.sum(1).max())
    # a stable sort puts the elements that are there first, by atomic number
    elements = (~there).to(torch.uint8).sort(dim=1, stable=True).indices[:, :longest]
    return elements, fractions.gather(1, elements), there.gather(1, elements)


@ENCODERS.register("composition")
class Composition(Encoder):
    """Elements of a crystal graph and their fractions -> vector, by self-attention over the set of elements.

    One token an element: embedded tabulated features plus an encoding of its fraction x; pre-norm transformer blocks
    as in CrabNet (Wang et al., npj Comput. Mater. 7, 77, 2021); pooled by attention whose weights carry x,
    ``softmax(s_k + log x_k)``, as in Roost (Goodall and Lee, Nat. Commun. 11, 6280, 2020). The order of the atoms, the
    cell and every coordinate change nothing.

    Deviations: x and log10 x in Gaussians instead of sinusoids, tabulated element features instead of mat2vec, pre-norm
    blocks and GELU. As published (CrabNet): ``{ kind = "composition", layers = 3, heads = 4, dim = 512, mlp_ratio =
    4, dropout = 0.1 }``. Graphs of molecules are refused: their hydrogens are no atoms of the graph.
    """

    class Config(Options):
        """Options of `Composition`."""

        kind: Literal["composition"] = "composition"
        layers: int = Field(3, ge=0)
        heads: int = Field(4, ge=1)
        dim: int = Field(128, ge=2)
        mlp_ratio: float = Field(2.0, gt=0, description="width of the blocks' perceptrons over dim")
        gaussians: int = Field(32, ge=2, description="Gaussians for x on [0, 1], and for log10 x on [-3, 0]")
        dropout: float = Field(0.1, ge=0, lt=1)

        @model_validator(mode="after")
        def _heads(self) -> Composition.Config:
            if self.dim % self.heads:
                raise ValueError(f"dim = {self.dim} is no multiple of heads = {self.heads}")
            return self

    reads: ClassVar[frozenset[str]] = frozenset({"graph"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        need_fields(spec, config.kind, ("atomic_numbers", "lattice"), "crystal")
        self.dim = dim = config.dim
        self.elements = ElementEmbedding(dim)
        self.amount = nn.Linear(2 * config.gaussians, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, dim // config.heads, round(config.mlp_ratio * dim), config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Linear(dim, 1, bias=False)  # softmax sees no constant
        self.out = nn.Linear(dim, dim)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R crystals; tokens are the elements."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        elements, fractions, mask = element_set(tensor(inputs, "atomic_numbers"), row, rows)
        x = self.elements(elements)
        x = x + self.amount(self._encoded(fractions).to(x.dtype))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        score = self.score(x).squeeze(2).float() + fractions.clamp_min(1e-6).log()
        weight = score.masked_fill(~mask, -torch.inf).softmax(dim=1).to(x.dtype)
        return Encoded(self.out((weight[:, :, None] * x).sum(1)), self.out(x), mask)

    def _encoded(self, fractions: Tensor) -> Tensor:
        """Expand fractions (R, T) in Gaussians, linear and logarithmic: (R, T, 2 * gaussians)."""
        x, bins = fractions.flatten(), self.config.gaussians
        encoded = [gaussians(x, 0.0, 1.0, bins), gaussians(x.clamp_min(1e-3).log10(), -3.0, 0.0, bins)]
        return torch.cat(encoded, dim=1).view(*fractions.shape, -1)
