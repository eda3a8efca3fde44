"""Entries of JSON files: where they lie, in pieces of any size."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import DataError
from shards.formats import json_entries
from shards.formats.json_entries import entries, lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)

OBJECTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    found=st.lists(OBJECTS, max_size=6) | st.dictionaries(st.text(max_size=4), OBJECTS, max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 3]),
    chunk=st.sampled_from([1, 7, 1 << 18]),
)
def test_entries_lie_where_they_are_said_to(found, ascii_only, indent, chunk) -> None:
    keys = list(found) if isinstance(found, dict) else [None] * len(found)
    if keys and (keys[0] in json_entries.KEYS_OF_ONE or json_entries.ASE_EXTRAS & set(map(str, keys))):
        return
    data = json.dumps(found, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    before, json_entries.CHUNK = json_entries.CHUNK, chunk
    try:
        listed = list(entries(io.BytesIO(data)))
    finally:
        json_entries.CHUNK = before
    assert [entry.key for entry in listed] == keys
    values = list(found.values()) if isinstance(found, dict) else found
    assert [entry.value for entry in listed] == values
    assert [json.loads(data[entry.start : entry.start + entry.size]) for entry in listed] == values


@pytest.mark.parametrize(
    "one",
    [
        {"lattice": {"matrix": []}, "sites": []},
        {"structure": {"lattice": {}}, "material_id": "mp-1"},
        {"@module": "pymatgen.core", "lattice": {}},
        {"material_id": "mp-1", "structure": {}},
        {"builder_meta": {"emmet_version": "0.84"}, "nsites": 2, "structure": {}},
    ],
)
def test_one_structure_has_no_entries(one: dict) -> None:
    assert list(entries(io.BytesIO(json.dumps(one).encode()))) == []


def test_an_ase_database_is_more_than_its_rows() -> None:
    row = {"numbers": [11], "positions": [[0, 0, 0]], "cell": []}
    table = {"1": row, "3": row, "ids": [1, 3], "nextid": 4, "metadata": {}}
    assert [entry.key for entry in entries(io.BytesIO(json.dumps(table).encode()))] == ["1", "3"]
    # in any other mapping they are entries like the rest
    found = entries(io.BytesIO(json.dumps({"a": {}, "ids": [1, 3]}).encode()))
    assert next(found).key == "a"
    with pytest.raises(DataError, match="entry 1 is no JSON object"):
        next(found)


@pytest.mark.parametrize(
    ("text", "good", "message"),
    [
        ('[{"a": 1}, {"b": 2}', 2, "cut off or damaged after entry 1"),
        ('[{"a": 1}, {"b": 2]', 1, "begins at byte|is no JSON"),
        ('[{"a": 1} {"b": 2}]', 1, "after entry 0"),
        ('{"a": {}, 5: {}}', 1, "an entry has no key"),
        ('[{"a":' + "[" * 200_000, 0, "nested too deeply"),
        ('[{"' + "x" * 9_000_000, 0, "more than 5 MB"),
        ('[{"a": 1}, 7]', 1, "entry 1 is no JSON object"),
        ('[{"a": 1}] [{"b": 2}]', 1, "goes on after its end"),
        ("[", 0, "cut off"),
        ("12", 0, "no JSON list"),
        ("", 0, "no JSON list"),
    ],
)
def test_damaged_files(text: str, good: int, message: str) -> None:
    found = entries(io.BytesIO(text.encode()))
    for _ in range(good):
        next(found)
    with pytest.raises(DataError, match=message):
        next(found)


def test_lines() -> None:
    data = b'{"a": 1}\n\n  {"b": 2}\r\n{broken\n{"c": 3}'
    found = list(lines(io.BytesIO(data)))
    assert [entry.value for entry in found] == [{"a": 1}, {"b": 2}, None, {"c": 3}]
    assert [data[entry.start : entry.start + entry.size].strip() for entry in found][3] == b'{"c": 3}'
    with pytest.raises(DataError, match="more than 5 MB"):
        list(lines(io.BytesIO(b"x" * 6_000_000)))
