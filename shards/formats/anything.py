"""Whatever a user has of a material, as a source record: objects of pymatgen, ASE, pandas and Pillow, files and texts.

What a material is, is told by its type and content, never guessed: where two readings are possible, or none, a
`DataError` says which were tried and how to say what is meant.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ConfigError, DataError, suggest
from shards.formats.dos_csv import read_dos
from shards.formats.listing import form
from shards.formats.structure import (
    BLANKS,
    FORMATS,
    MAX_ATOMS,
    check_atoms,
    periodic_structure,
    read_structure,
    refusing,
    structure_of_json,
)
from shards.molecules import MAX_CHARACTERS, molecule_tags, parse_smiles
from shards.sources.base import RawDos, Record
from shards.sources.images import decode_image, read_image
from shards.sources.pymatgen_json import parse_dos
from shards.sources.rows import is_missing
from shards.sources.structures import structure_record

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
KINDS = (
    "a Sample, a Record, a pymatgen Structure, ASE Atoms, a Dos, the path or the text of a structure file, a SMILES, "
    "two columns (energies, densities), a picture, a row of a table, a dictionary of any of these"
)


def to_record(material: Any, *, id: str = "query") -> Record:
    """Turn what a user has of one material into a record.

    Parameters
    ----------
    material : object
        - `Record`, pymatgen ``Structure``, periodic ASE ``Atoms``, pymatgen ``Dos``
        - a path: CIF, POSCAR, extended XYZ or pymatgen JSON; a picture; a ``.csv`` of a density of states
        - a text: that of a structure file, or a SMILES
        - two columns, or (2, n): ascending energies (eV from the Fermi energy or valence band maximum) and densities
          (states per eV and atom)
        - a picture: of Pillow, or uint8 (height, width) or (height, width, channels)
        - a row of a table: pandas ``Series``, or a mapping of column names to numbers and texts
        - a mapping with any of the keys of `PARTS`, or what ``Structure.as_dict()`` gives
    id : str
        The record's id, where the material has none: that of a path or a SMILES is itself.

    Raises
    ------
    DataError
        For what is nothing of these, or may be two of them.
    """
    if isinstance(material, Record):
        return material
    if isinstance(material, str | Path):
        return _of_text(material, id)
    if isinstance(material, Mapping):
        return _of_mapping(material, id)
    for test, part in ((_is_structure, "structure"), (_is_dos, "dos"), (_is_picture, "image"), (_is_row, "table")):
        if test(material):
            return PARTS[part](Record(id=id), material)
    shown = f"{list(material.shape)} of {material.dtype}" if isinstance(material, np.ndarray) else repr(material)[:80]
    raise DataError(f"this is no material: {type(material).__name__} {shown}", where=id, do=f"give {KINDS}")


def is_pair(value: Any) -> bool:
    """Tell whether a list or tuple is two columns of numbers of one length, which is one density of states."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(_is_column, value)):
        return False
    return len(value[0]) == len(value[1])


def _is_column(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "iuf"
    return isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(v, int | float) for v in value)


def _is_structure(value: Any) -> bool:
    return hasattr(value, "lattice") or hasattr(value, "get_scaled_positions") or hasattr(value, "cart_coords")


def _is_dos(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 2 and len(value) == 2 and value.dtype.kind == "f"
    return isinstance(value, RawDos) or is_pair(value) or (hasattr(value, "densities") and hasattr(value, "energies"))


def _is_picture(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (2, 3)
    return hasattr(value, "getbands") and hasattr(value, "save")


def _is_row(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "index") and getattr(value, "ndim", 0) == 1


def _of_text(material: str | Path, id: str) -> Record:
    """Read a path or a text."""
    text = str(material)
    if isinstance(material, str) and ("\n" in text or text.lstrip(BLANKS).startswith("{")):
        return _structure(Record(id=id), read_structure(material))
    path = Path(material)
    name = text[:300]
    smiles = _smiles_problem(text) if isinstance(material, str) else "it is given as a path"
    if text.strip() and _exists(path):
        if path.is_dir():
            raise DataError("this is a folder", where=text[:300], do="give its files; or stream it: --data FOLDER")
        if not smiles and not (form(path.name) or path.suffix):
            raise DataError(
                f"'{text}' is the name of a file here, and a SMILES too",
                do=f'say which: Path("{text}"), or {{"smiles": "{text}"}}',
            )
        return _of_file(path, name)
    if not smiles:
        return _smiles(Record(id=name), text)
    if isinstance(material, Path) or form(path.name) or path.suffix.lower() in (*PICTURES, ".csv"):
        raise DataError("there is no such file", where=text[:300], do="check the path")
    raise DataError(
        f"'{text[:80]}' is no file here, no text of a structure, and no SMILES",
        why=f"tried {FORMATS} (a text of several lines), and SMILES: {smiles}",
        do='check the path; a description is given as {"text": "..."}',
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _smiles_problem(text: str) -> str:
    """Say why a text is no SMILES; empty where it is one."""
    if not text.strip() or len(text) > MAX_CHARACTERS:
        return f"it has {len(text.strip())} characters"
    try:
        parse_smiles(text)
    except (DataError, ConfigError) as error:
        return error.why or error.what
    return ""


def _of_file(path: Path, id: str) -> Record:
    suffix = path.suffix.lower()
    part = "image" if suffix in PICTURES else "dos" if suffix == ".csv" else "structure"
    return PARTS[part](Record(id=id), path)


def _of_mapping(table: Mapping[Any, Any], id: str) -> Record:
    """Read a mapping: a structure or a density of states of pymatgen, modalities by their names, or a table's row."""
    if {"lattice", "sites"} <= table.keys():
        return _structure(Record(id=id), table)
    if {"energies", "densities"} <= table.keys():
        return _dos(Record(id=id), table)
    own = table.keys() & {*PARTS, "arrays"}
    if not own:
        return _columns(Record(id=str(table.get("id", id))), {key: table[key] for key in table if key != "id"})
    if unknown := sorted(str(key) for key in table.keys() - {*PARTS, "arrays", "id"}):
        raise DataError(
            f"'{unknown[0]}' is nothing that a material has",
            where=id,
            why=f"{suggest(unknown[0], PARTS)}; beside {sorted(own)} it can be no column of a table either",
            do='give the columns of a table as {"table": {...}}, spectra and vectors as {"arrays": {...}}',
        )
    record = Record(id=str(table.get("id", id)))
    for name, read in PARTS.items():
        if table.get(name) is not None:
            record = read(record, table[name])
    arrays = {str(name): np.asarray(array) for name, array in (table.get("arrays") or {}).items()}
    return replace(record, arrays=arrays)


def _structure(record: Record, value: Any) -> Record:
    """Take a pymatgen structure or its dictionary, ASE atoms, or a file."""
    if isinstance(value, str | Path):
        structure = read_structure(value)
    elif isinstance(value, Mapping):
        with refusing("the dictionary is no structure of pymatgen", record.id):
            structure = structure_of_json(dict(value), MAX_ATOMS)[0]
    elif hasattr(value, "get_scaled_positions"):
        with refusing("these ASE atoms are no crystal", record.id):
            check_atoms(len(value), MAX_ATOMS)
            periodic = bool(np.all(value.pbc))
            structure = periodic_structure(
                value.get_chemical_symbols(), value.get_positions(), np.asarray(value.cell), periodic
            )
    elif hasattr(value, "lattice"):
        structure = value
    else:
        raise DataError(
            "a molecule of pymatgen is no crystal",
            where=record.id,
            do="give its SMILES, or put it into a periodic cell",
        )
    return replace(record, structure=structure, tags={**structure_record(structure, record.id).tags, **record.tags})


def _smiles(record: Record, value: Any) -> Record:
    if not isinstance(value, str):
        raise DataError(f"the SMILES is {type(value).__name__}, no text", where=record.id)
    return replace(record, smiles=value, tags={**molecule_tags(value), **record.tags})


def _dos(record: Record, value: Any) -> Record:
    """Take a `RawDos`, pymatgen's density of states or its dictionary, two columns, or a CSV file."""
    if isinstance(value, RawDos):
        return replace(record, dos=value)
    if isinstance(value, str | Path):
        return replace(record, dos=read_dos(value))
    if not isinstance(value, Mapping) and hasattr(value, "densities"):
        densities = {str(spin): column for spin, column in value.densities.items()}
        value = {"energies": value.energies, "densities": densities, "efermi": value.efermi,
                 "structure": {"sites": value.structure} if hasattr(value, "structure") else None}  # fmt: skip
    if isinstance(value, Mapping):
        cell = value.get("structure")
        own = None if record.structure is None else len(record.structure)
        dos = parse_dos(value, atoms=own or 1, where=record.id)
        # without a cell the number of atoms is not known, and the states are up to a factor
        return replace(record, dos=replace(dos, absolute=bool(cell or own)))
    if not _is_dos(value):
        raise DataError(
            "the density of states is no pair of columns",
            where=record.id,
            do="give (energies, densities): eV, ascending, and states per eV and atom",
        )
    energy, states = (np.asarray(column, dtype=np.float64) for column in value)
    return replace(record, dos=RawDos(energy_ev=energy, states_per_ev=states))


def _charge_density(record: Record, value: Any) -> Record:
    grid = np.asarray(value)
    if grid.ndim != 3 or grid.dtype.kind not in "iuf":
        raise DataError(f"the charge density is {grid.dtype}{list(grid.shape)}, no grid of numbers", where=record.id)
    return replace(record, charge_density=grid)


def _text(record: Record, value: Any) -> Record:
    if not isinstance(value, str):
        raise DataError(f"the text is {type(value).__name__}", where=record.id)
    return replace(record, text=value)


def _pictures(record: Record, value: Any) -> Record:
    pictures = value if isinstance(value, list | tuple) else [value]
    return replace(record, images=tuple(_pixels(picture, record.id) for picture in pictures))


def _pixels(value: Any, where: str) -> np.ndarray:
    """Return the pixels of one picture: uint8 (height, width) or (height, width, 3)."""
    if isinstance(value, str | Path):
        return read_image(Path(value))
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4))):
            raise DataError(
                f"a picture is {value.dtype}{list(value.shape)}",
                where=where,
                do="give uint8 (height, width) or (height, width, channels)",
            )
        return value[..., :3] if value.ndim == 3 else value
    if not _is_picture(value):
        raise DataError(f"a picture is {type(value).__name__}", where=where, do="give a path, pixels, or one of Pillow")
    with refusing("the picture cannot be read", where), io.BytesIO() as file:
        # through the one decoder, which knows what to do with palettes, transparency and 16 bits
        value.save(file, format="TIFF")
        file.seek(0)
        return decode_image(file, where=where)


def _columns(record: Record, value: Any) -> Record:
    """Take a row of a table; cells that hold nothing are left out."""
    row = value if isinstance(value, Mapping) else value.to_dict() if _is_row(value) else None
    columns: dict[str, float | str] = {}
    for name, cell in (row or {}).items():
        cell = cell.item() if isinstance(cell, np.generic) else cell
        if is_missing(cell):
            continue
        if not isinstance(name, str) or not isinstance(cell, str | int | float):
            raise DataError(
                f"'{name}' is {type(cell).__name__}, no cell of a table",
                where=record.id,
                why=f"a mapping without any of the keys {', '.join(PARTS)} is read as a row of a table",
            )
        columns[name] = cell if isinstance(cell, str) else float(cell)
    if not columns:
        raise DataError("nothing is given of the material", where=record.id, do=f"give {KINDS}")
    return replace(record, columns=columns)


def _labels(record: Record, value: Any) -> Record:
    """Take known properties, which a predictor that corrects them wants."""
    try:
        return replace(record, labels={str(name): float(number) for name, number in dict(value).items()})
    except (TypeError, ValueError) as error:
        raise DataError("the labels are no names with numbers", where=record.id, why=str(error)) from None


# what a mapping may hold of a material, in the order in which it is read: a density of states asks for the structure
PARTS: dict[str, Callable[[Record, Any], Record]] = {
    "structure": _structure,
    "smiles": _smiles,
    "dos": _dos,
    "charge_density": _charge_density,
    "text": _text,
    "image": _pictures,
    "table": _columns,
    "labels": _labels,
}
