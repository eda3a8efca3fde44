"""Densities of states and charge densities from JSON that pymatgen wrote, read field by field.

pymatgen's own decoder makes objects of whatever classes a file names; here a file is numbers and
text, and nothing in it says what is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import DataError
from shards.formats.files import read_text
from shards.sources.base import RawDos

MAX_BYTES = 4 << 30


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value in a JSON file, which may be packed.

    Raises
    ------
    DataError
        For a file that is missing, damaged, no JSON, or larger than ``max_bytes`` when unpacked.
    """
    try:
        return json.loads(read_text(path, max_bytes))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError("the file is no valid JSON", where=path, why=repr(error)[:200]) from None


def document(value: Any) -> Any:
    """Return what an object of the Materials Project's bucket holds: the ``data`` of it, or of its first element."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, Mapping) and "data" in value and not {"energies", "poscar"} & set(value):
        return value["data"]
    return value


def parse_dos(table: Any, *, atoms: int | None, where: object = None) -> RawDos:
    """Read a pymatgen ``Dos`` or ``CompleteDos`` dictionary.

    Parameters
    ----------
    table : mapping
        With ``energies`` (n,), ``densities`` (spin to (n,)), ``efermi``, and for a complete one ``structure``.
    atoms : int, optional
        Atoms of the cell, where the table has no structure.
    where : object, optional
        Named in errors.

    Returns
    -------
    RawDos
        Both spins together, states per eV of the cell; its zero is the Fermi energy, or the valence
        band maximum where there is a gap at the Fermi energy.

    Raises
    ------
    DataError
        Where a field is missing or no column of numbers.
    """
    try:
        energy = number_array(table["energies"])
        states = np.sum([number_array(column) for column in table["densities"].values()], axis=0)
        structure = table.get("structure")
        count = len(structure["sites"]) if structure else atoms
        fermi = float(table["efermi"])
        if energy.ndim != 1 or energy.shape != states.shape or not count:
            raise ValueError(f"energies {energy.shape}, states {states.shape}, {count} atoms")
        zero = _zero(energy, states, fermi)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError("the JSON holds no density of states of pymatgen", where=where, why=repr(error)[:200]) from None
    return RawDos(energy_ev=energy, states_per_ev=states, zero_ev=zero, atoms=count)


def _zero(energy: np.ndarray, states: np.ndarray, fermi: float) -> float:
    """Return the valence band maximum (eV) where there is a gap at the Fermi energy, or the Fermi energy."""
    from pymatgen.electronic_structure.core import Spin
    from pymatgen.electronic_structure.dos import Dos

    try:
        conduction, valence = Dos(fermi, energy, {Spin.up: states}).get_cbm_vbm()
    except (IndexError, ValueError):
        # pymatgen looks for an edge where there is none: the Fermi energy of a metal is an energy of the grid
        return fermi
    return float(valence) if conduction > valence else fermi


def parse_chgcar(table: Any, *, where: object = None) -> np.ndarray:
    """Read the charge density of a pymatgen ``Chgcar`` dictionary.

    VASP multiplies the density by the volume of the cell; here it is divided by it again.

    Returns
    -------
    ndarray
        (n1, n2, n3) electrons per cubic Angstrom, both spins.

    Raises
    ------
    DataError
        Where a field is missing or no grid of numbers.
    """
    try:
        total = number_array(table["data"]["total"])
        lattice = number_array(table["poscar"]["structure"]["lattice"]["matrix"])
        volume = abs(np.linalg.det(lattice))
        if total.ndim != 3 or lattice.shape != (3, 3) or not volume > 0:
            raise ValueError(f"grid {total.shape}, lattice {lattice.shape}, volume {volume}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError("the JSON holds no charge density of pymatgen", where=where, why=repr(error)[:200]) from None
    return total / volume


def number_array(value: Any) -> np.ndarray:
    """Return a list, or an array as monty writes one (``{"@class": "array", "data": ...}``), as float64."""
    if isinstance(value, Mapping):
        value = value["data"]
    return np.asarray(value, dtype=np.float64)
