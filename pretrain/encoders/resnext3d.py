"""3-D ResNeXt over a periodic grid, for charge densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pretrain.encoders.base import ENCODERS
from pretrain.encoders.grid import GridEncoder, GridOptions
from shards.schema import ModalitySpec

BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 2
Padding = Literal["periodic", "zeros"]


class Wrap(torch.autograd.Function):
    """Add ``width`` layers of the opposite faces around a grid (R, C, n, n, n).

    The same as torch's circular padding, whose backward fills and copies whole grids six times over: it was a quarter
    of the network's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int) -> Tensor:
        """Return (R, C, n + 2 width, ...)."""
        ctx.width = width
        return F.pad(x, (width,) * 6, mode="circular")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Add the gradient of each added layer to that of the layer it was copied from."""
        width = ctx.width
        for axis in (2, 3, 4):
            points = grad.shape[axis] - 2 * width
            inner = grad.narrow(axis, width, points).clone()
            inner.narrow(axis, points - width, width).add_(grad.narrow(axis, 0, width))
            inner.narrow(axis, 0, width).add_(grad.narrow(axis, points + width, width))
            grad = inner
        return grad, None


class GridConv(nn.Conv3d):
    """Convolution without bias that keeps the number of points; beyond a face lies the opposite one, or zeros."""

    def __init__(self, inside: int, outside: int, size: int, stride: int, groups: int, padding: Padding) -> None:
        super().__init__(inside, outside, size, stride, groups=groups, bias=False)
        self.halo, self.periodic = size // 2, padding == "periodic"

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (R, inside, n, n, n)."""
        if not self.halo:
            return super().forward(x)
        if self.periodic:
            return super().forward(Wrap.apply(x, self.halo))
        # oneDNN of torch 2.14 writes wrong bfloat16 gradients, and past its memory, where it pads grids that are no
        # larger than the kernel itself; a small grid costs nothing to pad here
        if x.shape[-1] <= 2 * self.kernel_size[0]:
            return super().forward(F.pad(x, (self.halo,) * 6))
        return F.conv3d(x, self.weight, None, self.stride, self.halo, groups=self.groups)


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most eight groups: no batch statistics, so rows stay independent."""
    return nn.GroupNorm(min(8, channels // 4 or 1), channels)


class Bottleneck(nn.Module):
    """ResNeXt block: 1^3, grouped 3^3, 1^3 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int, cardinality: int, padding: Padding) -> None:
        super().__init__()
        out = width * EXPANSION
        self.branch = nn.Sequential(
            GridConv(channels, width, 1, 1, 1, padding), norm(width), nn.ReLU(inplace=True),
            GridConv(width, width, 3, stride, cardinality, padding), norm(width), nn.ReLU(inplace=True),
            GridConv(width, out, 1, 1, 1, padding), norm(out),
        )  # fmt: skip
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(GridConv(channels, out, 1, stride, 1, padding), norm(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Update a grid (R, channels, n, n, n)."""
        return F.relu_(self.branch(x).add_(self.shortcut(x)))


@ENCODERS.register("resnext3d")
class ResNeXt3D(GridEncoder):
    """Density on a (n, n, n) grid of fractional coordinates -> vector by a 3-D ResNeXt (Hara et al., CVPR 2018).

    ``depth = 50`` is the network of MultiMat (arXiv 2312.00111): stem 7^3 stride 2 and max-pool, blocks 3, 4, 6, 3 of
    widths 128, 256, 512, 1024, each of which ends in twice as many channels, cardinality 32, 2048 features -> dim.
    As published: ``{ kind = "resnext3d", depth = 50, coarsen = 1, scale = "linear", padding = "zeros",
    summary = false, dropout = 0 }``. The small depths start from width 16, cardinality 4 and a grid averaged by four.

    Deviations: group norm instead of batch norm, so that rows are independent and placeholders cannot enter; the
    density divided by a constant; circular padding by default, since the cell repeats.
    """

    class Config(GridOptions):
        """Options of `ResNeXt3D`."""

        kind: Literal["resnext3d"] = "resnext3d"
        depth: Literal[14, 26, 50, 101] = 14
        width: int | None = Field(None, ge=4, description="channels of the first blocks; by depth: 16 or 128")
        cardinality: int | None = Field(None, ge=1, description="groups of the 3^3 convolutions; by depth: 4 or 32")
        padding: Padding = Field("periodic", description="what lies beyond a face: the opposite one, or zeros")
        channels_last: bool = Field(True, description="memory order of the feature maps; the result is the same")

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        large = config.depth >= 50
        width, cardinality = config.width or (128 if large else 16), config.cardinality or (32 if large else 4)
        channels = 64 if large else width
        self.stem = GridConv(1, channels, 7 if large else 5, 2, 1, config.padding)
        self.stem_norm = norm(channels) if large else nn.Identity()
        layers: list[nn.Module] = []
        for stage, blocks in enumerate(BLOCKS[config.depth]):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(channels, width << stage, stride, cardinality, config.padding))
                channels = (width << stage) * EXPANSION
        self.layers = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, config.dim))
        self.pool_stem = large
        self.summary = self.build_summary(fitted)

    def tokens(self, grid: Tensor) -> Tensor:
        """Scaled grids (R, n, n, n) -> the cells of the last feature map (R, T, dim)."""
        x = F.relu(self.stem_norm(self.stem(grid[:, None].to(self.stem.weight.dtype))))
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.pool_stem:
            periodic = self.config.padding == "periodic"
            x = F.max_pool3d(Wrap.apply(x, 1) if periodic else x, 3, 2, 0 if periodic else 1)
        return self.out(self.layers(x).flatten(2).transpose(1, 2))
