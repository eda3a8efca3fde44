"""Foreign WebDataset shards: what vanilla writers make is read, what could harm is refused by name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import webdataset
from PIL import Image
from pymatgen.core import Lattice, Structure

from shards.errors import ConfigError, DataError
from shards.formats.arrays import gunzip, parse_npy, parse_npz
from shards.formats.tar import walk
from shards.sources import source
from shards.sources.base import Record

CRYSTAL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MEMBERS = {
    "structure.cif": "structure",
    "dos.npy": "dos",
    "density.npy": "charge_density",
    "txt": "text",
    "json": {"labels": {"band_gap_ev": "gap", "bulk_modulus_gpa": "elastic.k"}, "tags": {"batch": "meta.batch"}},
    "png": "images",
    "safetensors": "arrays.*",
    "spectra.npz": "arrays.*",
    "cls": "labels.class",
}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 7), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def sample(number: int) -> dict[str, Any]:
    return {
        "__key__": f"s{number:03d}",
        "structure.cif": CRYSTAL.to(fmt="cif"),
        "dos.npy": np.stack([np.linspace(-8, 8, 81), np.full(81, 1.0 + number)]),
        "density.npy": np.full((4, 4, 4), 0.5 + number),
        "txt": f"Crystal {number}.",
        "json": {"gap": number / 2 if number else None, "elastic": {"k": 20.0}, "meta": {"batch": "B1"}},
        "png": np.full((5, 7), number, np.uint8),
        "safetensors": safetensors.numpy.save({"embedding": np.arange(3.0) + number}),
        "spectra.npz": {"raman": np.arange(5) + number, "ir": np.ones((2, 3), np.float32)},
        "cls": number % 2,
    }


def make(folder: Path, **options: Any) -> Any:
    return source({"kind": "webdataset", "path": str(folder), "members": MEMBERS, **options})


def read_all(folder: Path, **options: Any) -> list[Record]:
    made = make(folder, **options)
    return [made.read(item) for item in made.items()]


def pack(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    with webdataset.ShardWriter(str(folder / "a-%03d.tar"), maxcount=3, verbose=0) as writer:
        for number in range(7):
            writer.write(sample(number))
    return folder


def test_what_vanilla_webdataset_writes_is_read(shards: Path) -> None:
    records = read_all(shards)
    assert [record.id for record in records] == [f"s{number:03d}" for number in range(7)]
    for number, record in enumerate(records):
        assert record.structure is not None and record.structure.composition == CRYSTAL.composition
        assert record.dos is not None and record.dos.atoms == 2
        np.testing.assert_array_equal(record.dos.states_per_ev, np.full(81, 1.0 + number))
        np.testing.assert_array_equal(record.charge_density, np.full((4, 4, 4), 0.5 + number))
        assert record.text == f"Crystal {number}." and record.tags["batch"] == "B1"
        assert record.tags["formula"] == "CsCl"
        known = {"band_gap_ev": number / 2} if number else {}
        assert record.labels == {**known, "bulk_modulus_gpa": 20.0, "class": number % 2}
        np.testing.assert_array_equal(record.images[0], np.full((5, 7), number))
        assert set(record.arrays) == {"embedding", "raman", "ir"}
        np.testing.assert_array_equal(record.arrays["embedding"], np.arange(3.0) + number)
        np.testing.assert_array_equal(record.arrays["raman"], np.arange(5) + number)


def test_the_same_samples_as_webdataset_itself_reads(shards: Path) -> None:
    made = make(shards)
    ours = {item.id: sorted(part[0] for part in item.ref["parts"]) for item in made.items()}
    theirs = {}
    for path in sorted(shards.glob("*.tar")):
        for found in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
            theirs[found["__key__"]] = sorted(key for key in found if not key.startswith("__"))
    assert ours == theirs


def test_listing_is_cheap_and_repeats(shards: Path, tmp_path: Path) -> None:
    items = list(make(shards).items())
    assert items == list(make(shards).items()) and items == list(make(f"{shards}/*.tar").items())
    assert json.loads(json.dumps(items[0].ref)) == items[0].ref
    with pytest.raises(DataError, match="no tar"):
        list(make(tmp_path).items())


@pytest.mark.parametrize(
    ("split", "names", "expected"),
    [
        ("first", ["a.txt", "b.txt"], ["a", "b"]),
        ("last", ["Li0.5CoO2.txt", "Li0.7CoO2.txt"], ["Li0.5CoO2", "Li0.7CoO2"]),
        ("members", ["Li0.5CoO2.txt", "Li0.5CoO2.structure.cif", "Li0.7.txt"], ["Li0.5CoO2", "Li0.7"]),
        (r"(?P<key>mp-\d+)_(?P<ending>.*)", ["mp-1_txt", "mp-2_txt"], ["mp-1", "mp-2"]),
        ("first", ["./x/a.txt", "./y/a.txt"], ["x/a", "y/a"]),
    ],
)
def test_names_are_split(tmp_path: Path, split: str, names: list[str], expected: list[str]) -> None:
    cif = CRYSTAL.to(fmt="cif").encode()
    pack(tmp_path / "t.tar", *((name, cif if name.endswith("cif") else b"words") for name in names))
    assert [record.id for record in read_all(tmp_path, key_split=split)] == expected


def test_ids_with_dots_are_not_merged_by_the_first_dot(tmp_path: Path) -> None:
    pack(tmp_path / "t.tar", ("Li0.5CoO2.txt", b"a"), ("Li0.7CoO2.txt", b"b"))
    with pytest.raises(DataError, match=r"'5CoO2\.txt'"):
        list(make(tmp_path).items())


def test_keys_that_repeat_in_other_tars(tmp_path: Path) -> None:
    for name in "ab":
        pack(tmp_path / f"{name}.tar", ("0.txt", name.encode()))
    with pytest.raises(DataError, match="two tars"):
        list(make(tmp_path).items())
    assert [(r.id, r.text) for r in read_all(tmp_path, ids="shard")] == [("a/0", "a"), ("b/0", "b")]


def test_energies_may_be_a_member_of_their_own(tmp_path: Path) -> None:
    energy, states = np.linspace(-5, 5, 11), np.ones(11, np.float32)
    pack(tmp_path / "t.tar", ("a.e.npy", npy(energy)), ("a.d.npy.gz", gzip.compress(npy(states))))
    members = {"e.npy": "dos.energy_ev", "d.npy": "dos.states_per_ev"}
    record = read_all(tmp_path, members=members, dos_per="atom", dos_zero_ev=1.5)[0]
    assert record.dos is not None and (record.dos.atoms, record.dos.zero_ev) == (1, 1.5)
    np.testing.assert_array_equal(record.dos.energy_ev, energy)
    with pytest.raises(DataError, match="per cell"):
        read_all(tmp_path, members=members)


def test_fields_of_json_and_patterns(tmp_path: Path) -> None:
    table = {"s": CRYSTAL.as_dict(), "t": 900, "gas": "Ar", "nan": float("nan"), "g": 7, "smi": "CCO"}
    members = {
        "json": {
            "structure": "s",
            "columns": {"anneal_c": "t", "gas": "gas"},
            "labels": {"x": "nan", "y": "no.such"},
            "group": "g",
            "smiles": "smi",
        },
        "*.png": "images",
    }
    pictures = [(f"a.{n}.png", png(n)) for n in range(3)]
    pack(tmp_path / "t.tar", ("a.json", json.dumps(table).encode()), *pictures)
    record = read_all(tmp_path, members=members)[0]
    assert record.structure is not None and record.structure.volume == pytest.approx(CRYSTAL.volume)
    assert record.columns == {"anneal_c": 900.0, "gas": "Ar"} and record.labels == {}
    assert (record.group, record.smiles) == ("7", "CCO")
    assert [int(image[0, 0]) for image in record.images] == [0, 1, 2]


def test_numbers_too_large_for_a_float_are_a_reason(tmp_path: Path) -> None:
    pack(tmp_path / "t.tar", ("a.json", b'{"gap": 1' + b"0" * 400 + b"}"))
    with pytest.raises(DataError, match="is no number"):
        read_all(tmp_path)


def test_members_without_a_key_may_be_ignored_by_name(tmp_path: Path) -> None:
    pack(tmp_path / "t.tar", ("README", b"x"), ("a.txt", b"words"), ("notes/README", b"x"))
    assert [record.id for record in read_all(tmp_path, ignore=["README", "notes/*"])] == ["a"]


def test_a_tar_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "set [1].tar", ("a.txt", b"words"))
    assert [record.text for record in read_all(path)] == ["words"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": {}}, "at least one"),
        ({"members": {"txt": "texts"}}, "did you mean 'text'"),
        ({"members": {"pkl": "arrays.x"}}, "pickle"),
        ({"members": {"x.PT.gz": "arrays.x"}}, "pickle"),
        ({"members": {"json": {"lables": {}}}}, "lables"),
        ({"key_split": "(?P<key>.*)"}, "groups"),
        ({"key_split": "("}, "no expression"),
    ],
)
def test_bad_tables_are_config_errors(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **options)


# --- hostile ------------------------------------------------------------------------------------


class Attack:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["pkl", "pickle", "pyd", "pth", "pt", "joblib"])
def test_members_that_carry_pickles_are_never_opened(tmp_path: Path, ending: str, packed: bool) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps(Attack(mark))
    name = f"a.x.{ending}" + (".gz" if packed else "")
    path = pack(tmp_path / "t.tar", ("a.txt", b"words"), (name, gzip.compress(data) if packed else data))
    with pytest.raises(DataError, match="pickle") as caught:
        read_all(tmp_path)
    assert name in str(caught.value) and str(path) in str(caught.value)
    assert read_all(tmp_path, ignore=[name[2:]])[0].text == "words"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["density.npy", "density.npy.gz", "spectra.npz"])
def test_arrays_of_objects_are_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    objects = np.array([Attack(mark)], dtype=object)
    data = {"npy": npy, "gz": lambda a: gzip.compress(npy(a)), "npz": lambda a: npz(x=a)}[name[-3:].strip(".")](objects)
    pack(tmp_path / "t.tar", (f"a.{name}", data))
    with pytest.raises(DataError, match="no real number") as caught:
        read_all(tmp_path)
    assert f"a.{name}" in str(caught.value) and not mark.exists()


def raw_header(name: bytes, size: int = 0, kind: bytes = b"0", link: bytes = b"") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", b"%011o\0" % size
    block[156:157], block[157 : 157 + len(link)], block[257:265] = kind, link, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**records: str) -> bytes:
    lines = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = next(n for n in range(len(body), len(body) + 9) if len(str(n)) + len(body) == n)
        lines += str(length).encode() + body
    return raw_header(b"PaxHeader", len(lines), b"x") + lines + bytes(-len(lines) % 512)


def plain(name: bytes) -> bytes:
    return raw_header(name, 1) + b"x" + bytes(511)


END = bytes(1024)
HOSTILE_NAMES = {
    "parent": (plain(b"../a.txt"), "dots"),
    "parent inside": (plain(b"x/../../a.txt"), "dots"),
    "absolute": (plain(b"/etc/a.txt"), "absolute"),
    "other system": (plain(b"C:\\a.txt"), "absolute"),
    "empty": (plain(b""), "empty"),
    "dots only": (plain(b"x/.../a.txt"), "dots"),
    "newline": (plain(b"a\nb.txt"), "cannot be seen"),
    "NUL in a pax path": (pax(path="a\0b.txt") + plain(b"a.txt"), "cannot be seen"),
    "text that turns round": (plain("a\u202etxt.exe".encode()), "cannot be seen"),
    "zero width": (plain("a\u200b.txt".encode()), "cannot be seen"),
    "two spellings": (plain("e\u0301.txt".encode()), "normal form"),
    "no UTF-8": (plain(b"\xff\xfe.txt"), "UTF-8"),
    "too long": (raw_header(b"x", 2000, b"L") + b"a" * 1996 + b".txt" + bytes(48) + plain(b"x"), "longer"),
    "long part": (pax(path="a" * 300 + ".txt") + plain(b"x"), "longer"),
    "symbolic link": (raw_header(b"a.txt", 0, b"2", b"/etc/passwd"), "symbolic link"),
    "hard link": (raw_header(b"a.txt", 0, b"1", b"b.txt"), "hard link"),
    "device": (raw_header(b"a.txt", 0, b"3"), "device"),
    "pipe": (raw_header(b"a.txt", 0, b"6"), "pipe"),
    "sparse": (raw_header(b"a.txt", 0, b"S"), "sparse"),
    "pax sparse": (pax(GNU__sparse__major="1") + plain(b"a.txt"), "GNU.sparse"),
    "pax size": (pax(size="0") + plain(b"a.txt"), "'size'"),
    "pax path": (pax(path="../../a.txt") + plain(b"a.txt"), "dots"),
    "GNU long name": (raw_header(b"x", 9, b"L") + b"../a.txt\0" + bytes(503) + plain(b"x"), "dots"),
    "folder with content": (raw_header(b"x/", 512, b"5") + plain(b"a.txt")[:512], "folder with content"),
    "no key": (plain(b".txt"), "no key"),
    "no ending": (plain(b"readme"), "no key"),
    "unknown ending": (plain(b"a.exe"), "nothing says"),
    "twice": (plain(b"a.txt") * 2, "twice"),
    "apart": (plain(b"a.txt") + plain(b"b.txt") + plain(b"a.cls"), "lie together"),
}


@pytest.mark.parametrize("kind", HOSTILE_NAMES)
def test_hostile_members_are_refused(tmp_path: Path, kind: str) -> None:
    data, message = HOSTILE_NAMES[kind]
    (tmp_path / "t.tar").write_bytes(data + END)
    with pytest.raises(DataError, match=message) as caught:
        list(make(tmp_path, ignore=["ignored"]).items())
    assert "t.tar" in str(caught.value) and "\n" not in caught.value.what


def test_long_and_foreign_names_that_do_no_harm_are_read(tmp_path: Path) -> None:
    names = ["a" * 180 + ".txt", "x/" * 60 + "Lösung.txt", "日本.txt"]
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        pack(tmp_path / f"{number}.tar", *((name, b"words") for name in names), form=form)
    pack(tmp_path / "2.tar", ("y" * 90 + "/" + "b" * 90 + ".txt", b"words"), form=tarfile.USTAR_FORMAT)
    records = read_all(tmp_path, ids="shard")
    assert [record.id for record in records[:3]] == [f"0/{name[:-4]}" for name in names]
    assert records[-1].id == "2/" + "y" * 90 + "/" + "b" * 90 and all(record.text == "words" for record in records)


def test_every_truncation_of_a_tar_is_found(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "a-000.tar").read_bytes()
    path = tmp_path / "t.tar"
    end = whole.rstrip(b"\0")
    last = -(-len(end) // 512) * 512 + 1024
    for length in np.random.default_rng(0).integers(0, last, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut short"):
            list(walk(path, max_members=1000))
    for length in range(512, last, 512):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut short"):
            list(walk(path, max_members=1000))
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="after its end"):
        list(walk(path, max_members=1000))
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match="packed with gzip"):
        list(walk(path, max_members=1000))


def test_flipped_bits_of_headers_are_found(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "a-000.tar").read_bytes()
    path = tmp_path / "t.tar"
    path.write_bytes(whole)
    headers = [member.offset - 512 for member in walk(path, max_members=1000)]
    good = [(item.id, item.ref) for item in make(path).items()]
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.choice(headers) + rng.integers(512)] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            list(make(path).items())
    path.write_bytes(whole)
    assert [(item.id, item.ref) for item in make(path).items()] == good


def test_a_tar_that_changed_after_it_was_listed_is_refused(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes((shards / "a-000.tar").read_bytes())
    made = make(path)
    item = next(iter(made.items()))
    path.write_bytes((shards / "a-001.tar").read_bytes()[512:])
    with pytest.raises(DataError, match=r"changed|damaged"):
        made.read(item)


def bomb_npy() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (274877906944,), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@lru_cache(maxsize=1)
def bomb_npz() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(400):
            file.write(bytes(1 << 20))
    return stream.getvalue()


def bomb_zip_that_lies() -> bytes:
    data = bytearray(bomb_npz())
    size = (400 << 20).to_bytes(4, "little")
    return bytes(data.replace(size, (100).to_bytes(4, "little")))


@lru_cache(maxsize=1)
def bomb_gzip() -> bytes:
    return gzip.compress(bytes(400 << 20), 9)


def bomb_directory() -> bytes:
    """An archive of nothing but a directory, of a million entries that say nothing."""
    entry = b"PK\x01\x02" + bytes(42)
    end = b"PK\x05\x06" + bytes(8) + (46_000_000).to_bytes(4, "little") + bytes(6)
    return entry * 1_000_000 + end


def bomb_png() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(stream, "PNG")
    return stream.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a header of 2 TiB": ("density.npy", bomb_npy),
    "a nested header": ("density.npy", lambda: b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000),
    "an archive": ("spectra.npz", bomb_npz),
    "an archive that lies": ("spectra.npz", bomb_zip_that_lies),
    "a directory": ("spectra.npz", bomb_directory),
    "gzip": ("txt.gz", bomb_gzip),
    "gzip of JSON": ("json.gz", bomb_gzip),
    "brackets": ("json", lambda: b"[" * 10_000_000),
    "a number": ("json", lambda: b'{"gap": ' + b"9" * 10_000_000 + b"}"),
    "pixels": ("png", bomb_png),
    "safetensors": ("safetensors", lambda: (1 << 40).to_bytes(8, "little") + b"{}"),
}
GUARDED = """
import json, resource, sys, time
from shards.errors import DataError
from shards.sources import source
import numpy, PIL.Image, PIL.PngImagePlugin
from shards.sources.webdataset import WebdatasetSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for table in json.loads(sys.argv[1]):
    made, began = source(table), time.process_time()
    try:
        for item in made.items():
            made.read(item)
        what = "read"
    except DataError as error:
        what = error.what
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([what, used / 1024, time.process_time() - began]))
"""


def guarded(*folders: Path) -> list[tuple[str, float, float]]:
    """Read folders in another process: of each the error, MB of memory at the most so far, seconds of processor time.

    Neighbours on the machine slow a process down; of three tries the first that is not slowed down counts.
    """
    tables = json.dumps([{"kind": "webdataset", "path": str(folder), "members": MEMBERS} for folder in folders])
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", GUARDED, tables], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
        if all(seconds < 2 for _, _, seconds in found):
            break
    return found


def test_bombs_are_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(len(BOMBS))]
    for folder, (ending, build) in zip(folders, BOMBS.values(), strict=True):
        folder.mkdir()
        pack(folder / "t.tar", (f"a.{ending}", build()))
    for kind, (what, used, seconds) in zip(BOMBS, guarded(*folders), strict=True):
        assert what != "read" and used < 256 and seconds < 2, (kind, what, used, seconds)


def tiny_members(path: Path, count: int) -> None:
    """Write a tar of so many empty members, each with a name and a key of its own."""
    headers = np.tile(np.frombuffer(raw_header(b"0000000.txt"), np.uint8), (count, 1))
    digits = np.arange(count)[:, None] // 10 ** np.arange(6, -1, -1) % 10
    headers[:, :7] += digits.astype(np.uint8)
    checksum = int(bytes(headers[0, 148:154]), 8) + digits.sum(axis=1)
    headers[:, 148:154] = ord("0") + checksum[:, None] // 8 ** np.arange(5, -1, -1) % 8
    with path.open("wb") as file:
        file.write(headers)
        file.write(END)


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_very_many_tiny_members_are_refused(tmp_path: Path, count: int) -> None:
    tiny_members(tmp_path / "t.tar", count)
    ((what, used, seconds),) = guarded(tmp_path)
    (tmp_path / "t.tar").unlink()
    assert "members" in what and used < 256 and seconds < 2


def test_a_limit_of_members_holds(tmp_path: Path) -> None:
    pack(tmp_path / "t.tar", *((f"{n}.txt", b"x") for n in range(11)))
    assert len(list(make(tmp_path, max_members=11).items())) == 11
    with pytest.raises(DataError, match="more than 10 members"):
        list(make(tmp_path, max_members=10).items())


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "|b1", "<i8", ">u2", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_numpys(dtype: str, order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, dtype=dtype, order=order)
    for value in (array, array[0, 0, 0], array[:0]):
        found = parse_npy(npy(np.asarray(value, order=order)), where="x")
        expected = np.load(io.BytesIO(npy(value)))
        np.testing.assert_array_equal(found, expected)
        assert found.dtype.isnative and found.shape == expected.shape


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy(np.ones(3))[:-1],
        npy(np.ones(3)) + b"x",
        npy(np.array(["text"])),
        npy(np.array([1j])),
        npy(np.array([(1, 2)], dtype="i4,i4")),
        npy(np.array(["2020-01-01"], dtype="M8[D]")),
        npy(np.ones(3)).replace(b"(3,)", b"(-3,)"[:4]),
        npy(np.ones(1)).replace(b"'shape': (1,)", b"'shape': [1, ]"),
        npy(np.ones(3)).replace(b"False", b"print"),
    ],
)
def test_other_arrays_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="no array"):
        parse_npy(data, where="x")


def test_damaged_archives_are_refused() -> None:
    good = npz(a=np.arange(1000.0))
    assert set(parse_npz(good, where="x", max_bytes=1 << 20)) == {"a"}
    for data in (good[:100], b"PK\x03\x04", good.replace(b"a.npy", b"a.txt"), b""):
        with pytest.raises(DataError):
            parse_npz(data, where="x", max_bytes=1 << 20)
    with pytest.raises(DataError, match="unpacks"):
        parse_npz(good, where="x", max_bytes=1000)
    for data in (gzip.compress(b"x" * 100)[:-3], gzip.compress(b"x") + b"y", b"", b"plain"):
        with pytest.raises(DataError, match="gzip"):
            gunzip(data, where="x", max_bytes=1000)


def test_members_that_are_small_alone_are_bounded_together(tmp_path: Path) -> None:
    array = npz(x=np.zeros(50_000))  # 400 kB unpacked, 1 kB packed
    pack(tmp_path / "a.tar", *((f"k.part{number}.npz", array) for number in range(5)))
    members = {f"part{number}.npz": f"arrays.a{number}" for number in range(5)}
    assert len(read_all(tmp_path, members=members)[0].arrays) == 5
    with pytest.raises(DataError, match="max_sample_bytes"):
        read_all(tmp_path, members=members, max_sample_bytes=1_000_000)
