"""The electronic density of states on a uniform energy grid."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.features.cells import cell_edges, cell_means
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import RawDos, Record

# grid points that are smeared at once: bounds the memory
CHUNK = 64


@FEATURES.register("dos")
class DosFeature(Feature):
    """Density of states -> states per eV and atom on ``points`` energies from ``start`` to ``stop``.

    Energies are counted from the record's ``zero_ev``, so moving the energy axis and the zero
    together changes nothing. Between the source's energies the density is linear, outside of them it
    is 0. Where the source's step is the grid's, or a multiple of it, the density is read at the grid's
    energies. On any other source each grid point holds the mean over its own interval (half a step to
    both sides, inside of the window), so that no peak falls between two points. Either way the integral
    of ``intensity`` by the trapezoidal rule is the number of states in the window.

    Attributes
    ----------
    start, stop : float
        First and last energy of the grid, eV.
    points : int
        Number of grid points, both ends included.
    axis_unit : str
        Unit of the grid.
    smearing_ev : float
        Standard deviation of a Gaussian that the density is convolved with, eV, on top of what the
        source did; 0 for none. The number of states stays.
    scale : str
        ``absolute``: states/eV/atom. ``area``: divided by the number of states in the window, which is
        all that can be had from a density that is known up to a factor (`RawDos.absolute`).
    min_coverage : float
        Least share of the window that the source's energies must cover.
    noise : float
        Values down to minus this (states/eV/atom, or of the source where it knows no atoms) are always
        set to 0.
    max_negative : float
        Lower ones too, as long as they take away at most this share of the states: the smearing of
        Methfessel and Paxton dips below 0 at band edges. Beyond it the density is refused.
    """

    kind: ClassVar[Kind] = "spectrum"
    step: Literal["dos"] = "dos"
    start: float = -10.0
    stop: float = 10.0
    points: int = Field(601, ge=2, le=100_000)
    axis_unit: Literal["eV"] = "eV"
    smearing_ev: float = Field(0.0, ge=0.0, le=10.0)
    scale: Literal["absolute", "area"] = "absolute"
    min_coverage: float = Field(0.6, ge=0.0, le=1.0)
    noise: float = Field(1e-3, ge=0.0)
    max_negative: float = Field(0.02, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _window(self) -> DosFeature:
        if not self.start < self.stop:
            raise ValueError(f"start ({self.start}) must be below stop ({self.stop})")
        return self

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a density of states."""
        unit = "states/eV/atom" if self.scale == "absolute" else "1/eV"
        fields = {"intensity": FieldSpec(dtype="float32", shape=(self.points,), unit=unit)}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``intensity`` (points,) float32 in units of ``scale``, or None without a density of states."""
        if record.dos is None:
            return None
        energy, states = _checked(record.dos, record.id)
        energy = energy - record.dos.zero_ev
        states = states / record.dos.atoms
        self._refuse(record, energy, states)
        intensity = np.maximum(self._resampled(energy, states), 0.0)
        if self.scale == "area":
            area = np.trapezoid(intensity, dx=(self.stop - self.start) / (self.points - 1))
            if area <= 0:
                raise DataError("the density of states has no states in the window", where=record.id)
            intensity = intensity / area
        return {"intensity": intensity.astype(np.float32)}

    def _refuse(self, record: Record, energy: np.ndarray, states: np.ndarray) -> None:
        """Raise `DataError` where the density does not reach over the window, is negative, or of unknown scale."""
        if self.scale == "absolute" and record.dos is not None and not record.dos.absolute:
            raise DataError(
                "the density of states is known up to a factor only",
                where=record.id,
                why="the source tells neither the number of atoms nor of spin channels",
                do="set scale = 'area' in the dos feature",
            )
        covered = min(energy[-1], self.stop) - max(energy[0], self.start)
        if covered < self.min_coverage * (self.stop - self.start) * (1.0 - 1e-6):
            raise DataError(
                f"the density of states covers {energy[0]:.3g} to {energy[-1]:.3g} eV of the window "
                f"{self.start:g} to {self.stop:g} eV, less than {self.min_coverage:.0%}",
                where=record.id,
                why="a narrow calculation, or zero_ev on another scale than the energies",
                do="check zero_ev, or choose a smaller window (start, stop)",
            )
        if states.min() < -self.noise:
            negative = np.trapezoid(-np.minimum(states, 0.0), energy)
            if negative > self.max_negative * np.trapezoid(states, energy):
                raise DataError(
                    f"the density of states is negative: {states.min():.3g} states/eV/atom, "
                    f"{negative:.3g} states in all",
                    where=record.id,
                    why="a difference of spin channels (spin down stored as negative), or a failed calculation",
                    do="give the sum of both spin channels",
                )

    def _resampled(self, energy: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return (points,) values on the grid."""
        grid = np.linspace(self.start, self.stop, self.points)
        step = (self.stop - self.start) / (self.points - 1)
        edges = cell_edges(grid)
        if self.smearing_ev > 0:
            # points that lie denser than sigma have the mean of what lies between them
            parts = int(np.ceil(step / self.smearing_ev))
            inside = np.diff(edges)[:, None] * (np.arange(parts) + 0.5) / parts
            fine = grid if parts == 1 else (edges[:-1, None] + inside).ravel()
            return _smeared(energy, states, self.smearing_ev, fine).reshape(self.points, parts).mean(axis=1)
        if not _is_multiple(np.diff(energy), step):
            return cell_means(energy, states, edges)
        # Rounding must not push the grid's ends out of a source that spans just this window.
        tolerance = 1e-6 * (self.stop - self.start)
        inside = (grid >= energy[0] - tolerance) & (grid <= energy[-1] + tolerance)
        return np.where(inside, np.interp(grid, energy, states), 0.0)


def _is_multiple(steps: np.ndarray, step: float) -> bool:
    """Tell whether a source's steps are one multiple of the grid's step, up to the rounding of energies."""
    multiple = max(round(float(np.median(steps)) / step), 1)
    return bool(np.abs(steps - multiple * step).max() < 2e-3 * step)


def _smeared(energy: np.ndarray, states: np.ndarray, sigma: float, at: np.ndarray) -> np.ndarray:
    """Convolve the piecewise linear density with a normal distribution, exactly, at ascending energies ``at``.

    The convolution of ``a + b t`` on a segment is ``(a + b x) * P - b * sigma^2 * p``, with P and p the
    differences of the normal distribution function and of its density over the segment's ends.
    """
    from scipy.special import ndtr

    slopes = np.diff(states) / np.diff(energy)
    values = np.zeros(len(at))
    for begin in range(0, len(at), CHUNK):
        x = at[begin : begin + CHUNK]
        # segments farther away than this hold less than 1e-15 of the kernel
        first = max(int(np.searchsorted(energy, x[0] - 8 * sigma, side="right")) - 1, 0)
        last = min(int(np.searchsorted(energy, x[-1] + 8 * sigma)), len(energy) - 1)
        if last <= first:
            continue
        scaled = (energy[first : last + 1] - x[:, None]) / sigma
        share = np.diff(ndtr(scaled), axis=1)
        density = np.diff(np.exp(-0.5 * scaled**2), axis=1) * sigma / np.sqrt(2 * np.pi)
        slope = slopes[first:last]
        at_x = states[first:last] + slope * (x[:, None] - energy[first:last])
        values[begin : begin + CHUNK] = (at_x * share - slope * density).sum(axis=1)
    return values


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
