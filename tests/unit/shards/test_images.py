"""Pictures and spectra of a folder: found by a table, decoded by default-deny."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from shards.errors import DataError
from shards.features import feature
from shards.sources import Record, Source, source
from shards.sources.images import read_image
from shards.sources.spectra import read_spectrum

GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)


def save(path: Path, pixels: np.ndarray = GREY, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_and_colour_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}")), GREY)
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / f"b.{suffix}", colour)), colour)


def test_jpeg_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    pixels = np.repeat(np.repeat(np.array([[0, 250]], dtype=np.uint8), 16, 0), 16, 1)
    read = read_image(save(tmp_path / "a.jpg", pixels, exif=exif, quality=95))
    assert read.shape == (32, 16)
    assert read[:14].mean() < 20 and read[-14:].mean() > 230


def test_sixteen_bits_are_scaled_linearly_by_full_scale(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 4095, 32767, 65535]], dtype=np.uint16)
    expected = np.floor(wide / 65535 * 255 + 0.5).astype(np.uint8)
    for suffix in ("png", "tif"):
        np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}", wide)), expected)
    twelve = np.array([[0, 2048, 4095]], dtype=np.uint16)
    path = save(tmp_path / "b.tif", twelve)
    assert read_image(path, bits=12).tolist() == [[0, 128, 255]] and read_image(path).tolist() == [[0, 8, 16]]
    with pytest.raises(DataError, match="up to 65535, more than 4095"):
        read_image(tmp_path / "a.tif", bits=12)
    white_is_zero = ImageFileDirectory_v2()
    white_is_zero[262] = 0
    inverted = read_image(save(tmp_path / "c.tif", wide, tiffinfo=white_is_zero))
    np.testing.assert_array_equal(inverted, 255 - expected[:, ::1])


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few hundred kB that would unfold to side^2 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [8_000, 10_000, 30_000, 200_000])
def test_bombs_are_refused_before_they_unfold(tmp_path: Path, side: int) -> None:
    path = bomb(tmp_path / "bomb.png", side)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="pixels"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    wide = io.BytesIO()
    Image.fromarray(GREY).save(wide, "GIF")
    pages = io.BytesIO()
    Image.fromarray(GREY).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    real = io.BytesIO()
    Image.fromarray(GREY.astype(np.float32)).save(real, "TIFF")
    png = io.BytesIO()
    Image.fromarray(GREY).save(png, "PNG")
    for name, content, message in [
        ("gif", wide.getvalue(), "cannot be read"),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read"),
        ("svg", b"<svg/>", "cannot be read"),
        ("none", b"", "cannot be read"),
        ("pages", pages.getvalue(), "several pictures"),
        ("real", real.getvalue(), "32 bits a pixel"),
        ("cut", png.getvalue()[:-30], "cannot be read"),
    ]:
        (tmp_path / f"{name}.png").write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / f"{name}.png")


def read(records: Source) -> dict[str, Record]:
    return {item.id: records.read(item) for item in records.items()}


def table(path: Path, text: str, **roles: object) -> Source:
    path.write_text(text)
    return source({"kind": "table", "path": path, "id": "id", **roles})


def numbered(folder: Path, names: list[str]) -> None:
    """Save pictures whose grey level is their number."""
    for level, name in enumerate(names):
        save(folder / name, np.full((4, 4), level, dtype=np.uint8))


def levels(record: Record) -> list[int]:
    return [int(picture[0, 0]) for picture in record.images]


def test_pictures_by_rows_lists_and_pattern(tmp_path: Path) -> None:
    numbered(tmp_path / "sem", ["s1_a.png", "s1_b.png", "s10_a.png", "s[2]_a.png", "deep/s1_c.png"])
    rows = table(
        tmp_path / "rows.csv",
        "id,file,x\ns1,s1_b.png,1\ns10,s10_a.png,2\ns1,s1_a.png,\ns3,,3\n",
        images={"column": "file", "folder": "sem"},
        labels={"x": "x"},
    )
    found = read(rows)
    assert list(found) == ["s1", "s10", "s3"]
    assert levels(found["s1"]) == [1, 0] and found["s1"].labels == {"x": 1.0}
    assert levels(found["s10"]) == [2] and found["s3"].images == ()
    lists = table(
        tmp_path / "lists.csv",
        "id,file\ns1,s1_a.png; deep/s1_c.png ;s1_a.png\n",
        images={"column": "file", "folder": "sem"},
    )
    assert levels(read(lists)["s1"]) == [0, 4]
    pattern = table(
        tmp_path / "pattern.csv", "id\ns1\ns10\ns[2]\nabsent\n", images={"folder": "sem", "pattern": "{id}_*.png"}
    )
    assert [levels(record) for record in read(pattern).values()] == [[0, 1], [2], [3], []]
    deep = table(tmp_path / "deep.csv", "id\ns1\n", images={"folder": "sem", "pattern": "deep/{id}_?.png"})
    assert levels(read(deep)["s1"]) == [4]


def test_a_picture_belongs_to_one_sample_or_group(tmp_path: Path) -> None:
    numbered(tmp_path, ["s1.png", "s10.png"])
    greedy = table(tmp_path / "t.csv", "id\ns1\ns10\n", images={"pattern": "{id}*.png"})
    with pytest.raises(DataError, match=r"'s10.png' belongs to 's1' and to 's10'"):
        greedy.items()
    shared = "id,file,mat\ns1 along,s1.png,m1\ns1 across,s1.png,{}\n"
    roles = {"images": {"column": "file"}, "group": "mat"}
    assert [levels(r) for r in read(table(tmp_path / "u.csv", shared.format("m1"), **roles)).values()] == [[0], [0]]
    rows = shared.format("m1") + "s1 across,s10.png,m1\n"
    assert [levels(r) for r in read(table(tmp_path / "w.csv", rows, **roles)).values()] == [[0], [0, 1]]
    for other in ("m2", ""):
        with pytest.raises(DataError, match="same group"):
            table(tmp_path / "v.csv", shared.format(other), **roles).items()


def test_rows_of_a_sample_must_agree(tmp_path: Path) -> None:
    numbered(tmp_path, ["a.png", "b.png"])
    rows = "id,file,x\ns,a.png,1\ns,b.png,2\n"
    made = table(tmp_path / "t.csv", rows, images={"column": "file"}, labels={"x": "x"})
    with pytest.raises(DataError, match="rows of the sample differ in column 'x'"):
        read(made)


def test_pictures_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    numbered(tmp_path, ["secret.png", "sem/a.png"])
    (tmp_path / "sem" / "link.png").symlink_to(tmp_path / "secret.png")
    for name, message in [
        ("../secret.png", "outside of its folder"),
        (str(tmp_path / "secret.png"), "outside of its folder"),
        ("link.png", "outside of its folder"),
        ("sub/../../secret.png", "outside of its folder"),
        ("absent.png", "is missing"),
        (".", "is missing"),
        ("a\0b", "is missing"),
    ]:
        made = table(tmp_path / "t.csv", f'id,file\ns,"{name}"\n', images={"column": "file", "folder": "sem"})
        with pytest.raises(DataError, match=message):
            read(made)
    linked = table(tmp_path / "u.csv", "id\nlink\n../secret\n", images={"folder": "sem", "pattern": "{id}.png"})
    items = list(linked.items())
    with pytest.raises(DataError, match="outside of its folder"):
        linked.read(items[0])
    assert linked.read(items[1]).images == ()


def test_limits_on_pictures(tmp_path: Path) -> None:
    numbered(tmp_path, ["a.png", "b.png"])
    row = "id,file\ns,a.png;b.png\n"
    with pytest.raises(DataError, match="2 pictures, more than 1"):
        read(table(tmp_path / "t.csv", row, images={"column": "file", "max_images": 1}))
    with pytest.raises(DataError, match="4 x 4 pixels, more than 15"):
        read(table(tmp_path / "t.csv", row, images={"column": "file", "max_pixels": 15}))


def test_stamps_follow_the_pictures(tmp_path: Path) -> None:
    numbered(tmp_path, ["a.png", "b.png"])
    made = table(tmp_path / "t.csv", "id,file\na,a.png\nb,b.png\n", images={"column": "file"})
    before = {item.id: item.stamp for item in made.items()}
    save(tmp_path / "b.png")
    after = {item.id: item.stamp for item in made.items()}
    assert before["a"] == after["a"] and before["b"] != after["b"]


def test_measured_spectra(tmp_path: Path) -> None:
    content = "Angle;Intensity\n# scan 1\n\n10.0; 5 ;0.1\n10,5\n"
    (tmp_path / "a.xy").write_text(content)
    np.testing.assert_array_equal(read_spectrum(tmp_path / "a.xy"), [[10.0, 10.0], [5.0, 5.0]])
    for text, message in [
        ("1 2\nx y\n3 4\n", "line 2 is 'x y'"),
        ("1 2\n", "1 rows"),
        ("header\n", "0 rows"),
        ("1 2\n2 nan\n", "NaN"),
        ("1 2\n3\n", "line 2"),
        ("10,5 200\n11,5 210\n", "0 rows"),
        ("10,5;200\n11,5;210\n", "0 rows"),
    ]:
        (tmp_path / "b.xy").write_text(text)
        with pytest.raises(DataError, match=message):
            read_spectrum(tmp_path / "b.xy")
    (tmp_path / "c.xy").write_bytes(gzip.compress(b"1 2\n3 4\n"))
    with pytest.raises(DataError, match="no text"):
        read_spectrum(tmp_path / "c.xy")


def test_spectra_of_a_table(tmp_path: Path) -> None:
    angle = np.linspace(10, 90, 8001)
    counts = np.exp(-0.5 * ((angle - 31.7) / 0.05) ** 2)
    np.savetxt(tmp_path / "nacl.xy", np.stack([angle, counts], 1))
    made = table(tmp_path / "t.csv", "id,scan\nnacl,nacl.xy\nkcl,\nx,../x.xy\n", spectra={"xrd": "scan"})
    step = feature({"step": "spectrum", "array": "xrd", "start": 10, "stop": 90, "points": 401, "axis_unit": "deg"})
    items = list(made.items())
    value = step(made.read(items[0]))
    assert isinstance(value, dict) and value["intensity"].argmax() == round((31.7 - 10) / 0.2)
    assert made.read(items[1]).arrays == {}
    with pytest.raises(DataError, match="outside of its folder"):
        made.read(items[2])
