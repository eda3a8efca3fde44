"""The electron density on a cubic grid of fractional coordinates."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import RHO_V, Record


@FEATURES.register("charge_density")
class ChargeDensityFeature(Feature):
    """Density on any grid -> density on ``points``^3, float16, with the same number of electrons.

    The grid is that of the record's own cell, along its own lattice vectors. The crystal feature
    reduces its graph to a primitive cell, so the two may belong to different cells of one crystal.

    Attributes
    ----------
    points : int
        Points along each lattice vector.
    method : str
        How another number of points is reached. ``fourier``: the periodic, band-limited interpolation,
        exact for what both grids can hold; it may ring below 0 beside a nucleus. ``conservative``: the
        mean over the volume that belongs to each point, which never rings and blurs by up to a point.
    density : str
        What the density counts, a statement for the manifest: the valence electrons (a CHGCAR), or all.
    scale : str
        ``absolute``: e/A^3. ``mean``: in units of the cell's mean density, which is all that can be had
        from a density whose cell volume is not known (`shards.sources.base.RHO_V`).
    noise : float
        Values down to minus this (in units of ``scale``) are always set to 0.
    max_negative : float
        Lower ones too, as long as they take away at most this share of the electrons: pseudo-densities
        dip below 0 in a few points near nuclei. Beyond it the density is refused.
    """

    kind: ClassVar[Kind] = "grid"
    step: Literal["charge_density"] = "charge_density"
    points: int = Field(32, ge=2, le=256)
    method: Literal["fourier", "conservative"] = "fourier"
    density: Literal["valence", "all-electron"] = "valence"
    scale: Literal["absolute", "mean"] = "absolute"
    noise: float = Field(1e-2, ge=0.0)
    max_negative: float = Field(0.02, ge=0.0, lt=1.0)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a charge density."""
        shape = (self.points, self.points, self.points)
        unit = "e/A^3" if self.scale == "absolute" else ""
        fields = {"density": FieldSpec(dtype="float16", shape=shape, unit=unit)}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``density`` (points, points, points) float16 in units of ``scale``, or None without one."""
        given = record.charge_density
        if given is None:
            given = record.arrays.get(RHO_V)
            if given is None:
                return None
            if self.scale == "absolute":
                raise DataError(
                    "the charge density is known up to the volume of its cell only",
                    where=record.id,
                    why="the source has densities times volume, and no volumes",
                    do="set scale = 'mean' in the charge_density feature",
                )
        density = self._checked(np.asarray(given), record.id)
        if density.shape != (self.points,) * 3:
            change = resample if self.method == "fourier" else average
            density = _non_negative(change(density, self.points), density.mean(dtype=np.float64))
        elif density.min() < 0:
            density = _non_negative(density, density.mean(dtype=np.float64))
        return {"density": density.astype(np.float16)}

    def _checked(self, density: np.ndarray, where: str) -> np.ndarray:
        """Return the density in units of ``scale``, or raise `DataError`."""
        problem, why = None, None
        if density.ndim != 3 or min(density.shape) < 2:
            problem = f"the charge density has shape {density.shape}, not (n, n, n)"
        elif not np.isfinite(density).all():
            problem = "the charge density holds NaN or infinity"
        elif self.scale == "mean":
            mean = density.mean(dtype=np.float64)
            if mean > 0:
                density = density / mean
            else:
                problem = f"the charge density has the mean {mean:.3g}, so there are no electrons"
        if problem is None and density.min() < -self.noise:
            negative, total = -np.minimum(density, 0.0).sum(dtype=np.float64), density.sum(dtype=np.float64)
            if negative > self.max_negative * total:
                problem = f"the charge density is negative: down to {density.min():.3g}, {negative:.3g} of {total:.3g}"
                why = "a magnetisation density, a difference density, or a grid that is too coarse"
        if problem is None and density.max() > np.finfo(np.float16).max:
            problem = f"the charge density reaches {density.max():.3g}, more than float16 holds"
            why = "a density per cell (VASP's CHGCAR) that was not divided by the volume"
        if problem is not None:
            raise DataError(problem, where=where, why=why, do="repair the source, or leave the density out")
        return density


def resample(density: np.ndarray, points: int) -> np.ndarray:
    """Resample a periodic grid to ``points``^3 by Fourier interpolation.

    Along each axis the spectrum is cut or filled with zeros. The wave at half of an even number of
    points stands for both signs of its frequency: it is split between them on the way up, and the two
    are added on the way down, so that the result stays real and is what sampling the wave would give.

    Parameters
    ----------
    density : ndarray
        (n1, n2, n3); index i is fractional coordinate i / n.
    points : int
        Points along each axis of the result.

    Returns
    -------
    ndarray
        (points, points, points) float64, with the same mean.
    """
    from scipy.signal import resample as fourier_resample

    values = density.astype(np.float64)
    for axis in _axes(density.shape, points):
        values = fourier_resample(values, points, axis=axis)
    return values


def average(density: np.ndarray, points: int) -> np.ndarray:
    """Resample a periodic grid to ``points``^3 by averaging over the volume of each point.

    The volume of point i of n reaches from (i - 1/2) / n to (i + 1/2) / n along each axis, so that
    nothing is shifted. Parameters and result are those of `resample`; what is not negative stays so.
    """
    values = density.astype(np.float64)
    for axis in _axes(density.shape, points):
        weights = _overlap(density.shape[axis], points)
        values = np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis)
    return values


def _axes(shape: tuple[int, ...], points: int) -> list[int]:
    """Axes that change, the ones that shrink most first: what follows has less to do."""
    return sorted((axis for axis in range(3) if shape[axis] != points), key=lambda axis: -shape[axis])


def _overlap(source: int, target: int) -> np.ndarray:
    """Return (target, source) weights: the share of each target interval that lies in each source interval."""
    width = source / target
    low = (np.arange(target)[:, None] - 0.5) * width
    total = np.zeros((target, source))
    for image in (-source, 0, source):
        left = np.arange(source)[None, :] - 0.5 + image
        total += np.clip(np.minimum(low + width, left + 1.0) - np.maximum(low, left), 0.0, None)
    return total / width


def _non_negative(values: np.ndarray, mean: float) -> np.ndarray:
    """Set negative values to 0 and scale the rest, so that the mean is ``mean`` again."""
    values = np.maximum(values, 0.0)
    return values * (mean / values.mean(dtype=np.float64)) if mean > 0 else values
