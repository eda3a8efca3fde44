from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.codecs import decode_arrays, decode_json, digest, encode_arrays, encode_json, escape, member_name, unescape
from shards.errors import DataError

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
HARD_IDS = [
    "Li0.5CoO2", "Li0.7CoO2", "..", ".", "../../etc/passwd", "/abs", "a b", " ", "a\nb", "a\0b", "%2E", "a%", "é/ü.☃",
    "x.meta.json", "~root", "C:\\x", "-rf", "a" * 300, "__len__",
]  # fmt: skip
FLOATS = st.sampled_from([np.dtype(name) for name in ("float16", "float32", "float64")])
INTEGERS = st.sampled_from([np.dtype(name) for name in ("uint8", "int8", "uint16", "int32", "int64", "bool")])
ARRAYS = st.one_of(FLOATS, INTEGERS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


@given(IDS)
def test_an_id_survives_and_its_key_is_one_plain_path_component(sample_id: str) -> None:
    key = escape(sample_id)
    assert unescape(key) == sample_id
    assert key.isascii()
    assert not set(key) & set("./\\ \0\n~")


@pytest.mark.parametrize("sample_id", HARD_IDS)
def test_hard_ids_survive(sample_id: str) -> None:
    assert unescape(escape(sample_id)) == sample_id


@given(st.lists(IDS, min_size=2, max_size=8, unique=True))
def test_different_ids_have_different_members_that_tar_keeps(ids: list[str]) -> None:
    names = [member_name(sample_id, part) for sample_id in ids for part in ("meta", "dos")]
    assert len(set(names)) == len(names)
    # webdataset's rule: the key ends at the first dot
    assert len({name.split(".", 1)[0] for name in names}) == len(ids)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert tar.getnames() == names


@pytest.mark.parametrize("sample_id", ["", "\ud800", "x" * 4097])
def test_an_id_that_cannot_be_kept_is_refused(sample_id: str) -> None:
    with pytest.raises(DataError):
        escape(sample_id)


@pytest.mark.parametrize("part", ["../x", "a.pkl", "A", "", "x.pickle", "a/b", "1", "a" * 65])
def test_no_other_kind_of_member_can_be_named(part: str) -> None:
    with pytest.raises(DataError):
        member_name("x", part)


@given(st.dictionaries(st.sampled_from(["x", "y", "longer_name"]), ARRAYS, min_size=1))
def test_arrays_survive_bit_for_bit(arrays: dict[str, np.ndarray]) -> None:
    decoded = decode_arrays(encode_arrays(arrays), where="here")
    assert set(decoded) == set(arrays)
    for name, array in arrays.items():
        assert decoded[name].dtype == array.dtype
        assert decoded[name].shape == array.shape
        assert decoded[name].tobytes() == array.tobytes()


def test_a_field_without_axes_and_a_strided_field_survive() -> None:
    arrays = {"scalar": np.array(1.5, np.float32), "strided": np.arange(12.0).reshape(3, 4).T[::2]}
    decoded = decode_arrays(encode_arrays(arrays), where="here")
    assert decoded["scalar"].shape == ()
    np.testing.assert_array_equal(decoded["strided"], arrays["strided"])


def test_arrays_are_views_that_cannot_be_written_to() -> None:
    data = encode_arrays({"x": np.arange(6.0).reshape(2, 3), "y": np.zeros((2, 0), np.uint16)})
    for x in decode_arrays(data, where="")["x"], decode_arrays(memoryview(bytearray(data)).toreadonly(), where="")["x"]:
        assert not x.flags.writeable
        assert not x.flags.owndata
        assert x.flags.aligned


def with_header(header: str | bytes, body: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + body


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


@pytest.mark.parametrize(
    "header",
    [
        f'{{"x":{entry("BF16", (2,))}}}',
        f'{{"x":{entry("U8", (5,))}}}',
        f'{{"x":{entry("F32", (2,))}}}',
        f'{{"x":{entry(offsets=(1, 5))}}}',
        f'{{"x":{entry(offsets=(4, 0))}}}',
        f'{{"x":{entry(shape=(-2, -2))}}}',
        f'{{"x":{entry(shape=(True, 4))}}}',
        f'{{"x":{entry(shape=(4.0,))}}}',
        f'{{"x":{entry(shape=(1,) * 33 + (4,))}}}',
        f'{{"x":{entry()},"y":{entry("U8", (2**62, 2**62, 0), (4, 4))}}}',
        f'{{"x":{entry()},"y":{entry()}}}',
        f'{{"x":{entry("U8", (2,), (0, 2))},"y":{entry("U8", (1,), (3, 4))}}}',
        f'{{"x":{entry("U8", (2,), (0, 2))}}}',
        f'{{"x":{entry("U8", (8,), (0, 8))}}}',
        f'{{"x":{entry()},"x":{entry()}}}',
        '{"x":{"dtype":"U8","shape":[4]}}',
        '{"x":[]}',
        "[]",
        "null",
        '{"x":' * 40_000,
        "[" * 100_000,
        b"\xff\xfe{}",
    ],
    ids=["dtype", "longer", "itemsize", "gap-first", "backwards", "negative", "bool", "float", "axes", "no-elements",
         "overlap", "gap", "short", "past-the-end", "twice", "no-offsets", "no-entry", "list", "null", "deep", "deeper",
         "not-utf8"],
)  # fmt: skip
def test_a_header_that_is_not_exactly_one_is_refused(header: str | bytes) -> None:
    with pytest.raises(DataError, match="no valid safetensors"):
        decode_arrays(with_header(header, bytes(4)), where="here")


def test_the_reader_agrees_with_safetensors_on_damaged_headers() -> None:
    """Where both accept a file they see the same arrays; ours accepts nothing that safetensors refuses."""
    good = encode_arrays({"a": np.arange(3, dtype=np.int16), "b": np.ones((2, 2)), "c": np.array([True])})
    size, rng, accepted = 8 + int.from_bytes(good[:8], "little"), np.random.default_rng(0), 0
    for _ in range(3000):
        bad = bytearray(good)
        bad[rng.integers(size)] = rng.choice(list(b'0123456789"[],:{}FIU abc'))
        try:
            ours = decode_arrays(bytes(bad), where="")
        except DataError:
            continue
        theirs = safetensors.numpy.load(bytes(bad))
        accepted += 1
        assert {name: (array.dtype, array.tobytes()) for name, array in ours.items()} == {
            name: (array.dtype, array.tobytes()) for name, array in theirs.items()
        }
    assert accepted > 10


def test_the_bytes_do_not_depend_on_the_order_of_fields() -> None:
    x, y = np.arange(3), np.arange(4.0)
    assert encode_arrays({"x": x, "y": y}) == encode_arrays({"y": y, "x": x})


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.array([{}, []], dtype=object), np.array(["a"]), np.array(["2020"], "M8[D]")]
)
def test_what_is_no_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError):
        encode_arrays({"x": array})


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a member was executed",))


@given(st.binary(max_size=200))
def test_damaged_members_are_named(data: bytes) -> None:
    for decode in (decode_arrays, decode_json):
        try:
            decode(data, where="shard-000007.tar: 'x', dos")
        except DataError as error:
            assert "shard-000007.tar: 'x', dos" in str(error)  # noqa: PT017


def test_a_pickle_is_never_executed() -> None:
    data = pickle.dumps(Bomb())
    for decode in (decode_arrays, decode_json):
        with pytest.raises(DataError):
            decode(data, where="here")


def test_a_header_that_promises_too_much_is_refused() -> None:
    for size in (2**41, 2**63 - 1, 10**6):
        with pytest.raises(DataError):
            decode_arrays(size.to_bytes(8, "little") + b"{}", where="here")


def test_a_header_that_would_take_much_memory_is_not_parsed() -> None:
    lists = json.dumps({"v": [[]] * (1 << 19)}).encode()
    with pytest.raises(DataError, match=f"a header of {len(lists)} bytes"):
        decode_arrays(with_header(lists, b""), where="here")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), np.float32(1)])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(DataError):
        encode_json({"x": value})


@given(st.dictionaries(IDS, st.floats(allow_nan=False, allow_infinity=False) | IDS))
def test_json_survives(value: dict[str, object]) -> None:
    assert decode_json(encode_json(value), where="here") == value


@given(st.binary(min_size=1, max_size=200), st.data())
def test_the_digest_sees_every_flipped_bit(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    assert digest(bytes(flipped)) != digest(data)
