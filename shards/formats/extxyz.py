"""Extended XYZ: many frames a file, found by one scan without parsing atoms, and read one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_LINE = 200_000
# Empty lines between two frames; millions of them pack into nothing.
MAX_BLANK = 1000
# key=value, "a value", 'a value' or {a value}
PAIR = re.compile(
    r"""(?P<key>[^\s=]+)\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|\{(?P<braced>[^}]*)\}|(?P<bare>\S*))"""
)
COLUMNS = "species:S:1:pos:R:3"


def frames(file: BinaryIO) -> Iterator[tuple[int, int, str]]:
    """Find the frames of a file in one pass.

    Yields
    ------
    tuple of int, int and str
        Offset and length of a frame in bytes, and its comment line.

    Raises
    ------
    DataError
        Where a frame does not begin with a number of atoms, or a line is very long: what follows
        cannot be told apart. A last frame that is cut off is yielded as it is.
    """
    offset = blank = 0
    while line := _line(file):
        start, offset = offset, offset + len(line)
        if not line.strip() and blank < MAX_BLANK:
            blank += 1
            continue
        blank = 0
        if not line.strip().isdigit():
            raise DataError(
                f"byte {start} begins with {line[:40]!r}, not with a number of atoms",
                why="the frame before it has more or fewer lines than it says",
                do="repair the file; the frames before this one are good",
            )
        comment = _line(file)
        offset += len(comment)
        for _ in range(int(line[:20])):
            atom = _line(file)
            if not atom:
                break
            offset += len(atom)
        yield start, offset - start, comment.decode("utf-8", "replace")


def _line(file: BinaryIO) -> bytes:
    line = file.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise DataError(f"a line has more than {MAX_LINE} characters", do="check the file's format")
    return line


def comment_text(comment: str, key: str) -> str | None:
    """Return the value of one key of a comment line as it is written there, or None.

    A number keeps its spelling (``0012``), which `comment_values` would lose.
    """
    for found in PAIR.finditer(comment):
        if found["key"] == key:
            return next(value for value in found.group("double", "single", "braced", "bare") if value is not None)
    return None


def comment_values(comment: str) -> dict[str, Any]:
    """Return the key-value pairs of a comment line, as ASE reads them.

    Raises
    ------
    DataError
        Where the line is too long or is no list of pairs.
    """
    from ase.io.extxyz import key_val_str_to_dict

    if len(comment) > MAX_LINE:
        raise DataError(f"the comment line has more than {MAX_LINE} characters", do="check the file's format")
    try:
        return dict(key_val_str_to_dict(comment))
    except Exception as error:  # ASE raises whatever the first surprise in the line causes
        raise DataError("the comment line cannot be read", why=repr(error)[:200]) from None


def parse_frame(text: str, max_atoms: int) -> tuple[Structure, dict[str, Any]]:
    """Parse one frame.

    Returns
    -------
    tuple of Structure and dict
        The structure, and the other values of the comment line.

    Raises
    ------
    DataError
        For a frame without a lattice, one that is not periodic, or one whose rows do not fit its
        ``Properties``.
    """
    from shards.formats.structure import check_atoms, periodic_structure

    lines = text.strip().split("\n")
    atoms = int(lines[0][:20])
    check_atoms(atoms, max_atoms)
    if len(lines) != atoms + 2:
        raise DataError(
            f"the frame has {len(lines) - 2} rows, not {atoms}", why="it is cut off, or holds several frames"
        )
    info = comment_values(lines[1])
    lattice, periodic = info.pop("Lattice", None), info.pop("pbc", True)
    if lattice is None:
        raise DataError("the frame has no Lattice", why="it is a molecule, or plain XYZ")
    species_at, position_at, width = _columns(str(info.pop("Properties", COLUMNS)))
    rows = [line.split() for line in lines[2:]]
    if any(len(row) != width for row in rows):
        raise DataError(f"a row of the frame does not have {width} columns, as its Properties say")
    symbols: list[Any] = [row[species_at] for row in rows]
    if all(symbol.isdigit() for symbol in symbols):
        symbols = [int(symbol) for symbol in symbols]
    positions = np.array([row[position_at : position_at + 3] for row in rows], dtype=np.float64)
    # ASE fills the lattice column by column
    structure = periodic_structure(symbols, positions, np.asarray(lattice, dtype=np.float64).T, bool(np.all(periodic)))
    return structure, info


def _columns(properties: str) -> tuple[int, int, int]:
    """Return the columns of the species (or Z) and of the first coordinate, and the number of columns."""
    fields = properties.split(":")
    names, counts = fields[0::3], [int(count) for count in fields[2::3]]
    starts = dict(zip(names, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
    species = starts.get("species", starts.get("Z"))
    if species is None or "pos" not in starts or min(counts) < 1 or counts[names.index("pos")] != 3:
        raise DataError(f"the frame's Properties '{properties[:100]}' name no species and positions")
    return species, starts["pos"], sum(counts)
