"""What the crystal encoders share: element embeddings, pooling over atoms and a plain summary of a crystal."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pretrain.encoders.mlp import perceptron
from shards.batch import Inputs
from shards.elements import element_features

LONGEST_A = 6.0  # upper end of the distance histograms, beyond the usual cut-off of 5 angstrom
BINS = 20


def standard_element_features() -> Tensor:
    """Return (119, F) float32 element features, each column with zero mean and unit deviation over Z = 1..103."""
    features = torch.as_tensor(element_features(), dtype=torch.float32).nan_to_num()
    known = features[1:104]
    scaled = (features - known.mean(0)) / known.std(0).clamp_min(1e-6)
    scaled[0] = 0
    return scaled.clamp(-4, 4)


def tensor(inputs: Inputs, name: str) -> Tensor:
    """Return a field that is known to be a tensor."""
    return cast(Tensor, inputs[name])


class ElementEmbedding(nn.Module):
    """Atomic number -> (..., dim): a linear map of tabulated element features plus a small learned embedding.

    The tabulated part carries over to elements that training saw rarely; the learned part starts near zero.
    """

    features: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", standard_element_features())
        self.linear = nn.Linear(self.features.shape[1], dim)
        self.learned = nn.Embedding(len(self.features), dim)
        nn.init.normal_(self.learned.weight, std=0.02)

    def forward(self, numbers: Tensor) -> Tensor:
        """Embed atomic numbers of any shape."""
        numbers = numbers.long()
        return self.linear(self.features[numbers]) + self.learned(numbers)


def pool_sum(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum ``values`` (N, D) into (rows, D) by ``row`` (N,)."""
    return values.new_zeros(rows, values.shape[1]).index_add(0, row, values)


def counted(row: Tensor, rows: int) -> Tensor:
    """Count the elements of each row: (rows,) float32, at least 1.

    Unlike `torch.bincount`, which looks for the largest index, it does not wait for the GPU.
    """
    return (
        torch.zeros(rows, device=row.device).index_add(0, row, torch.ones_like(row, dtype=torch.float32)).clamp_min(1)
    )


def pool_mean(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean of ``values`` (N, D) per row; a row without any element gives zeros."""
    return pool_sum(values, row, rows) / counted(row, rows).to(values.dtype)[:, None]


def pool_statistics(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Mean and standard deviation of ``values`` (N, D) per row, side by side: (rows, 2 D)."""
    mean = pool_mean(values, row, rows)
    variance = pool_mean((values - mean[row]) ** 2, row, rows)
    return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


def gaussians(x: Tensor, low: float, high: float, bins: int, width: float = 1.0) -> Tensor:
    """Expand ``x`` (N,) in Gaussians ``exp(-((x - c) / w)^2)``, the ``bins`` centres c on [low, high]: (N, bins).

    w is ``width`` times the distance of two centres.
    """
    centres = torch.linspace(low, high, bins, device=x.device, dtype=x.dtype)
    return torch.exp(-(((x[:, None] - centres) * ((bins - 1) / (high - low) / width)) ** 2))


class CrystalSummary(nn.Module):
    """A perceptron over invariants of a crystal: the plain path beside a graph network.

    Invariants: mean, deviation, minimum and maximum over the atoms of the element features; logarithm of the
    volume an atom; histograms of the neighbour distances in angstrom and in units of the cube root of the volume
    an atom (the second tells prototypes apart whatever their size); mean and deviation of the infinite
    potentials where the modality has them. On some hundred materials this path generalises before the graph
    network does; the network learns what it lacks.
    """

    features: Tensor

    def __init__(self, dim: int, *, potentials: bool, dropout: float) -> None:
        super().__init__()
        self.register_buffer("features", standard_element_features())
        self.potentials = potentials
        width = 4 * self.features.shape[1] + 1 + 2 * BINS + (6 if potentials else 0)
        self.mlp = perceptron((width, 2 * dim, dim), dropout=dropout)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return (R, dim)."""
        return self.mlp(self.invariants(inputs).to(next(self.parameters()).dtype))

    def invariants(self, inputs: Inputs) -> Tensor:
        """Return the invariants (R, width) in float32."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        elements = self.features[tensor(inputs, "atomic_numbers").long()].float()
        index = row[:, None].expand_as(elements)
        extremes = [
            elements.new_zeros(rows, elements.shape[1]).scatter_reduce(0, index, elements, how, include_self=False)
            for how in ("amin", "amax")
        ]
        volume = torch.linalg.det(tensor(inputs, "lattice").float()).abs().clamp_min(1e-3)
        count = counted(row, rows)
        size = (volume / count).clamp_min(1e-3) ** (1 / 3)
        centre = tensor(inputs, "edge_index")[1]
        length = tensor(inputs, "edge_vector").float().norm(dim=1)
        relative = length / size[row[centre]]
        shells = torch.cat([gaussians(length, 1.0, LONGEST_A, BINS), gaussians(relative, 0.5, 2.0, BINS)], dim=1)
        parts = [pool_statistics(elements, row, rows), *extremes, 3 * size.log()[:, None] - 9]
        parts.append(pool_sum(shells, row[centre], rows) / count[:, None] / 8)
        if self.potentials:
            pairs = tensor(inputs, "potentials").float()
            pair_row = row[tensor(inputs, "pair_index")[1]]
            parts.append(pool_statistics(torch.asinh(pairs), pair_row, rows))
        return torch.cat(parts, dim=1)
