"""From eigenvalues to band edges and a density of states; plain numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.embedded.generate.grids import refine_periodic

FloatArray = NDArray[np.float64]

WINDOW_EV = np.linspace(-10, 10, 601)  # the stored energies, relative to the zero of the DOS
SMEARING_EV = 0.15  # standard deviation of the Gaussian
BIN_EV = 0.01
METAL_BELOW_EV = 0.05  # a smaller gap on the SCF mesh is called a metal at once


@dataclass(frozen=True)
class Edges:
    """Band edges in eV on GPAW's absolute scale; the gaps are 0 and ``vbm_ev`` is the Fermi energy for a metal."""

    gap_ev: float
    direct_ev: float
    vbm_ev: float
    is_metal: bool

    @property
    def zero_ev(self) -> float:
        """Zero of the stored DOS: valence-band maximum, or Fermi energy of a metal."""
        return self.vbm_ev


@dataclass(frozen=True)
class StateDensity:
    """A DOS on `WINDOW_EV` and the sums that check it."""

    states: FloatArray  # (601,) states/eV/cell, both spins
    electrons_to_fermi: float  # integral of the unsmoothed DOS up to the Fermi energy (mid-gap)
    electrons_below_window: float
    complete_up_to_ev: float  # the DOS is too low beyond: the bands were cut there


def gaps(bands: FloatArray, electrons: int) -> tuple[float, float, float]:
    """Indirect gap, direct gap and valence-band maximum (eV) with ``electrons / 2`` filled bands.

    Parameters
    ----------
    bands : (k, n)
        Eigenvalues, eV.
    electrons
        Even number of electrons a cell.
    """
    filled = electrons // 2
    valence, conduction = bands[:, filled - 1], bands[:, filled]
    return float(conduction.min() - valence.max()), float((conduction - valence).min()), float(valence.max())


def band_edges(bands: FloatArray, electrons: int, fermi_ev: float) -> Edges:
    """Call the crystal a metal (odd electrons, or a gap of at most 0.05 eV) or give its gaps."""
    if electrons % 2 == 0:
        gap, direct, top = gaps(bands, electrons)
        if gap > METAL_BELOW_EV:
            return Edges(gap, direct, top, False)
    return Edges(0.0, 0.0, fermi_ev, True)


def density_of_states(mesh: FloatArray, edges: Edges, fermi_ev: float, unconverged: int) -> StateDensity:
    """Histogram of linearly interpolated bands, smoothed with a Gaussian.

    Parameters
    ----------
    mesh : (kx, ky, kz, n)
        Eigenvalues (eV) on the whole, not the irreducible, k mesh.
    edges, fermi_ev
        Band edges and Fermi energy, eV.
    unconverged
        How many of the highest bands the SCF did not converge.
    """
    n_bands = mesh.shape[-1]
    fine = mesh
    for axis in range(3):
        fine = refine_periodic(fine, axis, 4 if mesh.shape[axis] < 12 else 3)
    limits = np.arange(mesh.min() - 1, edges.zero_ev + 12, BIN_EV)
    counts = np.histogram(fine, limits)[0]
    states = 2 * counts / (fine.size / n_bands) / BIN_EV
    electrons = np.concatenate([[0], np.cumsum(states) * BIN_EV])
    filled_to = fermi_ev if edges.is_metal else edges.vbm_ev + edges.gap_ev / 2
    centres = limits[:-1] + BIN_EV / 2
    return StateDensity(
        states=np.interp(WINDOW_EV + edges.zero_ev, centres, _smooth(states)),
        electrons_to_fermi=float(np.interp(filled_to, limits, electrons)),
        electrons_below_window=float(np.interp(edges.zero_ev + WINDOW_EV[0], limits, electrons)),
        complete_up_to_ev=float(mesh[..., -(unconverged + 1)].min() - edges.zero_ev),
    )


def _smooth(states: FloatArray) -> FloatArray:
    reach = int(5 * SMEARING_EV / BIN_EV)
    offsets = np.arange(-reach, reach + 1) * BIN_EV
    kernel = np.exp(-0.5 * (offsets / SMEARING_EV) ** 2)
    return np.convolve(states, kernel / kernel.sum(), "same")
