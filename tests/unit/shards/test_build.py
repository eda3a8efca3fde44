from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shards.build import SplitPlan, build
from shards.errors import DataError
from shards.reader import Dataset
from shards.sources.base import Record
from tests.synthetic import FEATURES, build_toy, records


def test_the_manifest_counts_what_the_shards_hold(toy: Dataset) -> None:
    manifest, samples = toy.manifest, list(toy)
    assert manifest.samples == len(samples) == 60
    for name in FEATURES:
        assert manifest.coverage[name] == sum(name in sample.modalities for sample in samples)
    assert 0 < manifest.coverage["c"] < 60
    gaps = [sample.labels["gap_ev"] for sample in samples if "gap_ev" in sample.labels]
    stats = manifest.labels["gap_ev"]
    assert (stats.count, stats.min, stats.max) == (30, min(gaps), max(gaps))
    assert stats.mean == pytest.approx(sum(gaps) / 30)


def damaged(count: int, bad: set[int], **change: object) -> list[Record]:
    return [replace(record, **change) if i in bad else record for i, record in enumerate(records(count))]  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refused_record_is_left_out_and_counted(tmp_path: Path, workers: int) -> None:
    source = damaged(30, {7}, tags={"broken": "b"}, id="bad one")
    manifest = build(source, FEATURES, tmp_path / "set", name="x", workers=workers)
    assert set(manifest.quarantined) == {"bad one"}
    assert "broken on purpose" in manifest.quarantined["bad one"]
    assert manifest.samples == len(Dataset(tmp_path / "set")) == 29


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e200])
def test_a_label_that_is_no_usable_number_is_quarantined(tmp_path: Path, value: float) -> None:
    source = damaged(30, {7}, labels={"gap_ev": value})
    manifest = build(source, FEATURES, tmp_path / "set", name="x")
    assert len(manifest.quarantined) == 1
    assert "gap_ev" in next(iter(manifest.quarantined.values()))


def test_too_many_refused_records_stop_the_build_and_publish_nothing(tmp_path: Path) -> None:
    source = damaged(30, {1, 2, 3}, tags={"broken": "b"})
    with pytest.raises(DataError, match="3 of 30"):
        build(source, FEATURES, tmp_path / "set", name="x")
    assert not (tmp_path / "set").exists()
    assert build(source, FEATURES, tmp_path / "set", name="x", max_quarantined=0.1).samples == 27


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        build([], FEATURES, tmp_path / "set", name="x")


def test_two_records_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="same id"):
        build(damaged(9, {2, 5}, id="twin"), FEATURES, tmp_path / "set", name="x")


def test_a_failed_build_keeps_the_earlier_data_set(tmp_path: Path) -> None:
    build_toy(tmp_path / "set", count=30)
    with pytest.raises(DataError):
        build([], FEATURES, tmp_path / "set", name="x")
    assert len(Dataset(tmp_path / "set")) == 30


def test_a_split_by_group_is_not_fooled_by_a_tag_of_that_name(tmp_path: Path) -> None:
    source = [replace(record, group=f"g{i // 5}", tags={"group": str(i)}) for i, record in enumerate(records(30))]
    build(source, FEATURES, tmp_path / "set", name="x", splits={"group": SplitPlan(by="group")})
    dataset = Dataset(tmp_path / "set")
    parts = {p: {dataset[int(i)].group for i in dataset.positions("group", p)} for p in ("train", "val", "test")}
    assert not parts["train"] & parts["val"]
    assert not parts["train"] & parts["test"]


def test_a_split_by_a_tag_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="space_group"):
        build(records(9), FEATURES, tmp_path / "set", name="x", splits={"s": SplitPlan(by="space_group")})


def test_a_modality_that_no_record_has_is_refused(tmp_path: Path) -> None:
    source = [replace(record, text=None) for record in records(30)]
    with pytest.raises(DataError, match="no record has the modality 'text'"):
        build(source, FEATURES, tmp_path / "set", name="x")
    assert not (tmp_path / "set").exists()
