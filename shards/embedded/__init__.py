"""Data sets that ship with matloom, read from package data with numpy alone.

``embedded:dft_crystals`` is a set of 547 computed crystals; see its card (`card`). The generator that made it is the
optional package `shards.embedded.generate`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import DataError, suggest

__all__ = ["LABELS", "RawRecord", "card", "load", "names"]

LABELS = (
    "formation_energy_ev_per_atom",
    "band_gap_ev",
    "direct_gap_ev",
    "is_metal",
    "bulk_modulus_dft_gpa",
    "bulk_modulus_chgnet_gpa",
    "volume_per_atom_a3",
    "density_g_cm3",
)
"""Labels a record may carry. Energies on GPAW's absolute scale (Fermi energy, band edges) are left out: they do not
compare between crystals."""

_SETS = ("dft_crystals",)


@dataclass(frozen=True)
class RawRecord:
    """One crystal as it was stored; what it lacks is None or absent, never zeros.

    Attributes
    ----------
    id, formula, prototype
        ``MgO_rocksalt``, ``MgO``, ``rocksalt``.
    lattice : (3, 3) float64
        Lattice vectors as rows, Angstrom.
    species
        N element symbols.
    frac_coords : (N, 3) float64
    text
        Description by robocrystallographer.
    dos
        ``(energy_ev (601,), states_per_ev_cell (601,))`` float32, both spins; zero is the valence-band maximum of an
        insulator and the Fermi energy of a metal.
    charge_density : (32, 32, 32) float16
        Valence electrons per cubic Angstrom; index (i, j, k) lies at fractional coordinate (i, j, k) / 32.
    labels
        Some of `LABELS`, the unit in the name; ``is_metal`` is 0 or 1.
    tags
        formula, chemical_system (``Mg-O``), prototype, spacegroup, is_known (``true`` or ``false``).
    """

    id: str
    formula: str
    prototype: str
    lattice: NDArray[np.float64]
    species: list[str]
    frac_coords: NDArray[np.float64]
    text: str | None = None
    dos: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    charge_density: NDArray[np.float16] | None = None
    labels: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def names() -> list[str]:
    """Names of the embedded sets, as in ``embedded:NAME``."""
    return list(_SETS)


def card(name: str) -> str:
    """Data card of a set (Markdown): origin, method, fields, checks, limits, licence.

    Raises
    ------
    DataError
        For an unknown name.
    """
    return _folder(name).joinpath("CARD.md").read_text(encoding="utf-8")


def load(name: str) -> Iterator[RawRecord]:
    """Iterate over the records of a set, sorted by id.

    DOS and charge density are read from their archives when a record is reached, so memory holds one record's arrays
    at a time.

    Parameters
    ----------
    name
        One of `names`.

    Raises
    ------
    DataError
        For an unknown name, at the call.
    """
    return _records(_folder(name))


def _folder(name: str) -> Traversable:
    if name not in _SETS:
        raise DataError(
            f"there is no embedded data set {name!r}",
            where=f"embedded:{name}",
            why="the name is misspelt, or the set ships with another version",
            do=suggest(name, _SETS),
        )
    return resources.files("shards.embedded").joinpath(name)


def _records(folder: Traversable) -> Iterator[RawRecord]:
    stored = json.loads(gzip.decompress(folder.joinpath("records.json.gz").read_bytes()))
    with (
        folder.joinpath("dos.npz").open("rb") as dos_file,
        folder.joinpath("charge_density.npz").open("rb") as density_file,
        np.load(dos_file, allow_pickle=False) as dos,
        np.load(density_file, allow_pickle=False) as density,
    ):
        energy = dos["energy_ev"]
        for entry in stored:
            key = entry["id"]
            yield RawRecord(
                id=key,
                formula=entry["formula"],
                prototype=entry["prototype"],
                lattice=np.array(entry["lattice_a"], dtype=np.float64),
                species=list(entry["species"]),
                frac_coords=np.array(entry["frac_coords"], dtype=np.float64),
                text=entry["text"],
                dos=(energy.copy(), dos[key]) if key in dos.files else None,
                charge_density=density[key] if key in density.files else None,
                labels={label: float(entry[label]) for label in LABELS if entry[label] is not None},
                tags=_tags(entry),
            )


def _tags(entry: dict[str, Any]) -> dict[str, str]:
    return {
        "formula": entry["formula"],
        "chemical_system": "-".join(sorted(set(entry["species"]))),
        "prototype": entry["prototype"],
        "spacegroup": entry["spacegroup"],
        "is_known": "true" if entry["is_known"] else "false",
    }
