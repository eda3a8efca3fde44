"""Packed files and archives: read in place, hostile members and bombs refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.formats.packed import Archive, codec, unpacked

CONTENT = {"a.cif": b"alpha " * 40, "b/c.cif": b"beta " * 900, "b/empty.cif": b""}
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
NAMES = [*TARS, ".zip"]


def archive(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in content.items():
                zipped.writestr(name, data)
        return path
    mode = next(mode for suffix, mode in TARS.items() if path.name.endswith(suffix))
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", NAMES)
def test_members_are_read_in_any_order(tmp_path: Path, suffix: str) -> None:
    opened = Archive(archive(tmp_path / f"x{suffix}"))
    members = list(opened.members())
    assert [member.name for member in members] == list(CONTENT) and not any(member.refused for member in members)
    for member in [*members, *members[::-1]]:
        assert opened.open(member.name, member.place).read() == CONTENT[member.name]


@pytest.mark.parametrize("suffix", NAMES)
def test_members_are_read_while_they_are_listed(tmp_path: Path, suffix: str) -> None:
    content = {f"{i}.cif": bytes([i]) * (i * 97) for i in range(60)}
    opened = Archive(archive(tmp_path / f"x{suffix}", content))
    assert {m.name: opened.open(m.name, m.place).read() for m in opened.members()} == content


def test_packed_members_of_archives(tmp_path: Path) -> None:
    for pack, suffix in ((gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz")):
        content = {f"a.cif{suffix}": pack(b"text " * 30), "b.cif": b"b"}
        for name in ("x.zip", "x.tar.gz"):
            opened = Archive(archive(tmp_path / name, content))
            first = next(opened.members())
            assert codec(first.name) == suffix and opened.open(first.name, first.place).read() == b"text " * 30


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "x.gz"), (bz2.compress, "x.bz2"), (lzma.compress, "x.xz")])
def test_bombs_are_stopped_on_the_way(pack, name: str) -> None:
    packed = pack(bytes(40_000_000))
    stream, read = unpacked(io.BytesIO(packed), name, len(packed)), 0
    for _ in range(15):
        read += len(stream.read(1 << 20))
    assert read == 15 << 20
    with pytest.raises(DataError, match="unpacks to more than 16 MB"):
        stream.read(1 << 20)
    with pytest.raises(DataError, match="unpacks to more than 16 MB"):
        unpacked(io.BytesIO(packed), name, len(packed)).seek(30_000_000)
    # what packs well but honestly is read
    honest = pack(bytes(1_000_000) + random.Random(0).randbytes(200_000))
    assert len(unpacked(io.BytesIO(honest), name, len(honest)).read()) == 1_200_000


HOSTILE = ["../up.cif", "/etc/a.cif", "a/../../b.cif", "C:\\a.cif", "a\\..\\b.cif", "a\x1b[2J.cif"]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_and_the_others_read(tmp_path: Path, suffix: str, name: str) -> None:
    opened = Archive(archive(tmp_path / f"x{suffix}", {"good.cif": b"1", name: b"2", "last.cif": b"3"}))
    assert [bool(member.refused) for member in opened.members()] == [False, True, False]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.cif")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert [m.refused for m in Archive(tmp_path / "x.tar").members()] == ["it is a link, a device or a sparse file"]


def test_links_bombs_and_secrets_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        link = zipfile.ZipInfo("link.cif")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
        zipped.writestr("bomb.cif", bytes(40_000_000))
        zipped.writestr("good.cif", "x")
    refused = {member.name: member.refused for member in Archive(tmp_path / "x.zip").members()}
    assert "link" in refused["link.cif"] and "bomb" in refused["bomb.cif"] and not refused["good.cif"]
    # the flag of encryption, in the directory
    data = (tmp_path / "x.zip").read_bytes()
    at = data.rindex(b"PK\x01\x02") + 8
    (tmp_path / "y.zip").write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    assert list(Archive(tmp_path / "y.zip").members())[2].refused == "it is encrypted"


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_a_truncated_archive_is_detected(tmp_path: Path, suffix: str) -> None:
    data = archive(tmp_path / f"x{suffix}").read_bytes()
    generator = random.Random(0)
    # the padding after the two blocks of zeros that end a tar says nothing
    limit = len(data.rstrip(b"\0")) if suffix == ".tar" else len(data)
    for cut in [0, limit - 1, *(generator.randrange(limit) for _ in range(30))]:
        (tmp_path / f"cut{suffix}").write_bytes(data[:cut])
        with pytest.raises(DataError):
            list(Archive(tmp_path / f"cut{suffix}").members())


def test_a_damaged_header_does_not_end_a_tar(tmp_path: Path) -> None:
    data = bytearray(archive(tmp_path / "x.tar").read_bytes())
    data[data.index(b"b/c.cif")] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        list(Archive(tmp_path / "x.tar").members())


def test_two_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    data = archive(tmp_path / "x.tar.gz").read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(data + data)
    with pytest.raises(DataError, match="goes on after its end"):
        list(Archive(tmp_path / "x.tar.gz").members())


def test_archives_of_nothing_and_directories_without_end(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for number in range(10_500):
            tar.addfile(tarfile.TarInfo(f"{number}.cif"))
    with pytest.raises(DataError, match="are empty"):
        list(Archive(tmp_path / "x.tar.gz").members())
    # a directory that says it has 17 MB, in the plain and in the 64-bit form
    end = b"PK\x05\x06" + bytes(8) + (17_000_000).to_bytes(4, "little") + bytes(6)
    (tmp_path / "x.zip").write_bytes(bytes(100) + end)
    with pytest.raises(DataError, match="directory of 17 MB"):
        Archive(tmp_path / "x.zip")
    end64 = b"PK\x06\x06" + bytes(36) + (1 << 40).to_bytes(8, "little") + bytes(8)
    locator = b"PK\x06\x07" + bytes(16)
    (tmp_path / "y.zip").write_bytes(bytes(100) + end64 + locator + end)
    with pytest.raises(DataError, match="directory of 1099511 MB"):
        Archive(tmp_path / "y.zip")
