"""The electron density on a cubic grid of fractional coordinates."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("charge_density")
class ChargeDensityFeature(Feature):
    """Density on any grid -> density on ``points``^3, float16, with the same mean.

    Another number of points is reached by Fourier interpolation (band-limited and periodic). Where
    that rings below 0, the values are set to 0 and the grid is scaled back to the mean, so the
    number of electrons stays.

    Attributes
    ----------
    points : int
        Points along each lattice vector.
    noise : float
        Values down to minus this (e/A^3) are set to 0, lower ones are refused.
    """

    kind: ClassVar[Kind] = "grid"
    step: Literal["charge_density"] = "charge_density"
    points: int = Field(32, ge=2, le=256)
    noise: float = Field(1e-2, ge=0.0)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a charge density."""
        shape = (self.points, self.points, self.points)
        fields = {"density": FieldSpec(dtype="float16", shape=shape, unit="e/A^3")}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``density`` (points, points, points) float16 in e/A^3, or None without one."""
        if record.charge_density is None:
            return None
        density = np.asarray(record.charge_density)
        problem, why = None, None
        if density.ndim != 3 or min(density.shape) < 2:
            problem = f"the charge density has shape {density.shape}, not (n, n, n)"
        elif not np.isfinite(density).all():
            problem = "the charge density holds NaN or infinity"
        elif density.min() < -self.noise:
            problem = f"the charge density is negative: {density.min():.3g} e/A^3"
            why = "a magnetisation density, a difference density, or a grid that is too coarse"
        elif density.max() > np.finfo(np.float16).max:
            problem = f"the charge density reaches {density.max():.3g} e/A^3, more than float16 holds"
            why = "a density per cell (VASP's CHGCAR) that was not divided by the volume"
        if problem is not None:
            raise DataError(problem, where=record.id, why=why, do="repair the source, or leave the density out")
        if density.shape == (self.points,) * 3:
            return {"density": np.maximum(density, 0.0).astype(np.float16)}
        return {"density": resample(density, self.points).astype(np.float16)}


def resample(density: np.ndarray, points: int) -> np.ndarray:
    """Resample a periodic, non-negative grid to ``points``^3 by Fourier interpolation, keeping its mean."""
    from scipy.signal import resample as fourier_resample

    values = density.astype(np.float64)
    for axis in range(3):
        if values.shape[axis] != points:
            values = fourier_resample(values, points, axis=axis)
    mean = density.mean(dtype=np.float64)
    values = np.maximum(values, 0.0)
    return values * (mean / values.mean()) if mean > 0 else values
