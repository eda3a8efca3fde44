"""The electronic density of states on a uniform energy grid."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import RawDos, Record


@FEATURES.register("dos")
class DosFeature(Feature):
    """Density of states -> states per eV and atom on ``points`` energies from ``start`` to ``stop``.

    Energies are counted from the record's ``zero_ev``, so moving the energy axis and the zero
    together changes nothing. Between the source's energies the density is linear, outside of them
    it is 0.

    Attributes
    ----------
    start, stop : float
        First and last energy of the grid, eV.
    points : int
        Number of grid points, both ends included.
    axis_unit : str
        Unit of the grid.
    min_coverage : float
        Least share of the window that the source's energies must cover.
    noise : float
        Values down to minus this (states/eV/atom) are set to 0, lower ones are refused.
    """

    kind: ClassVar[Kind] = "spectrum"
    step: Literal["dos"] = "dos"
    start: float = -10.0
    stop: float = 10.0
    points: int = Field(601, ge=2, le=100_000)
    axis_unit: Literal["eV"] = "eV"
    min_coverage: float = Field(0.6, ge=0.0, le=1.0)
    noise: float = Field(1e-3, ge=0.0)

    @model_validator(mode="after")
    def _window(self) -> DosFeature:
        if not self.start < self.stop:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a density of states."""
        fields = {"intensity": FieldSpec(dtype="float32", shape=(self.points,), unit="states/eV/atom")}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``intensity`` (points,) float32 in states/eV/atom, or None without a density of states."""
        if record.dos is None:
            return None
        energy, states = _checked(record.dos, record.id)
        energy = energy - record.dos.zero_ev
        covered = min(energy[-1], self.stop) - max(energy[0], self.start)
        if covered < self.min_coverage * (self.stop - self.start) * (1.0 - 1e-6):
            raise DataError(
                f"the density of states covers {energy[0]:.3g} to {energy[-1]:.3g} eV of the window "
                f"{self.start:g} to {self.stop:g} eV, less than {self.min_coverage:.0%}",
                where=record.id,
                why="a narrow calculation, or zero_ev on another scale than the energies",
                do="check zero_ev, or choose a smaller window (start, stop)",
            )
        states = states / record.dos.atoms
        if states.min() < -self.noise:
            raise DataError(
                f"the density of states is negative: {states.min():.3g} states/eV/atom",
                where=record.id,
                why="a difference of spin channels (spin down stored as negative), or a failed calculation",
                do="give the sum of both spin channels",
            )
        grid = np.linspace(self.start, self.stop, self.points)
        # Rounding must not push the grid's ends out of a source that spans just this window.
        tolerance = 1e-6 * (self.stop - self.start)
        inside = (grid >= energy[0] - tolerance) & (grid <= energy[-1] + tolerance)
        intensity = np.where(inside, np.interp(grid, energy, states), 0.0)
        return {"intensity": np.maximum(intensity, 0.0).astype(np.float32)}


def _checked(dos: RawDos, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return energies and states as float64, or raise `DataError`."""
    energy = np.asarray(dos.energy_ev, dtype=np.float64)
    states = np.asarray(dos.states_per_ev, dtype=np.float64)
    problem = None
    if energy.ndim != 1 or energy.shape != states.shape or len(energy) < 2:
        problem = f"energies {energy.shape} and states {states.shape} are not two columns of equal length"
    elif not (np.isfinite(energy).all() and np.isfinite(states).all() and np.isfinite(dos.zero_ev)):
        problem = "the density of states holds NaN or infinity"
    elif not (np.diff(energy) > 0).all():
        problem = "the energies of the density of states do not ascend"
    elif dos.atoms < 1:
        problem = f"the density of states is given for {dos.atoms} atoms"
    if problem is not None:
        raise DataError(problem, where=where, do="repair the source, or leave the density of states out")
    return energy, states
