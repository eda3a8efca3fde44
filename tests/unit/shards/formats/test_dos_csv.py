"""Densities of states in CSV files, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import DataError
from shards.formats.dos_csv import read_dos


def test_dos_files(tmp_path: Path) -> None:
    path = tmp_path / "dos.csv"
    path.write_text("# PBE\nenergy_ev, states_per_ev_atom\n-1.0,0.5\n\n0,1\n2.5, 2\n")
    dos = read_dos(path, zero_ev=0.3)
    assert dos.energy_ev.tolist() == [-1.0, 0.0, 2.5] and dos.states_per_ev.tolist() == [0.5, 1.0, 2.0]
    assert (dos.atoms, dos.zero_ev) == (1, 0.3)
    assert read_dos(path, atoms=7).atoms == 1
    path.write_text("energy_ev,states_per_ev_cell\n-1,4\n1,8\n")
    assert read_dos(path, atoms=4).atoms == 4
    with pytest.raises(DataError, match="number of atoms"):
        read_dos(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header ''"),
        ("E,dos\n1,2\n3,4\n", "header 'E,dos'"),
        ("energy_ev,states_per_ev_atom\n1,2\n", "1 rows"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,x\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,inf\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n2,1,5\n", "data row 2"),
        ("energy_ev,states_per_ev_atom\n1,2\n0,2\n", "ascend"),
    ],
)
def test_bad_dos_files_are_data_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dos.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dos(tmp_path / "dos.csv")
