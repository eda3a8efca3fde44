from __future__ import annotations

import json

import pytest

from shards.errors import DataError
from shards.manifest import MANIFEST, Manifest, read_manifest
from shards.reader import Dataset
from shards.summary import presence, summarize
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
    assert summary["shards"] == 4
    json.dumps(summary)


def test_presence_follows_the_modalities_that_are_open(toy_folder, toy: Dataset) -> None:
    expected = [[name in sample.modalities for name in toy.modalities] for sample in toy]
    assert presence(toy).tolist() == expected
    few = Dataset(toy_folder, ["c", "a"])
    assert presence(few).tolist() == [["c" in sample.modalities, "a" in sample.modalities] for sample in toy]


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
