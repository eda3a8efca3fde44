"""3-D ResNeXt over a periodic grid, for charge densities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.layers import Summary, summary_statistics
from shards.batch import Inputs
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import ModalitySpec, Value

BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 2
QUANTILES = 32
WAVES = 3  # Fourier components up to this index along each axis


def periodic(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv3d:
    """Convolution without bias on a grid whose opposite faces touch."""
    mode: Literal["circular", "zeros"] = "circular" if size > 1 else "zeros"
    return nn.Conv3d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False, padding_mode=mode)


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most eight groups: no batch statistics, so rows stay independent."""
    return nn.GroupNorm(min(8, channels // 4 or 1), channels)


class Bottleneck(nn.Module):
    """ResNeXt block: 1^3, grouped 3^3, 1^3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, cardinality: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.branch = nn.Sequential(
            periodic(channels, width, 1), norm(width), nn.ReLU(),
            periodic(width, width, 3, stride, cardinality), norm(width), nn.ReLU(),
            periodic(width, out, 1), norm(out),
        )  # fmt: skip
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(periodic(channels, out, 1, stride), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        """Update a grid (R, channels, n, n, n)."""
        return F.relu(self.branch(x) + self.shortcut(x))


@ENCODERS.register("resnext3d")
class ResNeXt3D(Encoder):
    """Density on a (n, n, n) grid of fractional coordinates -> vector by a 3-D ResNeXt (Hara et al. 2018).

    ``depth = 50`` is the size of MultiMat (arXiv 2312.00111): stem 7^3 stride 2 and max-pool, blocks 3, 4, 6, 3 of
    widths 128 to 1024,
    cardinality 32, 2048 features. As published: ``{ kind = "resnext3d", depth = 50, coarsen = 1, scale = "linear",
    summary = false, dropout = 0 }``. The small depths start from width 16, cardinality 4 and a grid averaged by four.

    Deviations: circular padding since the cell repeats, and group norm instead of batch norm. Densities span three
    decades, so they enter as log(1 + rho / mean) by default. ``summary`` adds a perceptron over the density
    averaged to 8^3, its quantiles (which no rotation, mirror or change of origin alters) and the magnitudes of its
    longest waves (which no change of origin alters).
    """

    class Config(Options):
        """Options of `ResNeXt3D`."""

        kind: Literal["resnext3d"] = "resnext3d"
        depth: Literal[14, 26, 50, 101] = 14
        width: int | None = Field(None, ge=4, description="channels of the first blocks; by depth: 16 or 128")
        cardinality: int | None = Field(None, ge=1, description="groups of the 3^3 convolutions; by depth: 4 or 32")
        dim: int = Field(128, ge=2)
        coarsen: int = Field(4, ge=1, description="average the grid by this factor first")
        scale: Literal["log", "linear"] = "log"
        summary: bool = True
        summary_points: int = Field(8, ge=1)
        dropout: float = Field(0.2, ge=0, lt=1)

    reads: ClassVar[frozenset[str]] = frozenset({"grid"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.field, self.unit = grid_field(spec), float(fitted["unit"])
        large = config.depth >= 50
        width, cardinality = config.width or (128 if large else 16), config.cardinality or (32 if large else 4)
        channels = 64 if large else width
        self.stem = periodic(1, channels, 7 if large else 5, 2)
        stages: list[nn.Module] = []
        for stage, blocks in enumerate(BLOCKS[config.depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(Bottleneck(channels, width << stage, stride, cardinality))
                channels = (width << stage) * EXPANSION
        self.stages = nn.Sequential(*stages)
        self.out = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, config.dim))
        self.pool_stem = large
        self.summary = Summary(config.dim, fitted["mean"], fitted["std"], config.dropout) if config.summary else None

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the unit of density and the statistics of the summary, one grid at a time."""
        name = grid_field(spec)
        grids = [np.asarray(cast(Mapping, value)[name]) for value in values]
        moments = [(float(grid.mean(dtype=np.float64)), float(grid.std(dtype=np.float64))) for grid in grids]
        unit = float(np.mean([moment[0 if config.scale == "log" else 1] for moment in moments])) or 1.0
        if not config.summary:
            return {"unit": unit}
        rows = [invariants(torch.from_numpy(grid)[None], unit, config) for grid in grids]
        return {"unit": unit, **summary_statistics(torch.cat(rows))}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R grids; tokens are the cells of the last feature map."""
        density = cast(Tensor, inputs[self.field])
        grid = prepare(density, self.unit, self.config.coarsen, self.config.scale)
        x = F.relu(self.stem(grid[:, None].to(self.stem.weight.dtype)))
        if self.pool_stem:
            x = F.max_pool3d(F.pad(x, (1,) * 6, mode="circular"), 3, 2)
        tokens = self.out(self.stages(x).flatten(2).transpose(1, 2))
        vector = tokens.mean(1)
        if self.summary is not None:
            vector = vector + self.summary(invariants(density, self.unit, self.config))
        return Encoded(vector, tokens)


def grid_field(spec: ModalitySpec) -> str:
    """Return the name of the one field with three fixed axes."""
    names = [name for name, field in spec.fields.items() if len(field.shape) == 3 and field.ragged_axis is None]
    if len(names) != 1:
        raise ConfigError(f"modality '{spec.name}' has fields {sorted(spec.fields)}, resnext3d reads exactly one grid")
    return names[0]


def prepare(grid: Tensor, unit: float, coarsen: int, scale: str) -> Tensor:
    """Average densities (R, n, n, n) in blocks, then scale: ``log(1 + rho / unit)`` or ``rho / unit``."""
    grid = grid.float()
    if coarsen > 1:
        grid = F.avg_pool3d(grid[:, None], coarsen)[:, 0]
    return torch.log1p(grid.clamp_min(0) / unit) if scale == "log" else grid / unit


def invariants(density: Tensor, unit: float, config: ResNeXt3D.Config) -> Tensor:
    """Plain numbers of densities (R, n, n, n): averages on points^3, quantiles, magnitudes of the longest waves."""
    grid = prepare(density, unit, 2 if density.shape[1] >= 16 else 1, config.scale)
    coarse = F.adaptive_avg_pool3d(grid[:, None], config.summary_points).flatten(1)
    ordered = grid.flatten(1).sort(dim=1).values
    place = torch.linspace(0, ordered.shape[1] - 1, QUANTILES, device=grid.device).round().long()
    wave = torch.fft.rfftn(grid, dim=(1, 2, 3), norm="forward").abs()
    near = torch.arange(-WAVES, WAVES + 1, device=grid.device)
    spectrum = wave[:, near][:, :, near][..., : WAVES + 1].flatten(1)
    return torch.cat([coarse, ordered[:, place], torch.log(spectrum + 1e-3)], dim=1)
