from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.codecs import decode_arrays, decode_metadata
from shards.errors import DataError
from shards.index import read_index
from shards.manifest import MANIFEST, Manifest
from shards.reader import Dataset
from shards.schema import Sample
from shards.sealed import sealing, sha256
from shards.writer import ShardWriter
from tests.unit.shards.test_writer_reader import SPECS, publish, samples, vector


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples(), st.integers(1, 5))
def test_lengths_and_presence_are_what_the_samples_hold(written: list[Sample], shard_samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = publish(Path(folder) / "set", written, shard_samples)
        for axis, count in (("atoms", lambda c: len(c["number"])), ("edges", lambda c: c["edge"].shape[1])):
            expected = [count(s.arrays["crystal"]) if "crystal" in s.arrays else 0 for s in written]
            found = dataset.lengths(f"crystal.{axis}")
            assert (found.tolist(), found.dtype) == (expected, np.int64)
        for name in SPECS:
            assert dataset.presence(name).tolist() == [name in sample.modalities for sample in written]
        with pytest.raises(DataError, match=r"did you mean 'crystal\.edges'"):
            dataset.lengths("crystal.edge")


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 10**9}, {"offset": -1}, {"offset": 2**63 - 1}, {"size": 10**9}, {"size": -2}, {"size": -1},
        {"ids": ["a"]}, {"ids": [1, 2]}, {"ids": "ab"}, {"parts": ["meta"]}, {"axes": []}, {"texts": ["text", "x"]},
        {"digest": np.zeros((2, 4, 15), np.uint8)},
        {"length": np.zeros((2, 2), np.int64)}, {"text": np.zeros((2, 1), np.uint8)}, {"other": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_that_points_elsewhere_or_contradicts_the_schema_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    writer = ShardWriter(tmp_path, SPECS)
    for name in ("a", "b"):
        writer.write(vector(name))
    entry = writer.close()[0]
    data = (tmp_path / entry.index).read_bytes()
    assert read_index(data, SPECS, shard_bytes=entry.bytes, where="here").ids == ["a", "b"]
    arrays = {name: array.copy() for name, array in decode_arrays(data, where="").items()}
    names = json.loads(decode_metadata(data, where="")["index"])
    for key, value in change.items():
        if isinstance(value, int) and key in arrays:
            arrays[key][1, 0] = value
        elif isinstance(value, np.ndarray):
            arrays[key] = value
        else:
            names[key] = value
    bad = safetensors.numpy.save(arrays, metadata={"index": json.dumps(names)})
    with pytest.raises(DataError, match="here"):
        read_index(bad, SPECS, shard_bytes=entry.bytes, where="here")


def test_two_shards_with_one_id_are_refused(tmp_path: Path) -> None:
    with sealing(tmp_path / "set") as stage:
        entries = []
        for name in ("a", "b"):
            writer = ShardWriter(stage, SPECS, name=name)
            writer.write(vector("twin"))
            entries += writer.close()
        manifest = Manifest(name="t", modalities=SPECS, shards=entries, samples=2, coverage={}, labels={})
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    with pytest.raises(DataError, match="same id"):
        Dataset(tmp_path / "set")


def test_metadata_of_another_sample_are_refused(tmp_path: Path) -> None:
    """An index whose rows are swapped has the digests of what it points to."""
    with sealing(tmp_path / "set") as stage:
        writer = ShardWriter(stage, SPECS)
        for name in ("a", "b"):
            writer.write(vector(name))
        entry = writer.close()[0]
        path = stage / entry.index
        path.write_bytes(path.read_bytes().replace(b'[\\"a\\", \\"b\\"]', b'[\\"b\\", \\"a\\"]'))
        entry = entry.model_copy(update={"index_sha256": sha256(path)})
        manifest = Manifest(name="t", modalities=SPECS, shards=[entry], samples=2, coverage={}, labels={})
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    dataset = Dataset(tmp_path / "set")
    assert dataset.ids == ["b", "a"]
    with pytest.raises(DataError, match=r"'b', meta(.|\n)*not the index's"):
        dataset[0]


@pytest.mark.parametrize("what", ["size", "ids"])
def test_what_would_take_too_much_memory_is_refused(tmp_path: Path, what: str) -> None:
    writer = ShardWriter(tmp_path, SPECS)
    writer.write(vector("a"))
    entry = writer.close()[0]
    data = (tmp_path / entry.index).read_bytes()
    arrays = {name: array.copy() for name, array in decode_arrays(data, where="").items()}
    names = json.loads(decode_metadata(data, where="")["index"])
    if what == "size":
        arrays["size"][0, 0] = 3 << 20
    else:
        names["ids"] = [[]] * (1 << 20)
    bad = safetensors.numpy.save(arrays, metadata={"index": json.dumps(names)})
    with pytest.raises(DataError, match=r"too large|header of \d+ bytes"):
        read_index(bad, SPECS, shard_bytes=1 << 40, where="here")


def test_a_shard_whose_ids_are_long_is_closed_before_its_index_is_too_large(tmp_path: Path) -> None:
    written = [Sample(id=f"{number}" + "\u2082" * 4000) for number in range(120)]
    dataset = publish(tmp_path / "set", written, 10**6)
    assert len(dataset.shard_sizes) > 1 and dataset.ids == [sample.id for sample in written]


def test_texts_that_no_reader_would_take_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SPECS)
    with pytest.raises(DataError, match=r"(?s)texts, labels and tags.*2097152"):
        writer.write(Sample(id="a", text={"text": "x" * (2 << 20)}))
    writer.write(Sample(id="a", text={"text": "x"}))
