"""What the encoders of periodic grids share: scale, coarse grid, plain numbers of a density."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pretrain.encoders.base import Encoded, Encoder
from pretrain.encoders.layers import Summary, summary_statistics
from shards.batch import Inputs
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import ModalitySpec, Value

QUANTILES = 32
WAVES = 3  # Fourier components up to this index along each axis
LOOKED_AT = 512  # grids for the statistics of the summary, at least where there are as many


class GridOptions(Options):
    """Options of every encoder of a grid."""

    dim: int = Field(128, ge=2)
    coarsen: int = Field(4, ge=1, description="average the grid by this factor first")
    scale: Literal["log", "linear"] = Field("log", description="log(1 + rho / mean) or rho / deviation (of training)")
    summary: bool = Field(True, description="add a perceptron over plain numbers of the density")
    summary_points: int = Field(8, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)


class GridEncoder(Encoder):
    """Common part: one (n, n, n) field of fractional coordinates, its scale, the summary path.

    Densities span three decades, so they enter as log(1 + rho / mean) by default. ``summary`` adds a perceptron over
    the density averaged to 8^3, its quantiles (which no rotation, mirror or change of origin alters) and the magnitudes
    of its longest waves (which no change of origin alters).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"grid"})
    gives_tokens: ClassVar[bool] = True
    summary: Summary | None

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.field, self.unit = grid_field(spec), float(fitted["unit"])

    def build_summary(self, fitted: Mapping[str, Any]) -> Summary | None:
        """Return the summary path; it stands last in an encoder, so that layer-wise learning rates see it there."""
        config = self.config
        return Summary(config.dim, fitted["mean"], fitted["std"], config.dropout) if config.summary else None

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Any, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the unit of density and the statistics of the summary, one grid at a time."""
        name, units, kept, stride = grid_field(spec), [], [], 1
        for place, value in enumerate(values):
            grid = torch.tensor(np.asarray(cast(Mapping, value)[name], dtype=np.float32))  # own memory: it is writable
            units.append(float(grid.double().mean() if config.scale == "log" else grid.double().std(correction=0)))
            if config.summary and place % stride == 0:
                kept.append(halved(grid[None]))
            if len(kept) == 2 * LOOKED_AT:
                kept, stride = kept[::2], 2 * stride
        unit = float(np.mean(units)) or 1.0
        if not config.summary:
            return {"unit": unit}
        return {"unit": unit, **summary_statistics(torch.cat([numbers(grid, unit, config) for grid in kept]))}

    def tokens(self, grid: Tensor) -> Tensor:
        """Scaled grids (R, n, n, n) in float32 -> tokens (R, T, dim)."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R grids; the vector is the mean of the tokens, and the summary."""
        density = cast(Tensor, inputs[self.field])
        tokens = self.tokens(prepare(density, self.unit, self.config.coarsen, self.config.scale))
        vector = tokens.mean(1)
        if self.summary is not None:
            vector = vector + self.summary(invariants(density, self.unit, self.config))
        return Encoded(vector, tokens)


def grid_field(spec: ModalitySpec) -> str:
    """Return the name of the one field with three fixed axes."""
    names = [name for name, field in spec.fields.items() if len(field.shape) == 3 and field.ragged_axis is None]
    if len(names) != 1:
        raise ConfigError(f"modality '{spec.name}' has fields {sorted(spec.fields)}, a grid encoder reads one grid")
    return names[0]


def prepare(grid: Tensor, unit: float, coarsen: int, scale: str) -> Tensor:
    """Average densities (R, n, n, n) in blocks, then scale: ``log(1 + rho / unit)`` or ``rho / unit``."""
    grid = grid.float()
    if coarsen > 1:
        grid = F.avg_pool3d(grid[:, None], coarsen)[:, 0]
    return torch.log1p(grid.clamp_min(0) / unit) if scale == "log" else grid / unit


def halved(density: Tensor) -> Tensor:
    """Average densities (R, n, n, n) in blocks of two where there are enough points; float32."""
    return F.avg_pool3d(density.float()[:, None], 2)[:, 0] if density.shape[1] >= 16 else density.float()


def invariants(density: Tensor, unit: float, config: GridOptions) -> Tensor:
    """Plain numbers of densities (R, n, n, n): averages on points^3, quantiles, magnitudes of the longest waves."""
    return numbers(halved(density), unit, config)


def numbers(coarse: Tensor, unit: float, config: GridOptions) -> Tensor:
    """`invariants` of densities that are `halved` already."""
    grid = prepare(coarse, unit, 1, config.scale)
    averages = F.adaptive_avg_pool3d(grid[:, None], config.summary_points).flatten(1)
    ordered = grid.flatten(1).sort(dim=1).values
    place = torch.linspace(0, ordered.shape[1] - 1, QUANTILES, device=grid.device).round().long()
    wave = torch.fft.rfftn(grid, dim=(1, 2, 3), norm="forward").abs()
    near = torch.arange(-WAVES, WAVES + 1, device=grid.device)
    spectrum = wave[:, near][:, :, near][..., : WAVES + 1].flatten(1)
    return torch.cat([averages, ordered[:, place], torch.log(spectrum + 1e-3)], dim=1)
