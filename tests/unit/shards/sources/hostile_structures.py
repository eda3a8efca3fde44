"""Files that try to cost much time or memory, and a program that reads them and says what they cost.

python -m tests.unit.shards.sources.hostile_structures FOLDER
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shards.errors import DataError
from shards.sources import source

MB = 1_000_000
CELL = "data_x\n" + "".join(f"_cell_length_{axis} 30\n" for axis in "abc")
CELL += "".join(f"_cell_angle_{angle} 90\n" for angle in ("alpha", "beta", "gamma"))
COLUMNS = "loop_\n_atom_site_label\n" + "".join(f"_atom_site_fract_{axis}\n" for axis in "xyz")
OPERATIONS = "loop_\n_symmetry_equiv_pos_as_xyz\n"
POSCAR = "x\n1.0\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n{}\nDirect\n0 0 0\n0.5 0.5 0.5\n"
FRAME = '{}\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3{}\nNa 0 0 0\n'


def atoms(count: int) -> str:
    """Rows of a CIF, no two alike."""
    return "".join(f"Na{i} 0.{i % 97:02d}1 0.{i % 89:02d}3 0.{i % 83:02d}7\n" for i in range(count))


def texts() -> Iterator[tuple[str, str]]:
    """Yield names and texts of hostile files."""
    yield "million_operations.cif", CELL + OPERATIONS + "x,y,z\n" * 700_000 + COLUMNS + atoms(2)
    yield "half_a_million_operations.cif", CELL + OPERATIONS + "x,y,z\n" * 150_000 + COLUMNS + atoms(2)
    shifts = "".join(f"'x+{i}/192,y,z'\n" for i in range(192))
    yield "operations_times_atoms.cif", CELL + OPERATIONS + shifts + COLUMNS + atoms(900)
    yield "same_operations.cif", CELL + OPERATIONS + "x,y,z\n" * 192 + COLUMNS + atoms(90)
    yield "group_times_atoms.cif", CELL + "_symmetry_space_group_name_H-M 'F m -3 m'\n" + COLUMNS + atoms(100)
    yield "many_atoms.cif", CELL + COLUMNS + atoms(40_000)
    yield "blank_lines.cif", CELL + "\n" * 4_900_000 + COLUMNS + atoms(1)
    yield "blank_line.cif", CELL + " " * 4_900_000 + "x\n" + COLUMNS + atoms(1)
    yield "quotes.cif", CELL + "'a" * 400_000 + "\n" + COLUMNS + atoms(1)
    yield "quoted_lines.cif", CELL + ("'a" * 2000 + "\n") * 200 + COLUMNS + atoms(1)
    yield "formula.cif", CELL + "_chemical_formula_sum '" + "(" * 4000 + "H" + ")9" * 1900 + "'\n" + COLUMNS + atoms(1)
    yield "operation.cif", CELL + OPERATIONS + "'" + "x+y-" * 1900 + "z,y,z'\n" + COLUMNS + atoms(1)
    yield "blocks.cif", "data_a\n_b c\n" * 400_000
    yield "numbers.cif", CELL.replace("30", "1e400") + COLUMNS + "Na 1e400 -1e308 nan\n"
    yield "POSCAR_billion", POSCAR.format("1 999999999")
    yield "POSCAR_underscores", POSCAR.format("1 999_999_999")
    yield "POSCAR_long", POSCAR.format("1 1") + "0 0 0\n" * 800_000
    yield "POSCAR_word", "x" * 4_900_000
    yield "billion.xyz", FRAME.format(10**18, "")
    yield "columns.xyz", FRAME.format(1, ":x:R:1000000000")
    yield "comment.xyz", FRAME.format(1, " a=" + "1 " * 95_000)
    yield "long_comment.xyz", FRAME.format(1, " a=" + "x" * 4_900_000)
    yield "blank.xyz", FRAME.format(1, "").replace("Na", "Xx") + "\n" * 4_900_000
    yield "nested.json", "[" * 4_900_000
    yield "empty_lists.json", '{"a": [' + "[]," * 1_600_000 + "[]]}"
    yield "nested_lists.json", '{"structure": {"lattice": ' + "[[1]," * 30 + "1" + "]" * 30 + ', "sites": []}}'
    yield "digits.json", '[{"lattice": {"matrix": ' + "1" * 1_000_000 + '}, "sites": []}]'
    site = {"species": [{"element": "Na", "occu": 1e308}] * 100_000, "abc": [0, 0, 0]}
    cell = {"matrix": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]}
    yield "species.json", json.dumps({"lattice": cell, "sites": [site]})
    yield "sites.json", json.dumps({"lattice": cell, "sites": [0] * 1_000_000})
    yield "matrix.json", json.dumps({"lattice": {"matrix": [[1, 0, 0]] * 400_000}, "sites": [site["abc"]]})
    yield "line.jsonl", "x" * 7_000_000


def write_all(folder: Path) -> None:
    """Write the hostile files, packed ones too."""
    for name, text in texts():
        (folder / name).write_text(text)
    zeros = bytes(100 * MB)
    (folder / "bomb.xyz.gz").write_bytes(gzip.compress(b"\n" * len(zeros), 1))
    (folder / "bomb.cif.gz").write_bytes(gzip.compress(zeros, 1))
    (folder / "bomb.cif.xz").write_bytes(lzma.compress(zeros, preset=0))
    (folder / "bomb.json.bz2").write_bytes(bz2.compress(zeros[: 30 * MB]))
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        zipped.writestr("a.cif", zeros)
    info = tarfile.TarInfo("a.cif")
    info.size = 2 << 40
    (folder / "two_tebibytes.tar").write_bytes(info.tobuf() + bytes(4096))
    info.type = tarfile.XHDTYPE
    (folder / "two_tebibytes_of_names.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    empty = b"".join(tarfile.TarInfo(f"{number}.cif").tobuf() for number in range(12_000))
    (folder / "empty_members.tar.gz").write_bytes(gzip.compress(empty, 1))
    (folder / "members.zip").write_bytes(zip_directory(400_000))


def zip_directory(members: int) -> bytes:
    """A zip of empty members that share one header."""
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 5, 0) + b"a.cif"
    head = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, *[0] * 4, *[0] * 3, 10, *[0] * 6)
    directory = b"".join(head + b"%06d.cif" % number for number in range(members))
    return (
        local + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(local), 0)
    )


def peak() -> float:
    """MB of memory that this process has had at most; not of getrusage, which a child takes over from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]


def attempt(path: Path) -> tuple[int, str]:
    """Read a file as a source does: the number of records, and the reason of the last one that was refused."""
    read, reason = 0, ""
    try:
        found = source({"kind": "structures", "path": str(path), "labels": {"x": "a"}})
        for item in found.items():
            try:
                found.read(item)
                read += 1
            except DataError as error:
                reason = str(error)
    except DataError as error:
        reason = str(error)
    return read, reason


def main() -> None:
    """Read every file of a folder, and print name, CPU seconds, MB of memory over the start, and the outcome."""
    harmless = Path(sys.argv[1]) / "harmless"
    harmless.mkdir()
    (harmless / "a.cif").write_text(CELL + COLUMNS + atoms(1))
    (harmless / "a.xyz").write_text(FRAME.format(1, ""))
    attempt(harmless)
    start = peak()
    for path in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_file()):
        began = time.process_time()
        read, reason = attempt(path)
        print(json.dumps([path.name, time.process_time() - began, peak() - start, read, reason]), flush=True)


if __name__ == "__main__":
    main()
