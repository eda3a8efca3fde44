"""A measured spectrum (XRD, Raman, infrared, ...) on a uniform grid."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.features.cells import cell_edges, cell_means
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record


@FEATURES.register("spectrum")
class SpectrumFeature(Feature):
    """One of the record's arrays -> intensity at ``points`` abscissae from ``start`` to ``stop``.

    Each grid point gets the mean of the spectrum, linear between its own points, over the half step on either side of
    it. So the area stays, and no peak of a finely measured spectrum falls between grid points.

    Attributes
    ----------
    array : str
        Its name in the source: (2, n) abscissae and intensities, the abscissae ascending or descending; or (n,)
        intensities at equal distances from ``array_start`` to ``array_stop``.
    start, stop : float
        First and last abscissa of the grid.
    points : int
        Number of grid points, both ends included.
    axis_unit, intensity_unit : str
        Units of the grid (``deg``, ``cm^-1``) and of the intensity.
    array_start, array_stop : float, optional
        Abscissae of the first and last of (n,) intensities.
    normalize : str
        ``max``: largest value 1; ``area``: area 1; ``none``: as measured.
    min_coverage : float
        Least share of the window that must have been measured; outside of what was, the intensity is 0.
    """

    kind: ClassVar[Kind] = "spectrum"
    step: Literal["spectrum"] = "spectrum"
    array: str
    start: float
    stop: float
    points: int = Field(512, ge=2, le=100_000)
    axis_unit: str
    intensity_unit: str = ""
    array_start: float | None = None
    array_stop: float | None = None
    normalize: Literal["none", "max", "area"] = "max"
    min_coverage: float = Field(0.95, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _windows(self) -> SpectrumFeature:
        if not self.start < self.stop:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        if (self.array_start is None) != (self.array_stop is None):
            raise ValueError("give array_start and array_stop, or neither")
        if self.array_start is not None and self.array_start == self.array_stop:
            raise ValueError("array_start and array_stop are the same")
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a spectrum."""
        unit = self.intensity_unit if self.normalize == "none" else ""
        fields = {"intensity": FieldSpec(dtype="float32", shape=(self.points,), unit=unit)}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``intensity`` (points,) float32, or None where the record has no such array."""
        if self.array not in record.arrays:
            return None
        axis, intensity = self._columns(record.arrays[self.array], record.id)
        covered = min(axis[-1], self.stop) - max(axis[0], self.start)
        if covered < self.min_coverage * (self.stop - self.start) * (1.0 - 1e-6):
            raise DataError(
                f"the spectrum '{self.array}' covers {axis[0]:.4g} to {axis[-1]:.4g} {self.axis_unit} of the window "
                f"{self.start:g} to {self.stop:g}, less than {self.min_coverage:.0%}",
                where=record.id,
                do="narrow the window (start, stop), lower min_coverage, or leave the spectrum out",
            )
        values = cell_means(axis, intensity, cell_edges(np.linspace(self.start, self.stop, self.points)))
        return {"intensity": self._scaled(values, record.id)}

    def _columns(self, array: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Return ascending abscissae and their intensities as float64, or raise `DataError`."""
        problem, axis = None, np.empty(0)
        if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or array.shape[-1] < 2:
            problem = f"the spectrum '{self.array}' is {array.dtype}{list(array.shape)}"
        elif array.ndim == 1 and self.array_start is not None and self.array_stop is not None:
            array = np.stack([np.linspace(self.array_start, self.array_stop, len(array)), array])
        elif array.ndim == 1:
            problem = f"the spectrum '{self.array}' has no abscissae, and the step has no array_start and array_stop"
        elif len(array) != 2:
            problem = f"the spectrum '{self.array}' has {len(array)} rows, not abscissae and intensities"
        if problem is None:
            axis, intensity = np.asarray(array, dtype=np.float64)
            if axis[0] > axis[-1]:
                axis, intensity = axis[::-1], intensity[::-1]
            if not np.isfinite(array).all():
                problem = f"the spectrum '{self.array}' holds NaN or infinity"
            elif not (np.diff(axis) > 0).all():
                problem = f"the abscissae of the spectrum '{self.array}' are not in order, each once"
        if problem is not None:
            raise DataError(problem, where=where, do="repair the source, or leave the spectrum out of the record")
        return axis, intensity

    def _scaled(self, values: np.ndarray, where: str) -> np.ndarray:
        if self.normalize != "none":
            step = (self.stop - self.start) / (self.points - 1)
            area = step * (values.sum() - (values[0] + values[-1]) / 2.0)
            size = values.max() if self.normalize == "max" else area
            if not size > 0.0:
                raise DataError(
                    f"the spectrum '{self.array}' is nowhere above 0 in the window", where=where, do="leave it out"
                )
            values = values / size
        return values.astype(np.float32)
