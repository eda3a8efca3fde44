"""1-D convolutional network for spectra on a fixed axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.spectrum import rescale, spectrum_field, stack
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec, Value


def norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most eight groups: no batch statistics, so rows stay independent."""
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv1d(channels, out, kernel, stride, kernel // 2, bias=False), norm(out), nn.ReLU(inplace=True),
            nn.Conv1d(out, out, kernel, 1, kernel // 2, bias=False), norm(out),
        )  # fmt: skip
        same = stride == 1 and channels == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv1d(channels, out, 1, stride, bias=False), norm(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Update a spectrum (R, channels, points)."""
        return F.relu_(self.branch(x).add_(self.shortcut(x)))


class PointMean(nn.Module):
    """Features (R, channels, T) -> the mean over the points, and the points (R, T, dim), after a linear map."""

    def __init__(self, channels: int, points: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, dim)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors and tokens."""
        tokens = self.linear(features.transpose(1, 2))
        return tokens.mean(1), tokens


class Flattened(nn.Module):
    """Features (R, channels, T) -> a linear map of all of them, and its terms (R, T, dim), one a point."""

    def __init__(self, channels: int, points: int, dim: int) -> None:
        super().__init__()
        bound = (channels * points) ** -0.5
        self.weight = nn.Parameter(torch.empty(dim, channels, points).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors and tokens."""
        terms = torch.einsum("rct,dct->rtd", features, self.weight)
        return terms.sum(1) + self.bias, terms


@ENCODERS.register("spectrum_cnn")
class SpectrumCNN(Encoder):
    """Spectrum -> vector by a residual network of 1-D convolutions.

    The network of Ho et al. (Nature Communications 10, 4927, 2019; bacteria by their Raman spectra): a stem, stages of
    residual blocks of which every one but the first halves the points, and all that is left as one vector. As
    published: ``{ kind = "spectrum_cnn", stem = 64, channels = [100, 100, 100, 100, 100, 100], blocks = 2, kernel = 5,
    pool = "flatten", axis = false, scale = "linear", dropout = 0 }``.

    Deviation: group norm instead of batch norm. ``pool = "mean"`` averages over the points, so that a shift of the
    spectrum by a multiple of the strides changes nothing but at its ends; ``axis`` adds the place on the axis as a
    second input (Liu et al., arXiv 1807.03247), without which such an average cannot tell where a peak lies.
    """

    class Config(Options):
        """Options of `SpectrumCNN`."""

        kind: Literal["spectrum_cnn"] = "spectrum_cnn"
        dim: int = Field(128, ge=2)
        stem: int = Field(32, ge=1, description="channels of the first convolution")
        channels: tuple[int, ...] = Field((32, 64, 128, 128), min_length=1, description="of each stage")
        blocks: int = Field(1, ge=1, description="residual blocks a stage")
        kernel: int = Field(5, ge=1, description="points that a convolution sees, odd")
        pool: Literal["mean", "flatten"] = "mean"
        axis: bool = Field(True, description="give the network the place on the axis")
        scale: Literal["log", "linear"] = Field("log", description="log(1 + g / mean) or g / deviation (of training)")
        dropout: float = Field(0.1, ge=0, lt=1)

        @field_validator("kernel")
        @classmethod
        def _odd(cls, kernel: int) -> int:
            if kernel % 2 == 0:
                raise ValueError(f"a kernel of {kernel} points has no centre")
            return kernel

    reads: ClassVar[frozenset[str]] = frozenset({"spectrum"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim, self.unit = config.dim, float(fitted["unit"])
        self.field, points = spectrum_field(spec)
        self.stem = nn.Sequential(
            nn.Conv1d(1 + config.axis, config.stem, config.kernel, 1, config.kernel // 2, bias=False),
            norm(config.stem), nn.ReLU(inplace=True),
        )  # fmt: skip
        layers: list[nn.Module] = []
        channels = config.stem
        for stage, width in enumerate(config.channels):
            for block in range(config.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Residual(channels, width, config.kernel, stride))
                points, channels = -(-points // stride), width
        self.layers, self.dropout = nn.Sequential(*layers), nn.Dropout(config.dropout)
        self.out = (Flattened if config.pool == "flatten" else PointMean)(channels, points, config.dim)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the unit of intensity."""
        spectra = stack(spec, values)
        return {"unit": float(spectra.mean() if config.scale == "log" else spectra.std()) or 1.0}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R spectra; tokens are the points of the last stage."""
        scaled = rescale(cast(Tensor, inputs[self.field]).float(), self.unit, self.config.scale)
        channels = [scaled]
        if self.config.axis:
            channels.append(torch.linspace(-1, 1, scaled.shape[1], device=scaled.device).expand_as(scaled))
        x = torch.stack(channels, dim=1).to(next(self.parameters()).dtype)
        return Encoded(*self.out(self.dropout(self.layers(self.stem(x)))))
