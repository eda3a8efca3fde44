from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shards.build import build
from shards.errors import DataError
from shards.features import feature
from shards.manifest import MANIFEST, Manifest, read_manifest
from shards.reader import Dataset
from shards.sources.base import Record
from shards.summary import elements_of_formula, grouped_reasons, histogram, presence, summarize, survey
from tests.synthetic import FEATURES


def test_the_summary_counts_what_a_loop_counts(toy: Dataset) -> None:
    summary, samples = summarize(toy), list(toy)
    assert summary["samples"] == 60
    assert summary["complete"] == sum(sample.modalities == set(FEATURES) for sample in samples)
    for a in FEATURES:
        for b in FEATURES:
            assert summary["coverage"][a][b] == sum({a, b} <= sample.modalities for sample in samples)
    for part, counts in summary["splits"]["chemical_system"].items():
        members = [samples[int(i)] for i in toy.positions("chemical_system", part)]
        assert counts["samples"] == len(members)
        assert counts["complete"] == sum(sample.modalities == set(FEATURES) for sample in members)
    assert summary["shards"] == 4 and summary["shard_samples"] == [16, 16, 16, 12]
    json.dumps(summary)


def test_bytes_are_those_of_the_members(toy: Dataset, toy_folder: Path) -> None:
    import tarfile

    found: Counter[str] = Counter()
    for entry in toy.manifest.shards:
        with tarfile.open(toy_folder / entry.file) as tar:
            for member in tar:
                found[member.name.split(".")[1]] += member.size
    assert summarize(toy)["sizes"] == {name: found[name] for name in ("meta", *FEATURES) if name != "text"}
    assert summarize(toy.select(["a", "text"]))["sizes"] == {"meta": found["meta"], "a": found["a"]}


def test_presence_follows_the_modalities_that_are_open(toy_folder, toy: Dataset) -> None:
    expected = [[name in sample.modalities for name in toy.modalities] for sample in toy]
    assert presence(toy).tolist() == expected
    few = Dataset(toy_folder, ["c", "a"])
    assert presence(few).tolist() == [["c" in sample.modalities, "a" in sample.modalities] for sample in toy]


def test_the_survey_collects_what_a_loop_collects(toy: Dataset) -> None:
    seen: list[int] = []
    found, samples = survey(toy, examples=3, progress=seen.append), list(toy)
    assert seen == list(range(1, 61))
    assert found.labels == {"gap_ev": [sample.labels["gap_ev"] for sample in samples if sample.labels]}
    assert found.tags["chemical_system"] == Counter(sample.tags["chemical_system"] for sample in samples)
    assert found.texts["text"] == [len(sample.text["text"]) for sample in samples if sample.text]
    assert found.groups == 60
    assert found.elements == {"Li": 60, "Co": 60, "O": 59} and found.without_elements == 0
    assert [example["id"] for example in found.examples] == [toy.ids[0], toy.ids[30], toy.ids[59]]
    for example in found.examples:
        sample = toy[toy.position(example["id"])]
        assert set(example["modalities"]) == sample.modalities
        for name, held in sample.arrays.items():
            for key, array in held.items():
                assert example["modalities"][name][key] == f"{array.dtype}{list(array.shape)}"
    table = found.table()
    assert sum(table["histograms"]["gap_ev"]["counts"]) == 30
    json.dumps(table)


def test_elements_come_from_the_crystal_where_no_formula_is_known(tmp_path: Path) -> None:
    from pymatgen.core import Lattice, Structure

    cells = {"a": ["Na", "Cl"], "b": ["Na", "Br"], "c": ["K", "Br"], "d": None}
    records = [
        Record(
            id=name,
            structure=species and Structure(Lattice.cubic(4.0), species, [[0] * 3, [0.5] * 3]),
            text="a note",
            tags={"formula": "KI"} if name == "c" else {"formula": "sample 7"} if name == "a" else {},
        )
        for name, species in cells.items()
    ]
    build(records, {s: feature({"step": s}) for s in ("crystal", "text")}, tmp_path / "set", name="x")
    found = survey(Dataset(tmp_path / "set"))
    assert found.elements == {"Na": 2, "Cl": 1, "Br": 1, "K": 1, "I": 1}
    assert found.without_elements == 1


@pytest.mark.parametrize(
    ("formula", "elements"),
    [("Ba(Ti0.5Zr0.5)O3", {"Ba", "Ti", "Zr", "O"}), ("C6H6", {"C", "H"}), ("", set()), ("a stone", set())],
)
def test_elements_of_a_formula(formula: str, elements: set[str]) -> None:
    assert elements_of_formula(formula) == elements


def test_histograms_count_every_value_once() -> None:
    values = np.random.default_rng(0).normal(size=500).tolist()
    bars = histogram(values)
    assert sum(bars["counts"]) == 500 and len(bars["edges"]) == len(bars["counts"]) + 1
    for low, high, count in zip(bars["edges"], bars["edges"][1:-1], bars["counts"], strict=False):
        assert count == sum(low <= value < high for value in values)
    assert histogram([3.0, 3.0])["counts"] == [2]
    for values in ([1.0, 1.0 + 2.3e-16], [1e16, 1e16 + 2], [-1.7e308, 1.7e308]):
        bars = histogram(values)
        assert bars["counts"] == [2] and bars["edges"][0] <= values[0] < values[1] <= bars["edges"][1]


def test_reasons_that_differ_in_numbers_are_one() -> None:
    quarantined = {
        "a": "atoms 3 (O) and 15 (O) are 0.05 A apart\n  where: a",
        "b": "the structure has no atoms",
        "c": "atoms 1 (O) and 2 (O) are 1e-3 A apart\n  where: c",
        "d": "",
    }
    assert grouped_reasons(quarantined) == [
        {"reason": "atoms # (O) and # (O) are # A apart", "count": 2, "example": "a"},
        {"reason": "no reason given", "count": 1, "example": "d"},
        {"reason": "the structure has no atoms", "count": 1, "example": "b"},
    ]


def test_the_manifest_survives_and_unknown_keys_are_refused(toy: Dataset, tmp_path) -> None:
    manifest = toy.manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    for change in ({"format": "matloom-shards-99"}, {"extra": 1}, {"samples": "many"}, {"shards": None}):
        (tmp_path / MANIFEST).write_text(json.dumps({**manifest.model_dump(), **change}))
        with pytest.raises(DataError, match=MANIFEST):
            read_manifest(tmp_path)


def test_the_difference_of_two_specs_is_named() -> None:
    spec = FEATURES["a"].spec("a")
    assert spec.difference(FEATURES["a"].spec("a")) is None
    for change in ({"kind": "table"}, {"feature": {"step": "other"}}, {"fields": {}}):
        difference = spec.difference(spec.model_copy(update=change))
        assert difference is not None
        assert f"a.{next(iter(change))}" in difference
