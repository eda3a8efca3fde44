"""PotNet: message passing over local neighbours and over sums of interatomic potentials to infinity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.atoms import (
    CrystalSummary,
    ElementEmbedding,
    gaussians,
    pool_mean,
    pool_statistics,
    pool_sum,
    tensor,
)
from pretrain.encoders.base import ENCODERS, Encoded
from pretrain.encoders.graphs import CrystalEncoder, edges_of
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec

POTENTIAL_WEIGHTS = (-0.801, -0.074, 0.145)  # Coulomb, London, Pauli, as published


class GatedMessages(nn.Module):
    """One layer: ``x_i + norm(sum_j sigmoid(norm(MLP[x_i, x_j, e_ij])) * MLP[x_i, x_j, e_ij])``.

    The first linear map of both perceptrons over the concatenation is split into a part of x_i, one of x_j
    (computed once an atom) and one of e_ij, which is the same map at a fraction of the cost.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.centre = nn.Linear(dim, 2 * dim)
        self.neighbour = nn.Linear(dim, 2 * dim, bias=False)
        self.edge = nn.Linear(dim, 2 * dim, bias=False)
        self.gate, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_norm, self.sum_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, target: Tensor, edge: Tensor) -> Tensor:
        """Update nodes ``x`` (N, D) by messages along edges ``source -> target`` with features (E, D)."""
        normed = self.norm(x)
        hidden = self.centre(normed)[target] + self.neighbour(normed)[source] + self.edge(edge)
        gate, value = nn.functional.silu(hidden).chunk(2, dim=1)
        message = torch.sigmoid(self.gate_norm(self.gate(gate))) * self.value(value)
        return x + self.dropout(self.sum_norm(pool_sum(message, target, len(x))))


@ENCODERS.register("potnet")
class PotNet(CrystalEncoder):
    """Crystal graph -> vector by PotNet, from the paper's formulas (Lin et al., ICML 2023, arXiv 2306.10045).

    Local edges: -0.75 / d in Gaussians on [-4, 4]. Infinite edges (every ordered pair of
    atoms of the cell): the three potentials weighted (-0.801, -0.074, 0.145) and summed, in multiquadrics. Both -> dim,
    softplus, then gated messages, residual, mean over atoms.

    Deviations: layer norm, before each layer and on messages, instead of batch norm, so that rows are
    independent and a global batch over several ranks equals one rank. ``pool = "statistics"`` adds the
    deviation over atoms, and ``summary`` a plain path over invariants (`CrystalSummary`). As published:
    ``{ kind = "potnet", layers = 3, dim = 256, gaussians = 256, pool = "mean", summary = false, dropout = 0 }``, and
    with ``output = 128`` in MultiMat.
    """

    class Config(Options):
        """Options of `PotNet`."""

        kind: Literal["potnet"] = "potnet"
        layers: int = Field(1, ge=1)
        dim: int = Field(128, ge=2)
        gaussians: int = Field(64, ge=2, description="Gaussians for -0.75/d (published: 256)")
        gaussian_width: float = Field(1.0, gt=0, description="width of the Gaussians over their distance")
        multiquadrics: int = Field(64, ge=2, description="multiquadrics for the summed potentials")
        potentials: bool = Field(True, description="use the infinite sums where the data has them")
        pool: Literal["mean", "statistics"] = "statistics"
        output: int | None = Field(None, ge=2, description="width of vector and tokens; default: `dim`")
        summary: bool = Field(True, description="add a perceptron over plain invariants")
        dropout: float = Field(0.3, ge=0, lt=1)

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        dim = config.dim
        self.dim = config.output or dim
        self.potentials = config.potentials and "potentials" in spec.fields
        self.elements = ElementEmbedding(dim)
        self.local = nn.Sequential(nn.Linear(config.gaussians, dim), nn.Softplus())
        if self.potentials:
            self.infinite = nn.Sequential(nn.Linear(config.multiquadrics, dim), nn.Softplus())
        self.layers = nn.ModuleList(GatedMessages(dim, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(2 * dim if config.pool == "statistics" else dim, self.dim)
        self.summary = (
            CrystalSummary(self.dim, potentials=self.potentials, dropout=config.dropout) if config.summary else None
        )

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R crystals; tokens are the atoms."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        x = self.elements(tensor(inputs, "atomic_numbers"))
        source, target, edge = self._edges(inputs, x.dtype)
        for layer in self.layers:
            x = layer(x, source, target, edge)
        x = self.norm(x)
        pool = pool_statistics if self.config.pool == "statistics" else pool_mean
        return self.finished(inputs, self.out(pool(x, row, rows)), lambda: self._atoms(x))

    def _atoms(self, x: Tensor) -> Tensor:
        """Return the atoms (N, dim) as wide as the vectors."""
        if not self.config.output:
            return x
        # as a crystal of this atom alone would be read: it is its own mean, and has no deviation
        return self.out(torch.cat([x, torch.zeros_like(x)], dim=1) if self.config.pool == "statistics" else x)

    def _edges(self, inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return source, target and features of local and infinite edges."""
        edges, config = edges_of(inputs), self.config
        bins = gaussians(-0.75 / edges.length, -4.0, 4.0, config.gaussians, config.gaussian_width)
        features = self.local(bins.to(dtype))
        if not self.potentials:
            return edges.source, edges.target, features
        # no matrix product: autocast would round it, and the weights would have to be sent to the GPU
        first, second, third = POTENTIAL_WEIGHTS
        coulomb, london, pauli = tensor(inputs, "potentials").float().unbind(1)
        summed = first * coulomb + second * london + third * pauli
        infinite = self.infinite(multiquadrics(summed, config.multiquadrics).to(dtype))
        index = torch.cat([edges.index, tensor(inputs, "pair_index")], dim=1)
        return index[0], index[1], torch.cat([features, infinite])


def multiquadrics(x: Tensor, bins: int, low: float = -4.0, high: float = 4.0) -> Tensor:
    """Expand ``x`` (N,) in ``sqrt(1 + (gamma (x - c))^2)``, centres c on [low, high], gamma the inverse spacing.

    Divided by ``gamma (high - low)`` so that the features are of order one.
    """
    centres = torch.linspace(low, high, bins, device=x.device, dtype=x.dtype)
    gamma = (bins - 1) / (high - low)
    return torch.sqrt(1 + (gamma * (x[:, None] - centres)) ** 2) / (bins - 1)
