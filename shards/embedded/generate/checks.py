"""Which finished calculations are good enough for the set, and the corrections of small gaps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.embedded.generate.bands import WINDOW_EV
from shards.embedded.generate.catalog import NOBLE_GASES

METAL_BELOW_EV = 0.03  # a gap that was re-checked on the dense mesh
METAL_BELOW_UNCHECKED_EV = 0.1
BAD_CELLS = ("As_ground", "Se_ground", "Te_ground")  # CHGNet's volume is more than 9 percent from PBE


@dataclass(frozen=True)
class Solved:
    """One finished crystal: the stages' summaries, its arrays, and the final band edges."""

    crystal: dict[str, Any]
    scf: dict[str, Any]
    dos: NDArray[np.float32]
    density: NDArray[np.float16]
    gap_ev: float
    direct_gap_ev: float
    is_metal: bool
    gap_checked: bool = False
    formation_ev: float | None = None

    @property
    def name(self) -> str:
        """Id of the crystal."""
        return self.crystal["id"]

    @property
    def n_atoms(self) -> int:
        """Atoms in the cell."""
        return len(self.crystal["species"])

    @property
    def volume(self) -> float:
        """Of the cell, cubic Angstrom."""
        return float(abs(np.linalg.det(np.array(self.crystal["cell"]))))

    @property
    def density_integral(self) -> float:
        """Electrons in the stored float16 grid."""
        return float(self.density.astype(np.float64).mean() * self.volume)


def apply_gap_check(solved: Solved, check: dict[str, Any] | None) -> Solved:
    """Take the smaller gap of the two meshes, and call what is left below 0.03 eV (0.1 eV unchecked) a metal.

    The zero of the DOS stays where the SCF put it (the valence-band maximum) for a crystal that becomes a metal here.
    """
    if solved.is_metal:
        return replace(solved, gap_checked=check is not None)
    gap, direct = solved.gap_ev, solved.direct_gap_ev
    if check is not None:
        gap, direct = min(gap, check["gap_ev"]), min(direct, check["direct_gap_ev"])
    if gap < (METAL_BELOW_UNCHECKED_EV if check is None else METAL_BELOW_EV):
        return replace(solved, gap_ev=0.0, direct_gap_ev=0.0, is_metal=True, gap_checked=check is not None)
    return replace(solved, gap_ev=gap, direct_gap_ev=direct, gap_checked=check is not None)


def windowed_integral(solved: Solved) -> float:
    """Electrons from the stored, smoothed DOS up to the Fermi energy (mid-gap), plus those below the window."""
    scf = solved.scf
    top = scf["fermi_ev"] - scf["zero_ev"] if scf["is_metal"] else min(scf["gap_ev"] / 2, 9.9)
    step = WINDOW_EV[1] - WINDOW_EV[0]
    return float(solved.dos[top >= WINDOW_EV].sum() * step + scf["electrons_below_window"])


def problems(solved: Solved) -> list[str]:
    """Why a finished crystal is dropped; empty when it is good."""
    scf, electrons = solved.scf, solved.scf["n_valence"]
    found = []
    if abs(scf["electrons_to_fermi"] - electrons) > max(0.02 * electrons, 0.1):
        found.append(f"DOS integral {scf['electrons_to_fermi']:.2f} of {electrons}")
    # A band across the lower edge of the window makes this second sum ambiguous; the first one still holds then.
    windowed = windowed_integral(solved)
    if solved.dos[0] < 0.3 and abs(windowed - electrons) > max(0.04 * electrons, 0.4):
        found.append(f"windowed DOS integral {windowed:.2f} of {electrons}")
    if solved.name.split("_")[0] in NOBLE_GASES:
        found.append("noble gas: CHGNet has no bonds there, volume not trusted")
    if solved.name in BAD_CELLS:
        found.append("CHGNet volume off by more than 9 percent from PBE")
    if not 0 <= solved.crystal["bulk_modulus_chgnet_gpa"] <= 700:
        found.append("CHGNet modulus")
    found += _array_problems(solved)
    if scf["dos_complete_up_to_ev"] < 3:
        found.append("too few bands")
    if solved.formation_ev is not None and not -6 < solved.formation_ev < 2.5:
        found.append(f"formation energy {solved.formation_ev:.2f}")
    return found


def _array_problems(solved: Solved) -> list[str]:
    scf, electrons = solved.scf, solved.scf["n_valence"]
    found = []
    if abs(scf["density_raw_integral"] - electrons) > 0.12 * electrons:
        found.append(f"raw density integral {scf['density_raw_integral']:.3f} of {electrons}")
    if abs(solved.density_integral - electrons) > 0.01 * electrons:
        found.append(f"float16 density integral {solved.density_integral:.3f}")
    if not np.isfinite(solved.dos).all() or not np.isfinite(solved.density).all() or solved.dos.min() < -1e-6:
        found.append("not finite")
    if scf["density_min"] < -0.02:
        found.append(f"negative density {scf['density_min']:.3f}")
    return found
