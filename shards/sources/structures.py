"""Single crystals and densities of states from files of users.

Files are read as text and by default-deny: a size limit, a limit on atoms that holds before anything
is expanded, and no part of a file that could name code to run (pymatgen's JSON is read field by
field, not by its decoder).
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import DataError
from shards.sources.base import RawDos, Record

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_BYTES = 5_000_000
MAX_ATOMS = 1000
BLANKS = "\ufeff \t\r\n"
FORMATS = "CIF, POSCAR or pymatgen JSON"


def read_structure(source: str | Path, *, max_atoms: int = MAX_ATOMS) -> Structure:
    """Read one crystal structure from a file or a text.

    Parameters
    ----------
    source : str or Path
        A file, or the text of one (a string of several lines, or one that begins with ``{``). Use
        `parse_structure` for text of strangers: it never looks at the file system.
    max_atoms : int
        Larger structures are refused.

    Returns
    -------
    Structure
        As in the file; nothing is reduced or idealised.

    Raises
    ------
    DataError
        For a file that is missing, too large, in no known format, or does not hold exactly one
        structure that can be a crystal graph (see `shards.crystals.check_structure`).
    """
    if isinstance(source, str) and ("\n" in source or source.lstrip(BLANKS).startswith("{")):
        return parse_structure(source, max_atoms=max_atoms)
    return parse_structure(_file_text(Path(source)), max_atoms=max_atoms, where=str(source))


def parse_structure(text: str, *, max_atoms: int = MAX_ATOMS, where: str = "the given text") -> Structure:
    """Parse the text of a structure file: CIF, POSCAR (with element names) or pymatgen JSON.

    The formats are told apart by content. Parameters and errors are those of `read_structure`.
    """
    from shards.crystals import check_structure

    if len(text) > MAX_BYTES:
        raise DataError(f"the text has more than {MAX_BYTES // 10**6} MB", where=where, do="give one structure")
    text = text.lstrip("\ufeff")
    content = text.lstrip(BLANKS)
    if not content:
        raise DataError("the structure file is empty", where=where, do=f"give a file in {FORMATS}")
    if content[0] in "{[":
        name, parse = "JSON", _from_json
    elif any(line.lstrip().lower().startswith(("data_", "_cell_length")) for line in content.splitlines()):
        name, parse = "CIF", _from_cif
    else:
        name, parse = "POSCAR", _from_poscar
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = parse(text, max_atoms)
    except DataError as error:
        raise DataError(error.what, where=where, why=error.why, do=error.do) from None
    except Exception as error:  # the parsers raise whatever the first surprise in the text causes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the {name} file cannot be read: {reason}", where=where, do=f"give a valid file in {FORMATS}"
        ) from None
    _check_size(len(structure), max_atoms, where)
    check_structure(structure, where=where)
    return structure


def _file_text(path: Path) -> str:
    """Return the text of a file of bounded size."""
    where = str(path)[:300]
    try:
        if not path.is_file():
            raise DataError("there is no such file", where=where, do="check the path")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(
                f"the file has {path.stat().st_size / 1e6:.1f} MB, more than {MAX_BYTES // 10**6}",
                where=where,
                do="give a file with one structure, or build shards from a folder of files",
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError("the file is no text", where=where, do="give an unpacked text file") from None
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=where, do="check the path") from None


def _check_size(atoms: int, max_atoms: int, where: object = None) -> None:
    if atoms > max_atoms:
        raise DataError(
            f"the structure has {atoms} atoms, more than {max_atoms}", where=where, do="give a smaller cell"
        )


def _from_json(text: str, max_atoms: int) -> Structure:
    """Build a structure from pymatgen's ``Structure.as_dict()``, alone or under the key ``structure``."""
    from pymatgen.core import Lattice, Structure

    table = json.loads(text)
    if isinstance(table, dict) and isinstance(table.get("structure"), dict):
        table = table["structure"]
    if not isinstance(table, dict) or "lattice" not in table or "sites" not in table:
        raise DataError(
            "the JSON file holds no pymatgen structure (an object with 'lattice' and 'sites')",
            do="write it with structure.to('file.json')",
        )
    sites = table["sites"]
    _check_size(len(sites), max_atoms)
    species = [{str(item["element"]): float(item.get("occu", 1.0)) for item in site["species"]} for site in sites]
    return Structure(Lattice(table["lattice"]["matrix"]), species, [site["abc"] for site in sites])


def _from_cif(text: str, max_atoms: int) -> Structure:
    """Parse a CIF with one structure."""
    from pymatgen.io.cif import CifParser

    parser = CifParser.from_str(text)
    for block in parser.as_dict().values():
        # Symmetry multiplies the listed sites; their number alone is bounded before that is done.
        columns = [value for key, value in block.items() if key.startswith("_atom_site_") and isinstance(value, list)]
        _check_size(max(map(len, columns), default=0), max_atoms)
    structures = parser.parse_structures(primitive=False, on_error="raise")
    if len(structures) != 1:
        raise DataError(f"the CIF file holds {len(structures)} structures", do="give a file with exactly one")
    return structures[0]


def _from_poscar(text: str, max_atoms: int) -> Structure:
    """Parse a POSCAR that names its elements."""
    from pymatgen.io.vasp.inputs import BadPoscarWarning, Poscar

    lines = text.splitlines()
    if len(lines) < 8:
        raise DataError(f"this is no structure in {FORMATS}", do="check the file's format")
    # Lines of whole numbers after the lattice are counts of atoms; the parser would expand them unseen.
    for line in lines[5:16]:
        if line.split() and all(token.isdecimal() for token in line.split()):
            _check_size(sum(int(token) for token in line.split()), max_atoms)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        structure = Poscar.from_str(text, read_velocities=False).structure
    if any(issubclass(item.category, BadPoscarWarning) and "false names" in str(item.message) for item in caught):
        raise DataError(
            "the POSCAR does not name its elements",
            why="the format of VASP 4 has counts of atoms only",
            do="insert a line with the element names above the counts",
        )
    return structure


def structure_record(structure: Structure, id: str, *, tags: Mapping[str, str] | None = None) -> Record:
    """Return a source record of one structure, tagged with its formula and chemical system."""
    composition = structure.composition
    described = {"formula": composition.reduced_formula, "chemical_system": composition.chemical_system}
    return Record(id=id, structure=structure, tags={**described, **(tags or {})})


def read_dos(path: str | Path, *, atoms: int | None = None, zero_ev: float = 0.0) -> RawDos:
    """Read a density of states from a CSV file.

    Parameters
    ----------
    path : str or Path
        A file whose header is ``energy_ev,states_per_ev_atom`` or ``energy_ev,states_per_ev_cell``;
        empty lines and lines that begin with ``#`` are skipped.
    atoms : int, optional
        Atoms in the cell; needed for states per cell, not used for states per atom.
    zero_ev : float
        Energy, on the file's scale, that becomes 0 eV (Fermi energy or valence band maximum).

    Returns
    -------
    RawDos
        Energies ascending.
    """
    where = str(path)
    text = _file_text(Path(path))
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    header = rows[0] if rows else []
    if header not in (["energy_ev", "states_per_ev_atom"], ["energy_ev", "states_per_ev_cell"]):
        raise DataError(
            f"the density of states has the header '{','.join(header)[:100]}'",
            where=where,
            do="begin the CSV file with 'energy_ev,states_per_ev_atom' or 'energy_ev,states_per_ev_cell'",
        )
    if header[1] == "states_per_ev_cell" and (atoms is None or atoms < 1):
        raise DataError(
            "the states are given per cell and the number of atoms of the cell is not known",
            where=where,
            do="give the number of atoms, or divide by it and name the column states_per_ev_atom",
        )
    energy, states = _columns(rows[1:], where)
    if not (np.diff(energy) > 0).all():
        raise DataError("the energies do not ascend", where=where, do="sort the rows by energy, each energy once")
    per_cell = header[1] == "states_per_ev_cell"
    return RawDos(
        energy_ev=energy, states_per_ev=states, zero_ev=zero_ev, atoms=int(atoms) if per_cell and atoms else 1
    )


def _columns(rows: list[list[str]], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two columns of finite numbers, or raise `DataError` naming the first bad row."""
    if len(rows) < 2:
        raise DataError(f"the density of states has {len(rows)} rows", where=where, do="give at least two energies")
    for number, row in enumerate(rows, start=1):
        try:
            good = len(row) == 2 and all(np.isfinite(float(cell)) for cell in row)
        except ValueError:
            good = False
        if not good:
            raise DataError(
                f"data row {number} is '{','.join(row)[:60]}', not two finite numbers",
                where=where,
                do="repair or remove the row",
            )
    table = np.array(rows, dtype=np.float64)
    return table[:, 0], table[:, 1]
