"""Densities of states in CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from shards.errors import DataError
from shards.formats.structure import file_text
from shards.sources.base import RawDos


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
    text = file_text(Path(path))
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
