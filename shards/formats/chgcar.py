"""VASP's CHGCAR: a POSCAR, and the charge density times the volume of the cell on the FFT grid."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from shards.errors import DataError
from shards.formats.files import opened
from shards.formats.structure import MAX_ATOMS, parse_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_POINTS = 1 << 24
MAX_LINE = 10_000
# lines of a POSCAR besides those of its atoms
HEAD_LINES = 8
CHUNK_BYTES = 4 << 20


def read_chgcar(
    path: Path, *, max_points: int = MAX_POINTS, max_atoms: int = MAX_ATOMS
) -> tuple[Structure, np.ndarray]:
    """Read the structure and the total density of a CHGCAR, CHG or AECCAR, which may be packed.

    The file holds the density times the volume of the cell, so that the mean of its numbers is the
    number of electrons. Its first grid is the total of both spins; the magnetisation and the
    augmentation occupancies that follow are not read.

    Parameters
    ----------
    path : Path
        The file; ``.gz``, ``.bz2`` and ``.xz`` are unpacked on the way.
    max_points : int
        Larger grids are refused before they are read.
    max_atoms : int
        Larger structures are refused.

    Returns
    -------
    structure : Structure
        The cell that the grid divides.
    density : ndarray
        (n1, n2, n3) float64, electrons per cubic Angstrom; index i is fractional coordinate i / n.

    Raises
    ------
    DataError
        For a file that is damaged, ends early, or holds another number of values than its grid has points.
    """
    with opened(path) as file:
        structure = parse_structure(_header(file, path, max_atoms), max_atoms=max_atoms, where=str(path))
        line = file.readline(MAX_LINE)
        try:
            shape = tuple(int(word) for word in line.split())
        except ValueError:
            shape = ()
        if len(shape) != 3 or min(shape) < 1:
            raise DataError(f"the charge density's grid is {line[:60]!r}, not three numbers of points", where=path)
        points = shape[0] * shape[1] * shape[2]
        if points > max_points:
            raise DataError(
                f"the charge density has {points} points, more than {max_points}",
                where=path,
                do="raise the source's max_grid_points if the file is to be trusted",
            )
        values = _values(file, shape, path)
    values /= structure.volume
    return structure, values.reshape(shape, order="F")


def _header(file: BinaryIO, path: Path, max_atoms: int) -> str:
    """Return the POSCAR that ends with the first empty line, its comment replaced."""
    # a comment may look like another format of structures
    lines = ["structure"]
    file.readline(MAX_LINE)
    for _ in range(HEAD_LINES + max_atoms):
        line = file.readline(MAX_LINE).decode(errors="replace").rstrip()
        if not line:
            break
        lines.append(line)
    else:
        raise DataError(f"the file begins with no structure of up to {max_atoms} atoms", where=path)
    return "\n".join(lines) + "\n"


def _values(file: BinaryIO, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return the numbers of the first grid, as they follow each other in the file."""
    points, count, rest, ended = int(np.prod(shape)), 0, b"", False
    # three numbers beyond the grid tell whether the next grid follows
    values = np.empty(points + 3)
    while count < len(values) and not ended:
        chunk = file.read(CHUNK_BYTES)
        block, rest, ended = rest + chunk, b"", not chunk
        # "augmentation occupancies" is the only word that follows; one letter is found much faster
        augmentation = block.find(b"a")
        if augmentation >= 0:
            block, ended = block[:augmentation], True
        elif not ended:
            cut = max(block.rfind(b"\n"), block.rfind(b" ")) + 1
            block, rest = block[:cut], block[cut:]
            if len(rest) > MAX_LINE:
                raise DataError("the charge density is no column of numbers", where=path)
        numbers = _numbers(block, path)[: len(values) - count]
        values[count : count + len(numbers)] = numbers
        count += len(numbers)
    if count < points or not (count == points or np.array_equal(values[points:count], shape)):
        raise DataError(
            f"the charge density has {'fewer' if count < points else 'more'} values than its grid's {points} points",
            where=path,
            why="the file was cut short, or numbers run into each other",
            do="copy the file again, or repeat the calculation's last step",
        )
    if not np.isfinite(values[:points]).all():
        raise DataError("the charge density holds NaN or infinity", where=path)
    return values[:points]


def _numbers(block: bytes, path: Path) -> np.ndarray:
    """Parse white-space separated numbers."""
    with warnings.catch_warnings():
        # numpy only warns where it stops at a word that is no number
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(block, dtype=np.float64, sep=" ") if block.strip() else np.empty(0)
        except (DeprecationWarning, ValueError):
            raise DataError("the charge density holds a word that is no number", where=path) from None
