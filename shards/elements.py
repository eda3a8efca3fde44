"""Physical descriptors of the chemical elements, as the input of crystal encoders.

The table is shipped as ``element_features.npy``, so that reading it needs no pymatgen and a
checkpoint sees the same numbers under every version of it. ``python -m shards.elements`` computes it
anew from pymatgen's periodic table (and its covalent radii: Cordero et al., Dalton Trans. 2832 (2008)).
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Element

PATH = Path(__file__).with_name("element_features.npy")
MAX_Z = 118
SUBSHELLS = {"s": 2, "p": 6, "d": 10, "f": 14}
CONTINUOUS = (
    "period",
    "group",
    "mendeleev_number",
    "log_atomic_mass",
    "electronegativity",
    "electron_affinity_ev",
    "log_ionisation_energy_1",
    "log_ionisation_energy_2",
    "log_ionisation_energy_3",
    "atomic_radius_a",
    "calculated_radius_a",
    "covalent_radius_a",
    "van_der_waals_radius_a",
    "ionic_radius_a",
    "log_melting_point",
    "log_boiling_point",
    "log_molar_volume",
    "lowest_oxidation_state",
    "highest_oxidation_state",
    *(f"valence_{shell}" for shell in SUBSHELLS),
    *(f"unfilled_{shell}" for shell in SUBSHELLS),
)
NAMES = (*CONTINUOUS, *(f"block_{shell}" for shell in SUBSHELLS), "is_metal", "is_metalloid")


def element_features() -> np.ndarray:
    """Return the descriptors of every element.

    Returns
    -------
    ndarray
        (119, F) float32; row Z is the element of atomic number Z, row 0 is all zeros (unknown). Columns
        are named by `NAMES`: first quantities with mean 0 and standard deviation 1 over the 118
        elements, then switches of value 0 or 1. The array is the caller's own.
    """
    return _load().copy()


@lru_cache(maxsize=1)
def _load() -> np.ndarray:
    return np.load(PATH, allow_pickle=False)


def compute_element_features() -> np.ndarray:
    """Compute the table from pymatgen; see `element_features`.

    A value that pymatgen does not know is the mean over elements of the same group and block, or
    else over all elements.
    """
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every value that it lacks
        elements = [Element.from_Z(z) for z in range(1, MAX_Z + 1)]
        rows = np.array([_continuous(element) for element in elements], dtype=np.float64)
        switches = np.array(
            [
                [*(element.block == shell for shell in SUBSHELLS), element.is_metal, element.is_metalloid]
                for element in elements
            ],
            dtype=np.float64,
        )
        families = np.array([f"{element.group}{element.block}" for element in elements])
    for family in np.unique(families):
        _fill(rows, families == family)
    _fill(rows, np.ones(MAX_Z, dtype=bool))
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    table = np.zeros((MAX_Z + 1, len(NAMES)), dtype=np.float32)
    table[1:] = np.concatenate([rows, switches], axis=1)
    return table


def _fill(rows: np.ndarray, members: np.ndarray) -> None:
    """Set the NaNs of the rows ``members`` to the mean of the known values of these rows, in place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column without any known value stays NaN
        mean = np.nanmean(rows[members], axis=0)
    rows[members] = np.where(np.isnan(rows[members]), mean, rows[members])


def _continuous(element: Element) -> list[float]:
    """Return the quantities named by `CONTINUOUS`, NaN where unknown."""
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius

    energies = [*(element.ionization_energies or []), None, None, None]
    valence = _valence(element)
    oxidation = element.oxidation_states or (0,)
    return [
        element.row,
        element.group,
        _number(element, "mendeleev_no"),
        float(np.log(float(element.atomic_mass))),
        _number(element, "X"),
        _number(element, "electron_affinity"),
        *(_log(value) for value in energies[:3]),
        _number(element, "atomic_radius"),
        _number(element, "atomic_radius_calculated"),
        float(CovalentRadius.radius.get(element.symbol, np.nan)),
        _number(element, "van_der_waals_radius"),
        _number(element, "average_ionic_radius") or np.nan,  # pymatgen gives 0 for an unknown one
        _log(_number(element, "melting_point")),
        _log(_number(element, "boiling_point")),
        _log(_number(element, "molar_volume")),
        min(oxidation),
        max(oxidation),
        *valence,
        *(capacity - count if count else 0.0 for capacity, count in zip(SUBSHELLS.values(), valence, strict=True)),
    ]


def _number(element: Element, name: str) -> float:
    """Return a property as a float, NaN where pymatgen lacks it."""
    try:
        return float(getattr(element, name))
    except (AttributeError, KeyError, TypeError, ValueError):
        return float("nan")


def _log(value: float | None) -> float:
    return float(np.log(value)) if value is not None and value > 0 else float("nan")


def _valence(element: Element) -> list[float]:
    """Return the valence electrons in s, p, d and f subshells.

    Beside the noble gas core, closed inner subshells count as core: f14 of the d and p blocks, d10 of the p
    block. The configurations of Z > 104 are not in pymatgen: they are taken from the element one period above.
    """
    from pymatgen.core import Element

    source = element if element.Z <= 104 else Element.from_Z(element.Z - 32)
    shells = re.findall(r"\d([spdf])(\d+)", source.electronic_structure.split("]")[-1])
    counts = {name: sum(int(count) for shell, count in shells if shell == name) for name in SUBSHELLS}
    if element.block in "dp" and counts["f"] == SUBSHELLS["f"]:
        counts["f"] = 0
    if element.block == "p" and counts["d"] == SUBSHELLS["d"]:
        counts["d"] = 0
    return [float(count) for count in counts.values()]


if __name__ == "__main__":
    np.save(PATH, compute_element_features(), allow_pickle=False)
