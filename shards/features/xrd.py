"""The powder X-ray diffraction pattern, calculated from the structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.crystals import check_structure, primitive_cell
from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record

if TYPE_CHECKING:
    from pymatgen.core import Structure


@FEATURES.register("xrd")
class XrdFeature(Feature):
    """Structure -> diffraction intensity on a uniform grid of two theta, largest value 1.

    Peaks come from pymatgen's ``XRDCalculator`` (no thermal motion, no texture) and are broadened by a
    Gaussian. The pattern does not change with rotation, the order of atoms or the choice of cell.

    Attributes
    ----------
    start, stop : float
        First and last two theta of the grid, degrees.
    points : int
        Number of grid points, both ends included.
    axis_unit : str
        Unit of the grid.
    wavelength : str
        X-ray source, by pymatgen's names (``CuKa`` is 1.54184 A).
    fwhm_deg : float
        Full width at half maximum of a peak, degrees; at least two grid steps, so that no peak falls
        between grid points.
    symprec_a : float
        Tolerance of the primitive reduction, Angstrom.
    """

    kind: ClassVar[Kind] = "spectrum"
    step: Literal["xrd"] = "xrd"
    start: float = Field(10.0, ge=0.0)
    stop: float = Field(90.0, le=180.0)
    points: int = Field(512, ge=2, le=100_000)
    axis_unit: Literal["deg"] = "deg"
    wavelength: Literal["CuKa", "CuKa1", "MoKa", "MoKa1", "CoKa", "CrKa", "FeKa", "AgKa"] = "CuKa"
    fwhm_deg: float = Field(0.5, gt=0.0)
    symprec_a: float = Field(0.01, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _grid(self) -> XrdFeature:
        if not self.start < self.stop:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        spacing = (self.stop - self.start) / (self.points - 1)
        if self.fwhm_deg < 2.0 * spacing:
            raise ValueError(
                f"fwhm_deg ({self.fwhm_deg:g}) is below two steps of the grid ({2 * spacing:.3g} deg): "
                "peaks would fall between grid points; raise it or raise points"
            )
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a diffraction pattern."""
        fields = {"intensity": FieldSpec(dtype="float32", shape=(self.points,))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``intensity`` (points,) float32 from 0 to 1, or None without a structure."""
        if record.structure is None:
            return None
        angle, height = self._peaks(record.structure, record.id)
        grid = np.linspace(self.start, self.stop, self.points)
        sigma = self.fwhm_deg / (2.0 * np.sqrt(2.0 * np.log(2.0)))
        intensity = np.exp(-0.5 * ((grid[:, None] - angle) / sigma) ** 2) @ height
        largest = intensity.max(initial=0.0)
        if not largest > 1e-6 * height.max(initial=1e-30):
            raise DataError(
                f"the crystal has no diffraction peak from {self.start:g} to {self.stop:g} degrees",
                where=record.id,
                do="widen the range (start, stop) or choose another wavelength",
            )
        return {"intensity": (intensity / largest).astype(np.float32)}

    def _peaks(self, structure: Structure, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Return two theta (p,) in degrees and heights (p,) of the peaks in and just outside the window."""
        from pymatgen.analysis.diffraction.xrd import XRDCalculator

        check_structure(structure, where=where)
        cell = primitive_cell(structure, symprec_a=self.symprec_a)
        margin = 2.0 * self.fwhm_deg
        window = (max(self.start - margin, 0.0), min(self.stop + margin, 179.9))
        try:
            pattern = XRDCalculator(self.wavelength).get_pattern(cell, scaled=False, two_theta_range=window)
        except ValueError as error:
            raise DataError(
                "pymatgen cannot calculate the diffraction pattern",
                where=where,
                why=str(error),
                do="leave the modality out of this record",
            ) from None
        return np.asarray(pattern.x), np.asarray(pattern.y)
