"""Graph isomorphism networks and graph convolutions on molecules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, GINEConv
from torch_geometric.utils import add_self_loops

from pretrain.encoders.atoms import tensor
from pretrain.encoders.base import ENCODERS
from pretrain.encoders.graphs import NormedConvolution
from pretrain.encoders.mlp import perceptron
from pretrain.encoders.molecular import AtomFeatures, MolecularNetwork
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec


@ENCODERS.register("gin")
class GIN(MolecularNetwork):
    """Molecular graph -> vector by torch-geometric's convolutions, with layer norm, ReLU and dropout after each.

    ``conv = "gine"``: ``MLP((1 + eps) x_i + sum_j ReLU(x_j + W e_ij))`` (Hu et al., ICLR 2020, arXiv 1905.12265), e_ij
    the bonds' features; ``"gin"``: the same without bonds, ``MLP((1 + eps) x_i + sum_j x_j)`` (Xu et al., ICLR 2019,
    arXiv 1810.00826), whose sum tells neighbourhoods apart that a mean cannot; ``"gcn"``: ``sum_j W x_j /
    sqrt(d_i d_j)`` with self-loops (Kipf and Welling, ICLR 2017, arXiv 1609.02907), which is such a mean.

    Deviations: layer norm of each atom instead of batch norm (rows are independent), the ReLU over x_j + W e_ij, which
    is torch-geometric's, a learned eps, and an embedding of tabulated element features beside the atoms' own. As
    published (Hu et al.): ``{ kind = "gin", conv = "gine", layers = 5, dim = 300, pool = "mean", dropout = 0.5 }``.
    """

    class Config(Options):
        """Options of `GIN`."""

        kind: Literal["gin"] = "gin"
        conv: Literal["gine", "gin", "gcn"] = "gine"
        layers: int = Field(3, ge=1)
        dim: int = Field(128, ge=2)
        pool: Literal["mean", "sum"] = "mean"
        dropout: float = Field(0.1, ge=0, lt=1)

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.features = AtomFeatures(self.atom_width, config.dim)
        self.layers = nn.ModuleList(NormedConvolution(self._convolution(), config.dim) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)

    def _convolution(self) -> nn.Module:
        dim = self.dim
        if self.config.conv == "gcn":
            return GCNConv(dim, dim, add_self_loops=False)  # all layers share them
        inner = perceptron((dim, 2 * dim, dim), "relu")  # twice as wide inside (Hu et al.)
        if self.config.conv == "gin":
            return GINConv(inner, train_eps=True)
        return GINEConv(inner, train_eps=True, edge_dim=self.bond_width)

    def atoms(self, inputs: Inputs) -> Tensor:
        """Return the atoms (N, dim); the last layer has no ReLU."""
        x, index = self.features(inputs), tensor(inputs, "edge_index")
        if self.config.conv == "gcn":
            index, _ = add_self_loops(index, num_nodes=len(x))
        bonds = (tensor(inputs, "bond_features").to(x.dtype),) if self.config.conv == "gine" else ()
        for place, layer in enumerate(self.layers, start=1):
            x = layer(x, index, *bonds)
            x = self.dropout(x.relu() if place < len(self.layers) else x)
        return x
