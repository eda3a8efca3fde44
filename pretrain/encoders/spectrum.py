"""Encoders of spectra on a fixed axis: a transformer over points or patches, and one for powder diffraction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.layers import Block, Summary, summary_statistics
from shards.batch import Inputs
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import ModalitySpec, Value

FREQUENCIES = 6


class SpectrumOptions(Options):
    """Options that both spectrum encoders share."""

    dim: int = Field(128, ge=2)
    depth: int = Field(1, ge=0)
    heads: int = Field(4, ge=1)
    head_dim: int = Field(32, ge=1)
    mlp_dim: int = Field(256, ge=1)
    patch: int = Field(16, ge=1, description="points a token; 1 = the published token of one point")
    summary: bool = Field(True, description="add a perceptron over the spectrum averaged at several widths")
    summary_bins: tuple[int, ...] = Field((80, 20), description="bins of the averages")
    dropout: float = Field(0.3, ge=0, lt=1)


def spectrum_field(spec: ModalitySpec) -> tuple[str, int]:
    """Return name and length of the one field with a fixed axis of points."""
    names = [name for name, field in spec.fields.items() if len(field.shape) == 1 and field.ragged_axis is None]
    if len(names) != 1:
        raise ConfigError(f"modality '{spec.name}' has fields {sorted(spec.fields)}, a spectrum encoder reads one")
    return names[0], int(spec.fields[names[0]].shape[0])


def stack(spec: ModalitySpec, values: Iterable[Value]) -> Tensor:
    """Spectra of training values as one (R, points) float32 tensor."""
    name, _ = spectrum_field(spec)
    return torch.from_numpy(np.stack([np.asarray(cast(Mapping, value)[name]) for value in values])).float()


class SpectrumEncoder(Encoder):
    """Common part: scale, tokens, transformer, mean over tokens, summary path."""

    reads: ClassVar[frozenset[str]] = frozenset({"spectrum"})
    gives_tokens: ClassVar[bool] = True
    axis: Tensor

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim, self.patch = config.dim, config.patch
        self.field, self.points = spectrum_field(spec)
        axis = self.positions(spec)
        self.register_buffer("axis", F.pad(axis[None], (0, -self.points % self.patch), mode="replicate")[0])
        if self.patch == 1:
            self.embed_axis, self.embed_value = nn.Linear(1, config.dim), nn.Linear(1, config.dim)
            self.merge = nn.Linear(2 * config.dim, config.dim)
        else:
            self.embed_axis = nn.Linear(2 * FREQUENCIES + 1, config.dim)
            self.embed_value = nn.Linear(self.patch, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.head_dim, config.mlp_dim, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.summary = Summary(config.dim, fitted["mean"], fitted["std"], config.dropout) if config.summary else None

    @classmethod
    def positions(cls, spec: ModalitySpec) -> Tensor:
        """Axis of the spectrum (points,), divided by its largest absolute value."""
        feature, points = spec.feature, spectrum_field(spec)[1]
        start, stop = float(feature.get("start", -1.0)), float(feature.get("stop", 1.0))
        return torch.linspace(start, stop, points) / max(abs(start), abs(stop), 1e-9)

    @classmethod
    def averages(cls, scaled: Tensor, config: Any) -> Tensor:
        """Average (R, points) in equal bins, for each of the bin counts of the summary."""
        bins = [F.adaptive_avg_pool1d(scaled[:, None], min(n, scaled.shape[1]))[:, 0] for n in config.summary_bins]
        return torch.cat(bins, dim=1)

    def scaled(self, spectra: Tensor) -> Tensor:
        """Intensities (R, points) as stored, in float32 -> of order one."""
        raise NotImplementedError

    def tokens(self, scaled: Tensor) -> Tensor:
        """Scaled spectra (R, points) -> tokens (R, T, dim)."""
        dtype = self.embed_value.weight.dtype
        patches = F.pad(scaled, (0, -self.points % self.patch)).unflatten(1, (-1, self.patch)).to(dtype)
        axis = self.axis.view(-1, self.patch).mean(1, keepdim=True)
        if self.patch == 1:
            return self._points(patches, axis.to(dtype))
        return self.embed_axis(waves(axis).to(dtype)) + self.embed_value(patches)

    def _points(self, values: Tensor, axis: Tensor) -> Tensor:
        """``merge([embed_axis(axis); embed_value(values)])`` of values (R, T, 1) and their places (T, 1).

        Nothing lies between the linear maps, so a token is its place's, which is the same for all rows, plus its value
        times one vector. In the weights' precision: neighbouring places are one and the same number in bfloat16.
        """

        def token(place: Tensor, value: Tensor) -> Tensor:
            return self.merge(torch.cat([self.embed_axis(place), self.embed_value(value)], dim=1))

        with torch.autocast(values.device.type, enabled=False):
            at_zero = token(axis, torch.zeros_like(axis))
            slope = token(axis[:1], torch.ones_like(axis[:1])) - at_zero[:1]
            return torch.addcmul(at_zero, values, slope)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R spectra."""
        scaled = self.scaled(cast(Tensor, inputs[self.field]).float())
        x = self.tokens(scaled)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        vector = x.mean(1)
        if self.summary is not None:
            vector = vector + self.summary(self.averages(scaled, self.config))
        return Encoded(vector, x)


def waves(axis: Tensor) -> Tensor:
    """Positions (T, 1) -> themselves with sines and cosines of 1, 2, 4, ... half turns: (T, 2 FREQUENCIES + 1)."""
    angle = axis * torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=axis.device)
    return torch.cat([axis, angle.sin(), angle.cos()], dim=1)


def rescale(spectra: Tensor, unit: float, scale: str) -> Tensor:
    """Bring intensities to order one: ``log(1 + g / unit)`` or ``g / unit``."""
    return torch.log1p(spectra.clamp_min(0) / unit) if scale == "log" else spectra / unit


@ENCODERS.register("spectrum_transformer")
class SpectrumTransformer(SpectrumEncoder):
    """Spectrum -> vector by a transformer whose tokens carry their place on the axis.

    ``patch = 1`` is MultiMat's encoder (arXiv 2312.00111): token = Linear[Linear(E); Linear(g)], one a point, no
    positional code since the energy is the position, pre-norm, GELU, mean over tokens; attention is fused
    (the same result, less time and memory). As published: ``{ kind = "spectrum_transformer", patch = 1,
    depth = 4, heads = 8, head_dim = 64, mlp_dim = 512, dim = 128, scale = "linear", summary = false, dropout = 0 }``.
    Here E and g are divided by a constant each, so that both are of order one.

    A larger patch is another, much cheaper model: token = Linear(p values) + Linear(waves of the patch's centre).
    ``summary`` adds a perceptron over averages in wide bins, which generalises first on small data.
    """

    class Config(SpectrumOptions):
        """Options of `SpectrumTransformer`."""

        kind: Literal["spectrum_transformer"] = "spectrum_transformer"
        scale: Literal["log", "linear"] = Field("log", description="log(1 + g / mean) or g / deviation (of training)")

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.unit = float(fitted["unit"])

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the unit of intensity and the statistics of the summary."""
        spectra = stack(spec, values)
        unit = float(spectra.mean() if config.scale == "log" else spectra.std()) or 1.0
        scaled = rescale(spectra, unit, config.scale)
        return {"unit": unit, **(summary_statistics(cls.averages(scaled, config)) if config.summary else {})}

    def scaled(self, spectra: Tensor) -> Tensor:
        """Divide by the fitted unit, and take the logarithm where the options say so."""
        return rescale(spectra, self.unit, self.config.scale)


@ENCODERS.register("xrd")
class XRDEncoder(SpectrumEncoder):
    """Powder pattern -> vector: the spectrum transformer on an input made for peaks.

    The pattern is brought to the square root of intensity (weak peaks count) and to the axis
    log(sin(theta)), on which a change of lattice constant is a shift and the ratios of peak positions, which
    tell the Bravais lattice, are distances. Interpolation onto that axis is a fixed linear map.
    """

    class Config(SpectrumOptions):
        """Options of `XRDEncoder`."""

        kind: Literal["xrd"] = "xrd"
        patch: int = Field(16, ge=1)
        summary_bins: tuple[int, ...] = (128, 32)

    resample: Tensor

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.register_buffer("resample", log_axis_matrix(spec), persistent=False)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the statistics of the summary."""
        if not config.summary:
            return {}
        return summary_statistics(cls.averages(sharpen(stack(spec, values)) @ log_axis_matrix(spec), config))

    @classmethod
    def positions(cls, spec: ModalitySpec) -> Tensor:
        """Even axis in log(sin(theta)), -1 to 1."""
        return torch.linspace(-1, 1, spectrum_field(spec)[1])

    def scaled(self, spectra: Tensor) -> Tensor:
        """Square root of the intensity on the axis log(sin(theta))."""
        return sharpen(spectra) @ self.resample.float()


def sharpen(spectra: Tensor) -> Tensor:
    """Square root of the intensity."""
    return spectra.clamp_min(0).sqrt()


def log_axis_matrix(spec: ModalitySpec) -> Tensor:
    """Matrix (points, points) that interpolates from an even two-theta axis to an even log(sin(theta)) axis."""
    points = spectrum_field(spec)[1]
    start, stop = (float(spec.feature.get(key, value)) for key, value in (("start", 5.0), ("stop", 90.0)))
    low_end, high_end = (float(np.log(np.sin(np.radians(angle / 2)))) for angle in (max(start, 0.5), stop))
    grid = np.linspace(low_end, high_end, points)
    place = (np.degrees(2 * np.arcsin(np.exp(grid))) - start) / (stop - start) * (points - 1)
    low = np.clip(np.floor(place).astype(int), 0, points - 2)
    weight = np.clip(place - low, 0, 1)
    matrix = np.zeros((points, points), dtype=np.float32)
    matrix[low, np.arange(points)] = 1 - weight
    matrix[low + 1, np.arange(points)] += weight
    return torch.from_numpy(matrix)
