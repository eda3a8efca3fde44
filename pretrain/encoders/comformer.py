"""ComFormer: a transformer over the edges of a periodic graph, with one layer that sees their directions."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn.models.visnet import Sphere

from pretrain.encoders.atoms import gaussians, pool_mean, pool_sum
from pretrain.encoders.base import ENCODERS
from pretrain.encoders.graphs import CrystalNetwork, CrystalOptions, Edges

DEGREES = (1, 3, 5)  # components of the spherical harmonics of degree 0, 1, 2


class NodeWise(nn.Module):
    """Attention of each atom i to its neighbours j, channel by channel, as in Matformer and ComFormer.

    ``q = W_q x_i``, ``k = MLP[x_i, x_j, e_ij]``, ``v = MLP[x_i, x_j, e_ij]``;
    ``softplus(x_i + norm(sum_j sigmoid(norm(q * k / sqrt(D))) * v))``.
    The gates are not normalised over the neighbours: a softmax could not tell two equal neighbours from one. The
    first linear map of both perceptrons is split into a part of x_i, of x_j and of e_ij: the same map, cheaper.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.centre = nn.Linear(dim, 2 * dim)
        self.neighbour = nn.Linear(dim, 2 * dim, bias=False)
        self.edge = nn.Linear(dim, 2 * dim, bias=False)
        self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_norm, self.sum_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, edges: Edges, edge: Tensor) -> Tensor:
        """Update atoms ``x`` (N, D) along edges with features (E, D)."""
        source, target = edges.index
        hidden = F.silu(self.centre(x)[target] + self.neighbour(x)[source] + self.edge(edge))
        key, value = hidden.chunk(2, dim=1)
        gate = self.query(x)[target] * self.key(key) / x.shape[1] ** 0.5
        message = torch.sigmoid(self.gate_norm(gate)) * self.value(value)
        return F.softplus(x + self.dropout(self.sum_norm(pool_sum(message, target, len(x)))))


class Directions(nn.Module):
    """Two products with the spherical harmonics Y_l (l = 0, 1, 2) of the edges: scalars to tensors and back.

    ``A_i^l = mean_j (W x_j * w(e_ij)) Y_l(r_ij)``, ``b_i = mean_j w'(e_ij) <A_j^l, Y_l(r_ij)>`` for every l, so an atom
    learns the angles between its bonds and those of its neighbours, not their lengths alone.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.sphere = Sphere(lmax=2)
        self.features = nn.Linear(dim, 3 * channels, bias=False)
        self.there, self.back = nn.Linear(dim, 3 * channels), nn.Linear(dim, 3 * channels)
        self.update = nn.Sequential(
            nn.LayerNorm(3 * channels), nn.Linear(3 * channels, dim), nn.Softplus(), nn.Linear(dim, dim), nn.Softplus()
        )
        self.skip = nn.Linear(dim, dim)

    def forward(self, x: Tensor, edges: Edges, edge: Tensor) -> Tensor:
        """Update atoms ``x`` (N, D) along edges with features (E, D)."""
        harmonics = self.harmonics(edges.direction, edge.dtype)
        tensors = self.tensors(x, edges, edge, harmonics)
        products = [
            (tensor[edges.source] * harmonic[:, :, None]).sum(1)
            for tensor, harmonic in zip(tensors, harmonics, strict=True)
        ]
        scalars = pool_mean(self.back(edge) * torch.cat(products, dim=1), edges.target, len(x))
        return self.skip(x) + self.update(scalars)

    def tensors(self, x: Tensor, edges: Edges, edge: Tensor, harmonics: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the equivariant features (N, 2 l + 1, channels) of degree l = 0, 1, 2."""
        messages = (self.features(x)[edges.source] * self.there(edge)).chunk(3, dim=1)
        parts = [message[:, None] * harmonic[:, :, None] for message, harmonic in zip(messages, harmonics, strict=True)]
        flat = pool_mean(torch.cat(parts, dim=1).flatten(1), edges.target, len(x))
        return flat.view(len(x), sum(DEGREES), -1).split(DEGREES, dim=1)

    def harmonics(self, direction: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return Y_0, Y_1 and Y_2 (E, 2 l + 1) of unit vectors (E, 3), each degree of length one."""
        return torch.cat([torch.ones_like(direction[:, :1]), self.sphere(direction)], dim=1).to(dtype).split(DEGREES, 1)


@ENCODERS.register("comformer")
class ComFormer(CrystalNetwork):
    """Crystal graph -> vector by the equivariant ComFormer, from the paper's formulas (Yan et al., ICLR 2024).

    arXiv 2403.11857; its node-wise layer goes back to Matformer (Yan et al., NeurIPS 2022, arXiv 2209.11807). Edges:
    -0.75 / d in Gaussians on [-4, 0]. One `NodeWise` layer, `Directions`, the other `NodeWise` layers, mean over
    atoms. It sees lengths and angles and no handedness: a crystal and its mirror image have one vector.

    The invariant variant adds three lattice vectors, and Matformer the lengths of the cell's edges; neither is here,
    since the three shortest vectors are not unique in a cubic lattice and the lengths depend on the cell. An atom's
    own images inside the cut-off are edges, which carry the periodicity.

    Deviations: layer norm instead of batch norm (rows are independent); own tensor products with one weight a channel
    instead of e3nn's, without a part of W x_i in A_i^0; all neighbours within the data's cut-off instead of 25 (12 in
    Matformer), which would split shells; Gaussians as wide as they are far apart, which learn small differences of
    length sooner; and an optional plain path over invariants (`CrystalSummary`). As published (size of the released
    equivariant variant, but for its 64 channels of degree 0): ``{ kind = "comformer", layers = 3, dim = 256, gaussians
    = 256, gaussian_width = 8, channels = 8, summary = false, dropout = 0 }``; in Matformer's size: ``{ kind =
    "comformer", layers = 5, dim = 128, gaussians = 128, channels = 0, summary = false, dropout = 0 }``.
    """

    class Config(CrystalOptions):
        """Options of `ComFormer`."""

        kind: Literal["comformer"] = "comformer"
        gaussians: int = Field(64, ge=2, description="Gaussians for -0.75/d")
        gaussian_width: float = Field(1.0, gt=0, description="width of the Gaussians over their distance")
        channels: int = Field(16, ge=0, description="channels of each degree of directions; 0: lengths alone")

    def build(self, config: Config) -> None:
        """Make the layers."""
        self.edge = nn.Sequential(nn.Linear(config.gaussians, config.dim), nn.Softplus())
        layers: list[nn.Module] = [NodeWise(config.dim, config.dropout) for _ in range(config.layers)]
        if config.channels:
            layers.insert(1, Directions(config.dim, config.channels))
        self.layers = nn.ModuleList(layers)

    def atoms(self, numbers: Tensor, edges: Edges) -> Tensor:
        """Return the atoms (N, dim)."""
        x, config = self.elements(numbers), self.config
        bins = gaussians(-0.75 / edges.length, -4.0, 0.0, config.gaussians, config.gaussian_width)
        edge = self.edge(bins.to(x.dtype))
        for layer in self.layers:
            x = layer(x, edges, edge)
        return x
