"""Verification: every claim of the manifest is checked against the samples, with any number of processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.errors import DataError
from shards.manifest import MANIFEST
from shards.reader import Dataset
from shards.sealed import sealing
from shards.verify import verify_dataset

Change = Callable[[dict[str, Any]], None]


def altered(folder: Path, target: Path, change: Change) -> Path:
    """A data set that is sealed and whole, but whose manifest says something else."""
    with sealing(target) as stage:
        for path in folder.iterdir():
            if path.name not in (MANIFEST, "seal.json"):
                os.link(path, stage / path.name)
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        (stage / MANIFEST).write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_data_set_is_verified_whoever_reads(toy_folder: Path, workers: int) -> None:
    seen: list[int] = []
    assert verify_dataset(toy_folder, seen.append, workers=workers) == 60
    assert len(seen) == 4 and seen == sorted(seen) and seen[-1] == 60


def move(manifest: dict[str, Any], *, copy: bool) -> None:
    parts = manifest["splits"]["chemical_system"]["ids"]
    parts["test"].append(parts["train"][0] if copy else parts["train"].pop(0))


CHANGES: dict[str, tuple[Change, str]] = {
    "samples": (lambda m: m.update(samples=61), "60 samples, the manifest says 61"),
    "coverage": (lambda m: m["coverage"].update(b=1), "samples have 'b', the manifest says 1"),
    "label count": (lambda m: m["labels"]["gap_ev"].update(count=29), "30 samples have label 'gap_ev'"),
    "label mean": (lambda m: m["labels"]["gap_ev"].update(mean=3.01), "label 'gap_ev' has mean"),
    "label maximum": (lambda m: m["labels"]["gap_ev"].update(max=6.0), "label 'gap_ev' has mean"),
    "label of nobody": (
        lambda m: m["labels"].update(x_ev={"count": 1, "mean": 0, "std": 0, "min": 0, "max": 0}),
        "0 samples have label 'x_ev'",
    ),
    "label that it does not name": (lambda m: m["labels"].pop("gap_ev"), "a label 'gap_ev' that the manifest does not"),
    "id in two parts": (lambda m: move(m, copy=True), "stands twice in split 'chemical_system'"),
    "id in no part": (
        lambda m: m["splits"]["chemical_system"]["ids"]["val"].pop(),
        "is in no part of split 'chemical_system'",
    ),
    "unknown id": (
        lambda m: m["splits"]["chemical_system"]["ids"]["val"].append("~nobody"),
        "'~nobody' is unknown, but stands in split",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_claims_what_is_not_so_is_refused(toy_folder: Path, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    folder = altered(toy_folder, tmp_path / "set", change)
    with pytest.raises(DataError, match=message):
        verify_dataset(folder)


def test_a_split_may_differ_as_long_as_it_is_one(toy_folder: Path, tmp_path: Path) -> None:
    folder = altered(toy_folder, tmp_path / "set", lambda manifest: move(manifest, copy=False))
    assert verify_dataset(folder) == 60


@pytest.mark.parametrize("workers", [1, 2])
def test_a_value_that_contradicts_the_schema_is_named(toy_folder: Path, tmp_path: Path, workers: int) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["modalities"]["a"]["fields"]["values"]["shape"] = [7]

    folder = altered(toy_folder, tmp_path / "set", change)
    with pytest.raises(DataError, match=r"axis '7' of field 'a\.values' has length 6"):
        verify_dataset(folder, workers=workers)


def test_damage_after_a_first_look_is_found(toy_folder: Path, tmp_path: Path) -> None:
    folder = altered(toy_folder, tmp_path / "set", lambda manifest: None)
    assert verify_dataset(folder) == 60
    shard = folder / Dataset(folder).manifest.shards[2].file
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.unlink()  # it is linked to the good one
    shard.write_bytes(data)
    with pytest.raises(DataError, match=shard.name):
        verify_dataset(folder)
