"""Extended XYZ frames: found and parsed as ASE does, damaged ones refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.formats.extxyz import comment_text, comment_values, frames, parse_frame

FRAME = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 energy=-1.5\nNa 0 0 0\nCl 2 2 2\n'


def random_atoms(seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    atoms = Atoms(numbers=rng.integers(1, 95, count), positions=rng.uniform(-9, 9, (count, 3)), pbc=True)
    atoms.cell[:] = np.diag(rng.uniform(3, 9, 3)) + rng.uniform(-1, 1, (3, 3))
    atoms.info = {"id": f"s {seed}", "gap": float(rng.normal()), "n": seed, "vector": rng.normal(size=3)}
    atoms.arrays["extra"] = rng.normal(size=(count, 2))
    return atoms


def test_frames_are_found_and_read_as_ase_reads_them(tmp_path: Path) -> None:
    expected = [random_atoms(seed) for seed in range(30)]
    write(tmp_path / "many.xyz", expected, format="extxyz")
    data = (tmp_path / "many.xyz").read_bytes()
    found = list(frames(io.BytesIO(data)))
    assert len(found) == 30 and sum(size for _, size, _ in found) == len(data)
    for (start, size, comment), atoms in zip(found, read(tmp_path / "many.xyz", ":"), strict=True):
        structure, info = parse_frame(data[start : start + size].decode(), 100)
        assert [site.specie.Z for site in structure] == atoms.numbers.tolist()
        np.testing.assert_allclose(structure.lattice.matrix, atoms.cell.array)
        np.testing.assert_allclose(structure.cart_coords, atoms.positions, atol=1e-9)
        assert info["gap"] == atoms.info["gap"] and info["n"] == atoms.info["n"]
        assert comment_text(comment, "id") == info["id"] == atoms.info["id"]
        np.testing.assert_allclose(info["vector"], atoms.info["vector"])


def test_columns_may_stand_in_any_order() -> None:
    text = '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=tags:I:2:pos:R:3:Z:I:1\n7 8 0 0 0 11\n7 8 2 2 2 17\n'
    structure, _ = parse_frame(text, 10)
    assert structure.formula == "Na1 Cl1" and structure[1].coords.tolist() == [2, 2, 2]


def test_an_id_keeps_its_spelling() -> None:
    comment = 'note="has id=7 inside" id=0012 other=1 last="a b" braced={x y}'
    assert comment_text(comment, "id") == "0012" and comment_values(comment)["id"] == 12
    assert comment_text(comment, "last") == "a b" and comment_text(comment, "braced") == "x y"
    assert comment_text(comment, "inside") is None and comment_text("id=", "id") == ""


BAD = {
    "no lattice": (FRAME.replace('Lattice="4 0 0 0 4 0 0 0 4" ', ""), "no Lattice"),
    "molecule": (FRAME.replace("energy", 'pbc="F F F" energy'), "not periodic"),
    "slab": (FRAME.replace("energy", 'pbc="T T F" energy'), "not periodic"),
    "flat": (FRAME.replace("0 0 4", "0 4 0"), "no finite volume"),
    "infinite cell": (FRAME.replace("0 0 4", "0 0 1e400"), "no finite volume"),
    "cut off": (FRAME[:-10], "1 rows|4 columns"),
    "a row too many": (FRAME + "Na 1 1 1\n", "3 rows"),
    "a column too many": (FRAME.replace("2 2 2", "2 2 2 2"), "4 columns"),
    "a billion atoms": ("1000000000" + FRAME[1:], "1000000000 atoms"),
    "a billion columns": (FRAME.replace("pos:R:3", "pos:R:3:x:R:1000000000"), "1000000004 columns"),
    "negative columns": (FRAME.replace("species:S:1", "species:S:-1"), "no species"),
    "no positions": (FRAME.replace("pos:R:3", "x:R:3"), "no species"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_are_refused(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(DataError, match=message):
        parse_frame(text, 100)


def test_what_follows_a_damaged_frame_is_not_guessed() -> None:
    damaged = FRAME + FRAME.replace("Cl 2 2 2\n", "Cl 2 2 2\nCl 1 1 1\n") + FRAME
    found = frames(io.BytesIO(damaged.encode()))
    assert [next(found)[0], next(found)[0]] == [0, len(FRAME)]
    with pytest.raises(DataError, match="not with a number of atoms"):
        next(found)
    with pytest.raises(DataError, match="more than 200000"):
        list(frames(io.BytesIO(b"2\n" + b"x" * 300_000)))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='aL=1" .-e{}[]\\_JSON\n:T', max_size=60))
def test_no_comment_does_anything_but_raise_data_errors(comment: str) -> None:
    try:
        comment_values(comment)
    except DataError:
        return
