"""Leakage between the parts of a split: found where it was planted, absent where the split excludes it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from shards.build import build
from shards.features import feature
from shards.leakage import Leak, LeakageReport, find_leakage
from shards.reader import Dataset
from shards.sources.base import Record
from shards.sources.embedded import embedded_records
from shards.splits import SplitPlan
from tests.unit.shards.test_fingerprint import disguised

STEPS = {name: feature({"step": name}) for name in ("crystal", "text")}
# in parts of one sample each nothing that is alike can hide
SINGLES = {"each": SplitPlan(by="id", fractions={f"p{i}": 0.2 for i in range(5)})}


def report(folder: Path, records: list[Record], splits: dict[str, SplitPlan]) -> LeakageReport:
    # a modality that no record has is refused
    steps = {name: step for name, step in STEPS.items() if any(step(record) is not None for record in records)}
    build(records, steps, folder, name="x", splits=splits)
    return find_leakage(Dataset(folder))


def leaks(found: LeakageReport, split: str) -> dict[str, Leak]:
    return {leak.kind: leak for leak in found.leaks if leak.split == split}


def test_the_embedded_split_by_chemical_system_leaks_nothing(dft_shards: Path) -> None:
    seen: list[int] = []
    found = find_leakage(Dataset(dft_shards), seen.append)
    assert len(seen) == 547
    assert {leak.kind: leak.sets for leak in found.leaks} == dict.fromkeys(
        ("structure", "group", "id", "text", "values"), 0
    )
    assert not found.grave


def test_a_planted_duplicate_is_found_in_a_random_split_and_not_in_one_by_formula(tmp_path: Path) -> None:
    records = list(islice(embedded_records(), 40))
    victim = records[7]
    assert victim.structure is not None
    # another cell, place, orientation and order of atoms, under another name
    planted = replace(victim, id="zz_new", structure=disguised(victim.structure, 1), text="A new material.")
    plans = {f"r{seed}": SplitPlan(by="id", seed=seed) for seed in range(8)} | {"f": SplitPlan(by="formula")}
    found = report(tmp_path / "set", [*records, planted], plans)
    assert found.alike["structure"] == [[victim.id, "zz_new"]]
    splits = Dataset(tmp_path / "set").manifest.splits
    crossed = 0
    for name in plans:
        part_of = {sample_id: part for part, ids in splits[name].ids.items() for sample_id in ids}
        crossing = part_of[victim.id] != part_of["zz_new"]
        crossed += crossing
        leak = leaks(found, name)["structure"]
        assert (leak.sets, leak.samples) == ((1, 2) if crossing else (0, 0))
        if crossing:
            assert leak.examples == [{part_of[victim.id]: [victim.id], part_of["zz_new"]: ["zz_new"]}]
    assert crossed > 0 and not leaks(found, "f")["structure"].sets
    assert {leak.split for leak in found.grave} == {name for name in plans if leaks(found, name)["structure"].sets}
    json.dumps(found.table())


@pytest.mark.parametrize("kind", ["id", "text"])
def test_what_is_alike_crosses_parts_of_single_samples(tmp_path: Path, kind: str) -> None:
    text = "An oxide with two\nformula units."
    records = [Record(id=name, text=f"note {name}") for name in ("mp-1", "b", "c", "d")]
    twin = Record(id="MP-1", text="other") if kind == "id" else Record(id="e", text=" ".join(text.split()))
    if kind == "text":
        records[0] = replace(records[0], text=text)
    found = report(tmp_path / "set", [*records, twin], SINGLES)
    assert {name: leak.sets for name, leak in leaks(found, "each").items() if leak.sets} == {kind: 1}
    assert bool(found.grave) == (kind == "id")


def test_equal_values_of_a_modality_are_named(tmp_path: Path) -> None:
    records = list(islice(embedded_records(), 5))
    twin = replace(records[0], id="other", text="Another text.")
    steps = {"xrd": feature({"step": "xrd"})}
    build([*records[:4], twin], steps, tmp_path / "set", name="x", splits=SINGLES)
    found = find_leakage(Dataset(tmp_path / "set"))
    assert found.alike["values"] == [[records[0].id, "other"]]
    assert leaks(found, "each")["values"].sets == 1 and not found.grave


def test_a_group_that_crosses_parts_is_found(toy_folder: Path, tmp_path: Path) -> None:
    """Our own splits never tear a group apart, so one is made by hand."""
    from tests.unit.shards.test_verify import altered

    records = [Record(id=f"s{i}", text=f"note {i}", group=f"g{i // 2}") for i in range(10)]
    build(records, {"text": STEPS["text"]}, tmp_path / "good", name="x", splits={"r": SplitPlan(by="id")})
    assert not find_leakage(Dataset(tmp_path / "good")).grave

    def tear(manifest: dict) -> None:
        parts = manifest["splits"]["r"]["ids"]
        parts["test"].append(parts["train"].pop(0))

    found = find_leakage(Dataset(altered(tmp_path / "good", tmp_path / "torn", tear)))
    assert [(leak.kind, leak.sets, leak.samples) for leak in found.grave] == [("group", 1, 2)]


def test_unassigned_samples_leak_nowhere(tmp_path: Path) -> None:
    records = [Record(id=f"s{i}", text="one text for all", labels={"y": float(i)} if i else {}) for i in range(12)]
    plan = SplitPlan(by="top_quantile", label="y", missing="unassigned")
    found = report(tmp_path / "set", records, {"ood": plan})
    leak = leaks(found, "ood")["text"]
    assert (leak.sets, leak.samples) == (1, 11)
    assert "unassigned" not in leak.examples[0]
