"""SchNet: continuous-filter convolutions over the neighbours of each atom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch_geometric.nn.models.schnet import GaussianSmearing, InteractionBlock

from pretrain.encoders.base import ENCODERS
from pretrain.encoders.graphs import CrystalNetwork, CrystalOptions, Edges, fading_radius


@ENCODERS.register("schnet")
class SchNet(CrystalNetwork):
    """Crystal graph -> vector by SchNet (Schütt et al., NeurIPS 2017, arXiv 1706.08566), of torch-geometric's blocks.

    ``x_i + W ssp(W sum_j (W x_j) * filter(d_ij))``, the filter a perceptron over d in Gaussians times
    ``(cos(pi d / cutoff) + 1) / 2``, ssp a shifted softplus: what an atom learns of a neighbour fades to nothing at
    the cut-off, so the vector does not jump when an atom passes it.

    Only the blocks are torch-geometric's: its whole model makes a graph without periodic images by torch-cluster,
    of 32 neighbours at most, where here are the stored edges. An atom whose nearest shell lies beyond the cut-off
    hears nothing and is its element alone.

    Deviations: the mean over atoms of a layer norm instead of the sum of a perceptron's energies, an embedding of
    tabulated element features, and an optional plain path over invariants (`CrystalSummary`). As published (in
    torch-geometric): ``{ kind = "schnet", layers = 6, dim = 128, filters = 128, gaussians = 50, summary = false,
    dropout = 0 }`` on edges up to 10 angstrom; the paper has 3 layers of 64 channels.
    """

    class Config(CrystalOptions):
        """Options of `SchNet`."""

        kind: Literal["schnet"] = "schnet"
        filters: int = Field(128, ge=2)
        gaussians: int = Field(50, ge=2)
        cutoff_a: float | None = Field(None, gt=0, description="where filters fade to 0; that of the edges by default")

    def build(self, config: Config) -> None:
        """Make the interaction blocks."""
        self.cutoff_a = fading_radius(self.spec, config.cutoff_a)
        self.smear = GaussianSmearing(0.0, self.cutoff_a, config.gaussians)
        self.blocks = nn.ModuleList(
            InteractionBlock(config.dim, config.gaussians, config.filters, self.cutoff_a) for _ in range(config.layers)
        )
        for block in self.blocks:
            del block.mlp  # it is block.conv.nn too, and a safetensors file cannot hold one weight twice
        self.dropout = nn.Dropout(config.dropout)

    def atoms(self, numbers: Tensor, edges: Edges) -> Tensor:
        """Return the atoms (N, dim)."""
        x = self.elements(numbers)
        # the cosine rises again beyond the cut-off
        length = edges.length.clamp_max(self.cutoff_a)
        smeared = self.smear(length).to(x.dtype)
        for block in self.blocks:
            x = x + self.dropout(block(x, edges.index, length.to(x.dtype), smeared))
        return x
