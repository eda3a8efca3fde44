"""POSCAR and CONTCAR, the structure files of VASP."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Lines that names of elements and counts of atoms may take each.
MAX_HEADER_LINES = 10


def poscar_atoms(text: str) -> int:
    """Return how many atoms a POSCAR announces; its parser would expand the counts unseen."""
    lines = [line.split("#")[0].split() for line in _body(text).split("\n")[5 : 6 + 2 * MAX_HEADER_LINES]]
    # VASP 4 has no line of names; elsewhere there are as many lines of counts as of names
    names = next((number for number, tokens in enumerate(lines) if tokens and _count(tokens[0]) is not None), 0)
    counts = [_count(token) for tokens in lines[names : names + max(names, 1)] for token in tokens]
    return sum(max(count or 0, 0) for count in counts)


def _count(token: str) -> int | None:
    """Return a whole number in any spelling that the parser takes (``+2``, ``1_000``), or None."""
    try:
        return int(token)
    except ValueError:
        return None


def _body(text: str) -> str:
    """Return the text with one empty line in place of several before the scale, as the parser sees it."""
    stripped = text.lstrip()
    return "\n" + stripped if "\n" in text[: len(text) - len(stripped)] else stripped


def parse_poscar(text: str) -> Structure:
    """Parse a POSCAR that names its elements; `poscar_atoms` must have bounded it."""
    from pymatgen.io.vasp.inputs import BadPoscarWarning, Poscar

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        structure = Poscar.from_str(_body(text), read_velocities=False).structure
    if any(issubclass(item.category, BadPoscarWarning) and "false names" in str(item.message) for item in caught):
        raise DataError(
            "the POSCAR does not name its elements",
            why="the format of VASP 4 has counts of atoms only",
            do="insert a line with the element names above the counts",
        )
    return structure
