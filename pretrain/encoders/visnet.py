"""ViSNet: equivariant message passing with vectors beside the scalars of each atom."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch_geometric.nn.models.visnet import CosineCutoff, EdgeEmbedding, ExpNormalSmearing, Sphere, ViS_MP

from pretrain.encoders.atoms import ElementEmbedding, pool_sum
from pretrain.encoders.base import ENCODERS
from pretrain.encoders.graphs import CrystalNetwork, CrystalOptions, Edges, fading_radius

VECTOR_FLOOR = 1e-3  # below it the length of a vector has no slope: at a site of high symmetry it is rounding


class Neighbourhood(nn.Module):
    """First scalars and vectors of each atom: those of its neighbours, weighed by distance.

    torch-geometric's `NeighborEmbedding` leaves out every edge from an atom to itself. In a crystal these are its
    periodic images: a metal of one atom a cell would be left with no neighbour at all, and its supercell not.
    """

    def __init__(self, dim: int, radial: int) -> None:
        super().__init__()
        self.elements = ElementEmbedding(dim)
        self.distance = nn.Linear(radial, dim)
        self.combine = nn.Linear(2 * dim, dim)

    def forward(
        self, x: Tensor, numbers: Tensor, index: Tensor, smeared: Tensor, fade: Tensor, harmonics: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scalars (N, D) and vectors (N, S, D), S components of the spherical harmonics."""
        source, target = index
        message = self.elements(numbers)[source] * self.distance(smeared) * fade[:, None]
        scalars = self.combine(torch.cat([x, pool_sum(message, target, len(x))], dim=1))
        vectors = pool_sum((message[:, None] * harmonics[:, :, None]).flatten(1), target, len(x))
        return scalars, vectors.view(len(x), harmonics.shape[1], -1)


@ENCODERS.register("visnet")
class ViSNet(CrystalNetwork):
    """Crystal graph -> vector by ViSNet (Wang et al., Nat. Commun. 15, 313, 2024), of torch-geometric's layers.

    Each atom has scalars and vectors (spherical harmonics of degree 1 to ``degree``) that turn with the crystal.
    Attention from scalars and distances makes messages of both kinds; products of vectors give back scalars, so that
    angles and dihedrals cost no triplets. Messages fade to nothing at the cut-off. It is invariant to reflections
    too: a crystal and its mirror image have one vector.

    Only the layers are torch-geometric's: its whole model makes a graph without periodic images by torch-cluster.

    Deviations: vectors start as those of the neighbourhood instead of zero, where a part of the first layer would
    never learn; the scalars and the lengths of the vectors of each degree go through one perceptron instead of
    gated blocks that end in an energy, then the mean over atoms; no bias where messages become vectors, which
    would not fade; no normalisation of vectors, as in torch-geometric, since "max_min" makes vectors of what is
    rounding at sites of high symmetry; an embedding of tabulated element features, and an optional plain path over
    invariants (`CrystalSummary`). As published (in torch-geometric): ``{ kind = "visnet", layers = 6, dim = 128,
    heads = 8, degree = 1, radial = 32, summary = false, dropout = 0 }`` on edges up to 5 angstrom. Degree 2 is the
    default here because vectors vanish at most sites of simple crystals.
    """

    class Config(CrystalOptions):
        """Options of `ViSNet`."""

        kind: Literal["visnet"] = "visnet"
        dim: int = Field(64, ge=2)
        heads: int = Field(8, ge=1)
        degree: Literal[1, 2] = Field(2, description="largest degree of the spherical harmonics")
        radial: int = Field(32, ge=2, description="radial functions of the distance")
        cutoff_a: float | None = Field(None, gt=0, description="where messages fade to 0; that of the edges by default")

        @model_validator(mode="after")
        def _heads(self) -> ViSNet.Config:
            if self.dim % self.heads:
                raise ValueError(f"dim = {self.dim} is no multiple of heads = {self.heads}")
            return self

    def build(self, config: Config) -> None:
        """Make the layers."""
        dim, self.cutoff_a = config.dim, fading_radius(self.spec, config.cutoff_a)
        self.fade = CosineCutoff(self.cutoff_a)
        self.smear = ExpNormalSmearing(self.cutoff_a, config.radial, trainable=False)
        self.sphere = Sphere(lmax=config.degree)
        self.neighbourhood = Neighbourhood(dim, config.radial)
        self.edge = EdgeEmbedding(config.radial, dim)
        self.layers = nn.ModuleList(
            ViS_MP(config.heads, dim, self.cutoff_a, None, False, last_layer=place == config.layers - 1)
            for place in range(config.layers)
        )
        for layer in self.layers:
            # the layers are given the fading in place of the distance: once for all, in float32
            layer.cutoff = nn.Identity()
            # with a bias, a neighbour at the cut-off would still give its direction
            layer.s_proj = nn.Linear(dim, 2 * dim, bias=False)
            nn.init.xavier_uniform_(layer.s_proj.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.scalars = nn.Sequential(nn.Linear((1 + config.degree) * dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def atoms(self, numbers: Tensor, edges: Edges) -> Tensor:
        """Return the atoms (N, dim)."""
        x, vectors = self.features(numbers, edges)
        degrees = vectors.float().split((3, 5)[: self.config.degree], dim=1)
        lengths = [(part.square().sum(1) + VECTOR_FLOOR**2).sqrt() for part in degrees]
        return self.scalars(torch.cat([x, *(length.to(x.dtype) for length in lengths)], dim=1))

    def features(self, numbers: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return the scalars (N, D) of the atoms, and their vectors (N, 3 or 8, D), which turn with the crystal."""
        x = self.elements(numbers)
        fade = self.fade(edges.length).to(x.dtype)
        smeared = self.smear(edges.length).to(x.dtype)
        harmonics = self.sphere(edges.direction).to(x.dtype)
        x, vectors = self.neighbourhood(x, numbers, edges.index, smeared, fade, harmonics)
        edge = self.edge(edges.index, smeared, x)
        for layer in self.layers:
            dx, dvectors, dedge = layer(x, vectors, edges.index, fade, edge, harmonics)
            x, vectors = x + self.dropout(dx), vectors + dvectors
            edge = edge if dedge is None else edge + dedge
        return x, vectors
