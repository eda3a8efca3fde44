"""The index over a data set: saved and mapped, refused, filtered; and queries of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.nn import functional as F

from finetune.loading import Foundation, load_foundation
from finetune.search import Index, embed_query, open_index, search
from finetune.search.query import merged_sample
from finetune.search.where import Where, parse_range, parse_ranges
from pretrain.config import parse_recipe
from shards.batch import collate
from shards.errors import CheckpointError, ConfigError, DataError
from shards.reader import Dataset
from shards.schema import Sample
from tests.random_models import write_model


def test_building_holds_one_batch_of_samples(
    foundation: Foundation, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Foundation.embed

    def embed(self: Foundation, materials: list[Sample], modality: str, **options: int) -> np.ndarray:
        sizes.append(len(materials))
        assert all(sample.modalities == {"b"} for sample in materials), "no other modality is read"
        return original(self, materials, modality, **options)

    monkeypatch.setattr(Foundation, "embed", embed)
    index = Index.build(foundation, toy, "b", batch_size=8)
    monkeypatch.undo()
    assert max(sizes) == 8 and sum(sizes) == len(index.samples) < 60
    there = [sample for sample in toy if "b" in sample.modalities]
    np.testing.assert_allclose(index.vectors, foundation.embed(there, "b"), atol=1e-6)
    assert [(s.id, s.group, s.labels, s.tags) for s in index.samples] == [
        (s.id, s.group, s.labels, s.tags) for s in there
    ]


def test_a_saved_index_is_mapped_and_the_same(foundation: Foundation, toy: Dataset, tmp_path: Path) -> None:
    index = Index.build(foundation, toy, "a")
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index", foundation)
    np.testing.assert_array_equal(again.vectors, index.vectors)
    assert list(again.samples) == list(index.samples) and again.modality == "a" and again.data == toy.sha256
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path / "index" / "vectors.safetensors") in maps, "the vectors are not mapped"
    query = foundation.embed(toy[5], "a")
    assert again.nearest(query) == index.nearest(query)


def test_an_index_of_another_model_or_a_damaged_one_is_refused(
    foundation: Foundation, export_folder: Path, toy: Dataset, tmp_path: Path
) -> None:
    index = Index.build(foundation, toy, "a")
    replace(index, model="0" * 64).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="of another model"):
        Index.load(tmp_path / "other", foundation)
    index.save(tmp_path / "index")
    with pytest.raises(CheckpointError, match="another modality"):
        open_index(foundation, toy, "b", tmp_path / "index")
    replace(index, data="1").save(tmp_path / "data")
    with pytest.raises(CheckpointError, match="another data set"):
        open_index(foundation, toy, "a", tmp_path / "data")
    file = tmp_path / "index" / "vectors.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        Index.load(tmp_path / "index", foundation)
    with pytest.raises(CheckpointError, match="no index of matloom"):
        Index.load(export_folder, foundation)


def test_a_search_builds_its_index_once(
    foundation: Foundation, toy: Dataset, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, query = tmp_path / "kept" / "index", toy[7]
    first = search(foundation, query, data=str(toy_folder), among="a", k=3, index=folder)
    monkeypatch.setattr(Index, "build", None)
    again = search(foundation, query, data=str(toy_folder), among="a", k=3, index=folder)
    assert first == again and first[0].id == query.id
    others = search(foundation, query, data=str(toy_folder), among="a", k=60, index=folder, exclude_group=True)
    groups = {sample.id: sample.group or sample.id for sample in toy}
    assert len(others) == sum(group != groups[query.id] for group in groups.values())
    assert groups[query.id] not in {groups[hit.id] for hit in others}


def test_conditions_on_elements_and_labels() -> None:
    formulas = ["GaN", "Ga2O3", "AlN", "", "InGaN2", "NaCl"]
    samples = [
        Sample(id=str(i), tags={"formula": f} if f else {}, labels={"gap_ev": float(i)} if i != 2 else {})
        for i, f in enumerate(formulas)
    ]
    assert Where(elements=frozenset({"Ga", "N"})).mask(samples).tolist() == [True, False, False, False, True, False]
    # sodium is no nitrogen, and what has no formula may hold anything
    assert Where(without=frozenset({"N"})).mask(samples).tolist() == [False, True, False, False, False, True]
    assert Where(labels={"gap_ev": (1.0, 4.0)}).mask(samples).tolist() == [False, True, False, True, True, False]
    with pytest.raises(ConfigError, match="did you mean 'gap_ev'"):
        Where(labels={"gap_eV": (0, 1)}).mask(samples)
    assert parse_ranges(["gap_ev=1..", "x=..-2.5"]) == {"gap_ev": (1.0, np.inf), "x": (-np.inf, -2.5)}
    for text in ("3", "2..1", "a..b", ".."):
        with pytest.raises(ConfigError, match="no range"):
            parse_range(text)
    found = Index(np.eye(6, 8, dtype=np.float32), samples).nearest(
        np.eye(1, 8, 1, dtype=np.float32)[0], 6, where=Where(elements=frozenset({"N"}))
    )
    assert {hit.id for hit in found} == {"0", "2", "4"}


def test_a_query_of_several_modalities_is_their_mean(foundation: Foundation, toy: Dataset) -> None:
    sample = next(s for s in toy if {"a", "b", "c"} <= s.modalities)
    parts = {name: foundation.embed(sample, name) for name in "abc"}
    both = embed_query(foundation, sample, ["a", "b"])
    mean = (parts["a"] + parts["b"]) / 2
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean), atol=1e-6)
    given = {name: sample.arrays[name]["values"] for name in "abc"}
    whole = sum(parts.values())
    np.testing.assert_allclose(embed_query(foundation, given), whole / np.linalg.norm(whole), atol=1e-6)
    np.testing.assert_array_equal(embed_query(foundation, sample), parts["a"])
    np.testing.assert_array_equal(embed_query(foundation, given, ["c"]), parts["c"])
    one, two = ({name: given[name]} for name in "ab")
    assert merged_sample(foundation, [one, two]).modalities == {"a", "b"}
    with pytest.raises(ConfigError, match="given twice"):
        merged_sample(foundation, [one, one])
    with pytest.raises(ConfigError, match="no modality 'z'"):
        embed_query(foundation, sample, ["z"])
    lacking = replace(sample, arrays={"a": sample.arrays["a"]})
    with pytest.raises(DataError, match="no modality 'b'"):
        embed_query(foundation, lacking, ["a", "b"])


def test_a_query_goes_through_the_fusion_that_the_model_compares(toy_folder: Path, tmp_path: Path) -> None:
    encoder = {"kind": "vector", "dim": 8}
    recipe = parse_recipe(
        {
            "name": "fused", "data": {"path": str(toy_folder), "batch_size": 16},
            "modalities": {name: {"encoder": encoder} for name in "abc"}, "projection": {"dim": 8},
            "fusions": {"joint": {"kind": "concat", "dim": 8, "inputs": ["a", "b"]}},
            "objective": {"kind": "anchored", "anchor": "joint"},
        },
        where="test",
    )  # fmt: skip
    dataset = Dataset(toy_folder, list("abc"))
    model = load_foundation(str(write_model(tmp_path / "model", recipe, dataset)))
    assert "joint" in model.model.names
    sample = next(s for s in dataset if {"a", "b", "c"} <= s.modalities)
    z, _ = model.model.encode(collate([replace(sample, arrays={n: sample.arrays[n] for n in "ab"})], model.model.specs))
    fused = F.normalize(z["joint"], dim=1)[0].detach().numpy()
    np.testing.assert_allclose(embed_query(model, sample, ["a", "b"]), fused, atol=1e-6)
    # no fusion joins a and c
    mean = model.embed(sample, "c") + model.embed(sample, "a")
    np.testing.assert_allclose(embed_query(model, sample, ["a", "c"]), mean / np.linalg.norm(mean), atol=1e-6)
