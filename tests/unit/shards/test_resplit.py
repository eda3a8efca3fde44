"""A split that is added later is the one that a build would have made; a crash leaves the data set as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from shards.build import build
from shards.errors import DataError
from shards.features import feature
from shards.reader import Dataset
from shards.resplit import add_split, sample_infos
from shards.sealed import recover
from shards.sources.embedded import embedded_records
from shards.splits import SplitPlan
from shards.verify import verify_dataset
from tests.synthetic import FEATURES, SPLITS, records
from tests.unit.shards.test_sealed import Crash, crash_at

PLANS = {
    "random": SplitPlan(by="id", seed=3),
    "formula": SplitPlan(by="formula"),
    "ood": SplitPlan(by="top_quantile", label="gap_ev", missing="unassigned"),
    "loco": SplitPlan(by="cluster", clusters=2, held_out=1),
}


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_folder, tmp_path / "set")


def test_it_is_what_a_build_would_have_stored(folder: Path, tmp_path: Path) -> None:
    inodes = {path.name: path.stat().st_ino for path in folder.glob("shard-*")}
    for name, plan in PLANS.items():
        add_split(folder, name, plan)
    built = build(records(), FEATURES, tmp_path / "built", name="toy", splits=SPLITS | PLANS, shard_samples=16)
    assert Dataset(folder).manifest.splits == built.splits
    assert {path.name: path.stat().st_ino for path in folder.glob("shard-*")} == inodes, "the shards were rewritten"
    assert verify_dataset(folder) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "set"]


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="has a split 'chemical_system' already"):
        add_split(folder, "chemical_system", PLANS["random"])
    assert (folder / "manifest.json").read_bytes() == before


def test_damage_and_strange_files_are_never_sealed_anew(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="added"):
        add_split(folder, "random", PLANS["random"])
    (folder / "notes.txt").unlink()
    # of the padding at the end, which no digest of a member covers
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"x")
    with pytest.raises(DataError, match=r"shard-000001\.tar"):
        add_split(folder, "random", PLANS["random"])
    assert "random" not in Dataset(folder).manifest.splits


def test_clusters_of_a_modality(folder: Path) -> None:
    split = add_split(folder, "a", SplitPlan(by="cluster", features="a", clusters=3, held_out=2))
    dataset = Dataset(folder)
    vectors = {sample.id: sample.arrays["a"]["values"] for sample in dataset}
    assert split.parameters["features"] == "a" and split.ids["test"]
    # the held-out samples are nearer to each other's mean than to that of the rest
    points = np.stack([vectors[i] for i in dataset.ids])
    points = (points - points.mean(0)) / points.std(0)
    inside = np.isin(dataset.ids, split.ids["test"])
    own, other = (np.linalg.norm(points - points[part].mean(0), axis=1) for part in (inside, ~inside))
    assert (own < other)[inside].mean() > 0.8
    with pytest.raises(DataError, match="have no modality 'b'"):
        add_split(folder, "b", SplitPlan(by="cluster", features="b"))
    missing = add_split(folder, "b", SplitPlan(by="cluster", features="b", clusters=2, missing="unassigned"))
    assert sorted(missing.ids["unassigned"]) == sorted(s.id for s in dataset if "b" not in s.arrays)
    for name in ("crystal", "text"):
        with pytest.raises(DataError, match=f"'{name}' is no vector"):
            add_split(folder, "x", SplitPlan(by="cluster", features=name))


def test_prototypes_are_computed_from_the_stored_crystal(tmp_path: Path) -> None:
    untagged = [replace(r, tags={"formula": r.tags["formula"]}) for r in islice(embedded_records(), 40, 60)]
    build(untagged, {"crystal": feature({"step": "crystal"})}, tmp_path / "set", name="x")
    plan = SplitPlan(by="prototype", fractions={"train": 0.8, "test": 0.2})
    found = {info.id: info.tags["prototype"] for info in sample_infos(Dataset(tmp_path / "set"), plan)}
    named = {r.id: r.tags["prototype"] for r in islice(embedded_records(), 40, 60)}
    assert len(set(found.values())) == len(set(zip(found.values(), (named[i] for i in found), strict=True))) > 4
    split = add_split(tmp_path / "set", "prototype", plan)
    held = [{found[i] for i in ids} for ids in split.ids.values()]
    assert not held[0] & held[1]
    # the prototypes that the builder tags are the same
    manifest = build(untagged, {"text": feature({"step": "text"})}, tmp_path / "built", name="x", splits={"p": plan})
    assert manifest.splits["p"] == split


def test_a_crash_at_any_operation_leaves_the_old_or_the_new_data_set(toy_folder: Path, tmp_path: Path) -> None:
    for call in range(100):
        folder = shutil.copytree(toy_folder, tmp_path / f"{call}" / "set")
        with pytest.MonkeyPatch.context() as monkeypatch:
            crash_at(monkeypatch, call)
            try:
                add_split(folder, "random", PLANS["random"])
                finished = True
            except Crash:
                finished = False
        recover(folder)
        assert verify_dataset(folder) == 60
        splits = set(Dataset(folder).manifest.splits)
        assert splits in ({"chemical_system"}, {"chemical_system", "random"})
        if finished:
            assert "random" in splits and call > 8
            return
        if "random" not in splits:
            add_split(folder, "random", PLANS["random"])
        assert verify_dataset(folder) == 60
    pytest.fail("it never finished")
