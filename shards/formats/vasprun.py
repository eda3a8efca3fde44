"""VASP's vasprun.xml, read as a stream: the last structure, the density of states, the energy and the gap.

The parser keeps a few numbers and no tree, so memory does not grow with the projections that make
such a file large. A file that declares a document type is refused: that is where XML hides entities
that expand or point to other files, and VASP writes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from xml.etree.ElementTree import ParseError, XMLParser

import numpy as np

from shards.errors import DataError
from shards.formats.files import opened
from shards.formats.structure import MAX_ATOMS, check, check_atoms
from shards.sources.base import RawDos

if TYPE_CHECKING:
    from pymatgen.core import Structure

CHUNK_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_TEXT = 100_000
MAX_ROWS = 1_000_000
OCCUPIED = 1e-8
LEAVES = {"r", "v", "c", "i"}
STEP = ("modeling", "calculation")
SKIPPED = ""
# what an element's path says of the leaves inside it
SECTIONS = {
    (*STEP, "dos"): "dos",
    (*STEP, "dos", "total"): "states",
    (*STEP, "dos", "partial"): SKIPPED,
    (*STEP, "eigenvalues"): "bands",
    (*STEP, "scstep", "energy"): "energy",
}
NAMED_SECTIONS = {
    ("modeling", "structure"): ("finalpos", "structure"),
    ("modeling", "atominfo", "array"): ("atoms", "atoms"),
}


@dataclass(frozen=True, kw_only=True)
class Vasprun:
    """What a vasprun.xml says of the last ionic step.

    Attributes
    ----------
    structure : Structure or None
        The final structure.
    dos : RawDos or None
        Total density of states, both spins, counted from the Fermi energy.
    energy_ev : float or None
        Total energy of the cell, extrapolated to no electronic smearing, eV.
    band_gap_ev : float or None
        Lowest empty minus highest occupied eigenvalue, 0 for a metal.
    vbm_ev : float or None
        Highest occupied eigenvalue on the scale of the density of states.
    """

    structure: Structure | None
    dos: RawDos | None
    energy_ev: float | None
    band_gap_ev: float | None
    vbm_ev: float | None


def read_vasprun(path: Path, *, max_atoms: int = MAX_ATOMS) -> Vasprun:
    """Read a vasprun.xml, which may be packed.

    Raises
    ------
    DataError
        For a file that is damaged or cut short, has a document type, or holds what is no number.
    """
    found = _Target(path)
    parser = XMLParser(target=found)
    with opened(path) as file:
        try:
            while chunk := file.read(CHUNK_BYTES):
                parser.feed(chunk)
            parser.close()
        except ParseError as error:
            raise DataError(
                f"the file is no complete XML: {error}", why="the calculation was killed, or the copy was"
            ) from None
        return Vasprun(
            structure=_structure(found, path, max_atoms),
            dos=_dos(found, path),
            energy_ev=found.energy,
            band_gap_ev=max(found.cbm - found.vbm, 0.0) if np.isfinite([found.cbm, found.vbm]).all() else None,
            vbm_ev=found.vbm if np.isfinite(found.vbm) else None,
        )


class _Target:
    """Receives the events of the XML parser."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.efermi: float | None = None
        self.energy: float | None = None
        self.vbm, self.cbm = -np.inf, np.inf
        self.spins: list[list[list[float]]] = []
        self.basis: list[list[float]] = []
        self.positions: list[list[float]] = []
        self.elements: list[str] = []
        self._path: list[str] = []
        self._sections: list[str | None] = []
        self._array = ""
        self._cells: list[str] = []
        self._text: list[str] | None = None
        self._name: str | None = None

    def doctype(self, name: str, public: str | None, system: str | None) -> NoReturn:
        """Refuse entities."""
        raise DataError("the XML declares a document type", where=self.path, why="VASP writes none: it may be hostile")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Begin an element."""
        if len(self._path) >= MAX_DEPTH:
            raise DataError(f"the XML is nested more than {MAX_DEPTH} deep", where=self.path)
        self._path.append(tag)
        section = self._sections[-1] if self._sections else None
        if tag in LEAVES:
            self._text = [] if section else None
            self._name = attributes.get("name")
        else:
            section = self._enter(tuple(self._path), attributes, section)
        self._sections.append(section)

    def _enter(self, path: tuple[str, ...], attributes: dict[str, str], section: str | None) -> str | None:
        """Return the section of a container."""
        if section == SKIPPED or (path == (*STEP, "dos") and "comment" in attributes):
            # a comment says that the states are on other k-points than the calculation's own
            return SKIPPED
        if path == STEP:
            # of each ionic step only the last one's states count
            self.spins, self.vbm, self.cbm = [], -np.inf, np.inf
        elif path in NAMED_SECTIONS:
            name, wanted = NAMED_SECTIONS[path]
            return wanted if attributes.get("name") == name else None
        elif section == "states" and path[-1] == "set" and "comment" in attributes:
            self.spins.append([])
        elif section == "structure" and path[-1] == "varray":
            self._array = attributes.get("name", "")
        return SECTIONS.get(path, section)

    def data(self, text: str) -> None:
        """Take a part of an element's text."""
        if self._text is not None:
            self._text.append(text)
            if len(self._text) > MAX_TEXT or len(text) > MAX_TEXT:
                raise DataError("an element of the XML is longer than VASP writes", where=self.path)

    def end(self, tag: str) -> None:
        """End an element."""
        self._path.pop()
        section = self._sections.pop()
        if tag == "rc" and section == "atoms":
            self.elements.append(self._cells[0].strip())
            self._cells = []
        elif tag in LEAVES and self._text is not None and section:
            self._take(section, tag, "".join(self._text))
            self._text = None

    def _take(self, section: str, tag: str, text: str) -> None:
        """Keep a leaf of a section."""
        if section == "atoms" and tag == "c":
            self._cells.append(text)
        elif section == "states" and tag == "r":
            self.spins[-1].append([float(word) for word in text.split()])
            if len(self.spins[-1]) > MAX_ROWS:
                raise DataError(f"the density of states has more than {MAX_ROWS} energies", where=self.path)
        elif section == "bands" and tag == "r":
            energy, occupation = (float(word) for word in text.split())
            if occupation > OCCUPIED:
                self.vbm = max(self.vbm, energy)
            else:
                self.cbm = min(self.cbm, energy)
        elif section == "energy" and self._name == "e_0_energy":
            self.energy = float(text)
        elif section == "dos" and self._name == "efermi":
            self.efermi = float(text)
        elif section == "structure" and tag == "v" and self._array in {"basis", "positions"}:
            rows = self.basis if self._array == "basis" else self.positions
            rows.append([float(word) for word in text.split()])
            if len(rows) > MAX_ROWS:
                raise DataError(f"the structure has more than {MAX_ROWS} positions", where=self.path)

    def close(self) -> Any:
        """End the document."""


def _structure(found: _Target, path: Path, max_atoms: int) -> Structure | None:
    if not found.positions:
        return None
    from pymatgen.core import Structure

    check_atoms(len(found.positions), max_atoms, path)
    structure = Structure(np.array(found.basis), found.elements, np.array(found.positions))
    check(structure, max_atoms, path)
    return structure


def _dos(found: _Target, path: Path) -> RawDos | None:
    """Return the total density of states, from its integral where the file has one.

    VASP's number at an energy is the states since the energy before it, divided by the step: it
    belongs to the middle between the two. The integral also keeps levels that are narrower than a step,
    which the tetrahedron method can leave out of the density itself.
    """
    if not found.spins:
        return None
    spins = [np.array(rows, dtype=np.float64) for rows in found.spins]
    energy = spins[0][:, 0]
    if len(spins) > 2 or any(rows.shape != spins[0].shape or (rows[:, 0] != energy).any() for rows in spins):
        raise DataError(f"the density of states has {len(spins)} unequal spin channels", where=path)
    if found.efermi is None or not found.elements:
        raise DataError("the density of states has no Fermi energy or no atoms", where=path)
    density, integral = spins[0][:, 1], spins[0][:, 2]
    if len(spins) == 2:
        refuse_negative([rows[:, 1] for rows in spins], path)
        density, integral = density + spins[1][:, 1], integral + spins[1][:, 2]
    return RawDos(
        energy_ev=(energy[1:] + energy[:-1]) / 2,
        states_per_ev=np.diff(integral) / np.diff(energy),
        zero_ev=found.efermi,
        atoms=len(found.elements),
    )


def refuse_negative(channels: list[np.ndarray], where: object) -> None:
    """Raise `DataError` where a spin channel is stored with a negative sign: the sum would be a difference."""
    if any(channel.sum() < 0 for channel in channels):
        raise DataError(
            "a spin channel of the density of states is negative",
            where=where,
            why="it was stored with a sign for plotting",
            do="store both spin channels as they were calculated",
        )
