"""CGCNN: gated convolution over the neighbours of each atom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch_geometric.nn import CGConv

from pretrain.encoders.atoms import CrystalSummary, ElementEmbedding, gaussians, pool_mean, tensor
from pretrain.encoders.base import ENCODERS, Encoded
from pretrain.encoders.graphs import CrystalEncoder, NormedConvolution, edges_of
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec


@ENCODERS.register("cgcnn")
class CGCNN(CrystalEncoder):
    """Crystal graph -> vector by CGCNN (Xie and Grossman, PRL 120, 145301, 2018), with torch-geometric's `CGConv`.

    ``x_i + sum_j sigmoid(W_f [x_i, x_j, e_ij]) * softplus(W_s [x_i, x_j, e_ij])``, e_ij the distance in Gaussians;
    mean over atoms, then one hidden layer.

    Deviations: layer norm after each convolution instead of batch norm (rows are independent), and an optional
    plain path over invariants (`CrystalSummary`). As published: ``{ kind = "cgcnn", layers = 3, atom_dim = 64,
    dim = 128, gaussians = 41, summary = false, dropout = 0 }`` on edges up to 8 angstrom, of which it kept the 12
    shortest of each atom.
    """

    class Config(Options):
        """Options of `CGCNN`."""

        kind: Literal["cgcnn"] = "cgcnn"
        layers: int = Field(3, ge=1)
        atom_dim: int = Field(64, ge=2)
        dim: int = Field(128, ge=2)
        gaussians: int = Field(40, ge=2)
        cutoff_a: float = Field(8.0, gt=0, description="upper end of the Gaussians")
        summary: bool = Field(True, description="add a perceptron over plain invariants")
        dropout: float = Field(0.3, ge=0, lt=1)

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.elements = ElementEmbedding(config.atom_dim)
        width = config.atom_dim
        self.layers = nn.ModuleList(
            NormedConvolution(CGConv(width, dim=config.gaussians, batch_norm=False), width)
            for _ in range(config.layers)
        )
        self.out = nn.Sequential(
            nn.Softplus(),
            nn.Linear(config.atom_dim, config.dim),
            nn.Softplus(),
            nn.Dropout(config.dropout),
            nn.Linear(config.dim, config.dim),
        )
        self.summary = CrystalSummary(config.dim, potentials=False, dropout=config.dropout) if config.summary else None

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R crystals; tokens are the atoms."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        edges = edges_of(inputs)
        x = self.elements(tensor(inputs, "atomic_numbers"))
        edge = gaussians(edges.length, 0.0, self.config.cutoff_a, self.config.gaussians).to(x.dtype)
        for layer in self.layers:
            x = layer(x, edges.index, edge)
        return self.finished(inputs, self.out(pool_mean(x, row, rows)), lambda: self.out(x))
