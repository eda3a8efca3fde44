"""Crystallographic information files: bounded before symmetry multiplies their atoms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from shards.errors import DataError

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

# Text fields (a paper's abstract, a list of reflections) and empty lines do not count.
MAX_BYTES = 1_000_000
MAX_LINE = 8192
# Quotation marks times the length of their line: for each mark, the rest of the line is searched for its partner.
MAX_QUOTED = 20_000_000
# Of the largest space groups, F-centred; magnetic groups have up to twice as many.
MAX_OPERATIONS = 192
# pymatgen compares every image of every listed atom with all that came before, which takes 30 us an image, and
# twice as long for every 150 listed atoms more.
MAX_IMAGES, SLOWER_PER_ATOM = 30_000, 1 / 150
SYMMETRY_KEYS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz", "_space_group_symop_magn_operation")
# Images in one box of this grid over the cell count as one atom; its nodes are all special positions.
GRID = 480


def is_cif(text: str) -> bool:
    """Tell whether a text looks like a CIF."""
    return any(line.lstrip().lower().startswith(("data_", "_cell_length")) for line in text.splitlines())


def parse_cif(text: str, max_atoms: int) -> Structure:
    """Parse a CIF with one structure.

    Raises
    ------
    DataError
        Where it holds none or several, lists more than ``max_atoms`` atoms, or expands to more.
    """
    from pymatgen.io.cif import CifParser

    blocks = [block for block in _blocks(text) if any(line.lstrip().startswith("_atom_site_") for line in block)]
    if len(blocks) != 1:
        raise DataError(f"the CIF file holds {len(blocks)} structures", do="give a file with exactly one")
    _check_lines(blocks[0])
    parser = CifParser.from_str("\n".join(["data_structure", *blocks[0]]))
    for name, block in parser.as_dict().items():
        _check_expansion(parser, name, block, max_atoms)
    structures = parser.parse_structures(primitive=False, on_error="raise")
    if len(structures) != 1:
        raise DataError(f"the CIF file holds {len(structures)} structures", do="give a file with exactly one")
    return structures[0]


def starts_block(line: str) -> bool:
    """Tell whether a line outside of text fields begins a data block."""
    return line.lstrip()[:5].lower() == "data_"


def blocks(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Find the data blocks of a CIF that list atoms: offset and length in bytes."""
    start = offset = 0
    inside = atoms = False
    begins = True
    while line := file.readline(MAX_LINE):
        if line == b"\n":
            offset += 1
            begins = True
            continue
        if begins and line.startswith(b";"):
            inside = not inside
        elif begins and not inside:
            if starts_block(line[:80].decode("latin-1")):
                if atoms:
                    yield start, offset - start
                start, atoms = offset, False
            atoms = atoms or line.lstrip().startswith(b"_atom_site_")
        offset += len(line)
        begins = line.endswith(b"\n")
    if atoms:
        yield start, offset - start


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the lines of every data block, without its name, text fields and empty lines.

    pymatgen's time grows with the square of the number of empty lines, and it makes tokens of every word of a
    paper that came along.
    """
    block: list[str] = []
    inside = False
    for line in re.sub(r"\n\s*\n", "\n", text).splitlines():
        if line.startswith(";"):
            inside = not inside
            if inside:
                block.append("?")
        elif not inside and starts_block(line):
            yield block
            block = line.split(maxsplit=1)[1:]
        elif not inside and line.strip():
            block.append(line)
    yield block


def _check_lines(lines: list[str]) -> None:
    """Raise `DataError` for a block that takes pymatgen long to divide into words."""
    if sum(map(len, lines)) > MAX_BYTES:
        raise DataError(f"the CIF has more than {MAX_BYTES // 10**6} MB beside its text fields", do="shorten it")
    if max(map(len, lines), default=0) > MAX_LINE:
        raise DataError(
            f"a line of the CIF has more than {MAX_LINE} characters", do="break it, or make it a text field"
        )
    if sum((line.count("'") + line.count('"')) * len(line) for line in lines) > MAX_QUOTED:
        raise DataError("the CIF is full of quotation marks", do="give a file with one structure and little else")


def _check_expansion(parser: CifParser, name: str, block: dict[str, Any], max_atoms: int) -> None:
    """Raise `DataError` where symmetry makes too many atoms of the listed ones, before pymatgen does so."""
    columns = [value for key, value in block.items() if key.startswith("_atom_site_") and isinstance(value, list)]
    listed = max(map(len, columns), default=0)
    _check_atoms(listed, max_atoms)
    symmetry = [value for key, value in block.items() if key.startswith(SYMMETRY_KEYS) and isinstance(value, list)]
    operations = max(map(len, symmetry), default=0)
    if operations > 2 * MAX_OPERATIONS:
        raise DataError(
            f"the CIF lists {operations} symmetry operations, no space group has more than {MAX_OPERATIONS}",
            do="write the structure without symmetry (P1)",
        )
    if listed * (operations or MAX_OPERATIONS) <= max_atoms:
        return
    from pymatgen.io.cif import CifBlock, str2float

    data = CifBlock(block, [], name)
    magnetic = parser.feature_flags["magcif"]  # type: ignore[attr-defined]
    found = parser.get_magsymops(data) if magnetic else parser.get_symops(data)
    affine = np.array([operation.affine_matrix for operation in found])
    if listed * len(affine) * (1.0 + listed * SLOWER_PER_ATOM) > MAX_IMAGES:
        raise DataError(
            f"the CIF lists {listed} atoms and {len(affine)} symmetry operations",
            why="too many images to compare",
            do="write the structure without symmetry (P1)",
        )
    coordinates = [[str2float(value) for value in block[f"_atom_site_fract_{axis}"]] for axis in "xyz"]
    images = np.einsum("oij,aj->aoi", affine[:, :3, :3], np.transpose(coordinates)) + affine[:, :3, 3]
    # an atom whose images straddle two boxes counts twice: only what is far too much is refused here
    _check_atoms(sum(_distinct(of_atom) for of_atom in images), 2 * max_atoms)


def _distinct(images: np.ndarray) -> int:
    """Count points (n, 3), fractional, modulo the lattice, as far apart as atoms are."""
    return len(np.unique(np.round(images * GRID).astype(np.int64) % GRID, axis=0))


def _check_atoms(atoms: int, max_atoms: int) -> None:
    if atoms > max_atoms:
        raise DataError(f"the structure has {atoms} atoms, more than {max_atoms}", do="give a smaller cell")
