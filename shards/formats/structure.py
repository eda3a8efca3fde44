"""Single crystals from text: CIF, POSCAR, extended XYZ and pymatgen JSON, told apart by content.

Text is read by default-deny: a size limit, a limit on atoms that holds before anything is expanded, and
no part of a file that could name code to run (pymatgen's JSON is read field by field, not by its
decoder).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from pymatgen.core import Structure

MAX_BYTES = 5_000_000
MAX_ATOMS = 1000
BLANKS = "\ufeff \t\r\n"
CIF, POSCAR, XYZ, JSON = "CIF", "POSCAR", "extended XYZ", "pymatgen JSON"
FORMATS = f"{CIF}, {POSCAR}, {XYZ} or {JSON}"


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
    return parse_structure(file_text(Path(source)), max_atoms=max_atoms, where=str(source))


def parse_structure(text: str, *, max_atoms: int = MAX_ATOMS, where: str = "the given text") -> Structure:
    """Parse the text of a structure file: CIF, POSCAR (with element names), extended XYZ or pymatgen JSON.

    The formats are told apart by content. Parameters and errors are those of `read_structure`.
    """
    return parse_described(text, max_atoms=max_atoms, where=where)[0]


def parse_described(
    text: str, *, max_atoms: int = MAX_ATOMS, where: str = "the given text", name: str = ""
) -> tuple[Structure, dict[str, Any]]:
    """Parse like `parse_structure`, and return also what else the text says of the structure.

    Parameters
    ----------
    text, max_atoms, where : str, int, str
        As for `parse_structure`.
    name : str
        One of `FORMATS`, where content need not tell.

    Returns
    -------
    tuple of Structure and dict
        The dictionary holds the key-value pairs of an extended XYZ's comment line, or what stands
        beside the structure in JSON (and its ``properties``); it is empty for a CIF or a POSCAR.
    """
    if len(text) > MAX_BYTES:
        raise DataError(f"the text has more than {MAX_BYTES // 10**6} MB", where=where, do="give one structure")
    text = text.lstrip("\ufeff")
    content = text.lstrip(BLANKS)
    if not content:
        raise DataError("the structure file is empty", where=where, do=f"give a file in {FORMATS}")
    name = name or _format(content)
    with refusing(f"the {name} file cannot be read", where, do=f"give a valid file in {FORMATS}"):
        structure, info = _parse(name, text, max_atoms)
    check(structure, max_atoms, where)
    return structure, info


def check(structure: Structure, max_atoms: int, where: object) -> None:
    """Raise `DataError` for a structure that is too large or that no crystal graph can be made of."""
    from shards.crystals import check_structure

    check_atoms(len(structure), max_atoms, where)
    check_structure(structure, where=where)


def check_atoms(atoms: int, max_atoms: int, where: object = None) -> None:
    """Raise `DataError` where there are more than ``max_atoms`` atoms."""
    if atoms > max_atoms:
        raise DataError(
            f"the structure has {atoms} atoms, more than {max_atoms}", where=where, do="give a smaller cell"
        )


@contextmanager
def refusing(what: str, where: object, *, do: str | None = None) -> Iterator[None]:
    """Turn every error of a parser into a `DataError` that names the place, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        raise DataError(error.what, where=where, why=error.why, do=error.do) from None
    except Exception as error:  # the parsers raise whatever the first surprise in the text causes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{what}: {reason}", where=where, do=do) from None


def file_text(path: Path) -> str:
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


def _format(content: str) -> str:
    from shards.formats.cif import is_cif

    if content[0] in "{[":
        return JSON
    first, _, rest = content.partition("\n")
    if first.strip().isdecimal() and "Lattice=" in rest.partition("\n")[0]:
        return XYZ
    return CIF if is_cif(content) else POSCAR


def _parse(name: str, text: str, max_atoms: int) -> tuple[Structure, dict[str, Any]]:
    if name == JSON:
        return structure_of_json(json.loads(text), max_atoms)
    if name == XYZ:
        from shards.formats.extxyz import parse_frame

        return parse_frame(text, max_atoms)
    if name == CIF:
        from shards.formats.cif import parse_cif

        return parse_cif(text, max_atoms), {}
    from shards.formats.poscar import parse_poscar, poscar_atoms

    if len(text.splitlines()) < 8:
        raise DataError(f"this is no structure in {FORMATS}", do="check the file's format")
    check_atoms(poscar_atoms(text), max_atoms)
    return parse_poscar(text), {}


def structure_of_json(table: Any, max_atoms: int) -> tuple[Structure, dict[str, Any]]:
    """Build a structure from pymatgen's ``Structure.as_dict()``, alone or under the key ``structure``.

    Returns
    -------
    tuple of Structure and dict
        The dictionary holds what stands beside the structure, and the structure's ``properties``.
    """
    from pymatgen.core import Lattice, Structure

    beside: dict[str, Any] = {}
    if isinstance(table, dict) and isinstance(table.get("structure"), dict):
        beside = {key: value for key, value in table.items() if key != "structure"}
        table = table["structure"]
    if not isinstance(table, dict) or "lattice" not in table or "sites" not in table:
        raise DataError(
            "the JSON file holds no pymatgen structure (an object with 'lattice' and 'sites')",
            do="write it with structure.to('file.json')",
        )
    sites = table["sites"]
    check_atoms(len(sites), max_atoms)
    species = [{str(item["element"]): float(item.get("occu", 1.0)) for item in site["species"]} for site in sites]
    structure = Structure(Lattice(table["lattice"]["matrix"]), species, [site["abc"] for site in sites])
    properties = table.get("properties")
    return structure, {**(properties if isinstance(properties, Mapping) else {}), **beside}


def periodic_structure(species: list[Any], positions: np.ndarray, cell: np.ndarray, periodic: bool) -> Structure:
    """Build a structure from Cartesian coordinates.

    Parameters
    ----------
    species : list of str or int
        (n,) element symbols or atomic numbers.
    positions, cell : ndarray
        (n, 3) and (3, 3), Angstrom; the rows of ``cell`` are the lattice vectors.
    periodic : bool
        Whether the structure repeats along all three of them.

    Raises
    ------
    DataError
        Where it does not, or the cell has no volume.
    """
    import numpy as np
    from pymatgen.core import Lattice, Structure

    if not periodic:
        raise DataError(
            "the structure is not periodic in all three directions",
            why="a crystal graph would join atoms across the faces of its cell",
            do="set pbc to 'T T T' where the cell does repeat",
        )
    if not (np.isfinite(cell).all() and abs(np.linalg.det(cell)) > 0.0):
        raise DataError("the cell has no finite volume", do="check the lattice vectors")
    return Structure(Lattice(cell), species, positions, coords_are_cartesian=True)
