"""The source contract: what an adapter yields before any feature is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True, kw_only=True)
class RawDos:
    """A density of states as its source gives it.

    Attributes
    ----------
    energy_ev : ndarray
        (n,) ascending energies in eV, on any absolute scale.
    states_per_ev : ndarray
        (n,) states per eV for ``atoms`` atoms, both spins.
    zero_ev : float
        Energy that becomes 0 eV: the Fermi energy of a metal, the valence band maximum of an insulator.
    atoms : int
        Number of atoms that the states belong to (1 where they are given per atom).
    """

    energy_ev: np.ndarray
    states_per_ev: np.ndarray
    zero_ev: float = 0.0
    atoms: int = 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """One source record; everything but the id may be missing.

    Attributes
    ----------
    id : str
        Any string; unique in the source.
    structure : pymatgen Structure, optional
        The crystal.
    dos : RawDos, optional
        Electronic density of states.
    charge_density : ndarray, optional
        (n, n, n) electrons per cubic Angstrom; index i is fractional coordinate i / n.
    text : str, optional
        A description.
    labels : dict of str to float
        Unit in the name; unknown ones absent.
    tags : dict of str to str
        ``formula``, ``chemical_system``, ``prototype``, ...
    group : str
        Records of one physical sample share it; empty = the id.
    """

    id: str
    structure: Structure | None = None
    dos: RawDos | None = None
    charge_density: np.ndarray | None = None
    text: str | None = None
    labels: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""
