"""Screening, goals and Pareto fronts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune.discover import Extreme, InRange, discover, fronts, known_index, parse_goal
from finetune.discover.goals import probability_in_range
from finetune.discover.report import write_table
from finetune.loading import Foundation, PropertyModel
from finetune.prediction import Prediction
from finetune.predictor import PredictorInfo
from shards.augment import Augmenter
from shards.batch import Batch
from shards.errors import ConfigError, DataError
from shards.reader import Dataset

LABELS = ("gap_ev", "bulk_gpa")


def by_definition(points: np.ndarray) -> np.ndarray:
    """Every point against every other, front by front."""
    found, number = np.zeros(len(points), int), 0
    while (found == 0).any():
        number += 1
        left = np.flatnonzero(found == 0)
        for i in left:
            beaten = any((points[j] >= points[i]).all() and (points[j] > points[i]).any() for j in left)
            found[i] = 0 if beaten else -1
        found[found == -1] = number
    return found


# few values, so that ties and equal points are common
POINTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[st.integers(-3, 3)] * width), min_size=1, max_size=40)
)


@settings(max_examples=200, deadline=None)
@given(points=POINTS, limit=st.integers(1, 40))
def test_fronts_are_those_of_the_definition(points: list[tuple[int, ...]], limit: int) -> None:
    table = np.array(points, dtype=float)
    right = by_definition(table)
    np.testing.assert_array_equal(fronts(table), right)
    some = fronts(table, limit)
    assert (some > 0).sum() >= min(limit, len(table))
    np.testing.assert_array_equal(some[some > 0], right[some > 0])


@pytest.mark.parametrize("width", [2, 3, 5])
def test_fronts_over_several_chunks(width: int) -> None:
    table = np.random.default_rng(width).integers(0, 9, size=(700, width)).astype(float)
    first = fronts(table) == 1
    beaten = np.array([((table >= p).all(1) & (table > p).any(1)).any() for p in table])
    np.testing.assert_array_equal(first, ~beaten)


def prediction(**parts: Any) -> Prediction:
    return Prediction(**{name: torch.tensor(value)[:, None] for name, value in parts.items()})


def chance(given: Prediction, low: float, high: float, level: float | None = None) -> list[float]:
    found, _ = probability_in_range(given, 0, InRange("x", low, high), task="regression", level=level)
    return found.tolist()


def test_the_probability_of_a_range_is_that_of_a_normal_distribution() -> None:
    both = prediction(value=[0.0, 5.0], std=[1.0, 2.0])
    assert chance(both, -1, 1) == pytest.approx([0.6827, 0.0214], abs=1e-4)
    assert chance(both, -np.inf, 5) == pytest.approx([1.0, 0.5], abs=1e-4)
    # a calibrated interval of 90 % has 1.645 deviations to both sides, whatever the head's own deviation says
    interval = prediction(value=[0.0], std=[100.0], lower=[-1.645], upper=[1.645])
    assert chance(interval, -1, 1, level=0.9) == pytest.approx([0.6827], abs=1e-3)
    assert chance(interval, -1.645, 1.645, level=0.9) == pytest.approx([0.9], abs=1e-4)
    endless = prediction(value=[0.0], lower=[-np.inf], upper=[np.inf])
    assert chance(endless, 0, np.inf, level=0.9) == pytest.approx([0.5])
    assert chance(prediction(value=[0.5, 1.0, 1.1]), 0.5, 1.0) == [1, 1, 0]
    assert chance(prediction(value=[1.0], std=[0.0]), 0.5, 2.0) == [1]


def test_the_probability_of_classes() -> None:
    found, source = probability_in_range(prediction(value=[0.9, 0.2]), 0, InRange("metal", 1, 1), task="classification")
    assert found.tolist() == pytest.approx([0.9, 0.2]) and source == "probabilities"
    three = Prediction(torch.tensor([[2.0]]), probabilities=torch.tensor([[0.1, 0.2, 0.7]]))
    assert probability_in_range(three, 0, InRange("c", 1, 2), task="multiclass")[0].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("text", ["gap_ev", "gap_ev=", "gap_ev=2", "gap_ev=2..1", "gap_ev=..", "=1..2", "g=nan..1"])
def test_what_is_no_goal_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no"):
        parse_goal(text)
    assert parse_goal("g=-1.5..2") == InRange("g", -1.5, 2) and parse_goal("g=min") == Extreme("g", "min")


class Reader(nn.Module):
    """Reads two targets off the modality ``a``."""

    def __init__(self, uncertain: bool) -> None:
        super().__init__()
        self.unused, self.uncertain = nn.Parameter(torch.zeros(1)), uncertain

    def predict(self, batch: Batch) -> Prediction:
        value = batch.inputs["a"]["values"][:, :2]  # type: ignore[call-overload]
        return Prediction(value, std=torch.full_like(value, 0.5) if self.uncertain else None)


def reader(dataset: Dataset, *, uncertain: bool = True, delta: tuple[str, ...] = ()) -> PropertyModel:
    specs = {"a": dataset.modalities["a"]}
    info = PredictorInfo(
        targets=LABELS, task="regression", modalities=("a",), head={}, foundation="", foundation_seal="",
        strategy="full", metrics={}, delta=delta,
    )  # fmt: skip
    return PropertyModel(info, Reader(uncertain), specs, Augmenter(specs, {}, training=False))  # type: ignore[arg-type]


def truth(dataset: Dataset) -> np.ndarray:
    return np.stack([sample.arrays["a"]["values"][:2] for sample in dataset]).astype(np.float64)


def test_the_best_of_one_goal_come_first_whatever_the_batches(toy: Dataset) -> None:
    found = discover(toy, ["gap_ev=max"], predictors=[reader(toy)], k=5, batch_size=7)
    order = np.argsort(-truth(toy)[:, 0])[:5]
    assert [row["id"] for row in found.rows] == [toy.ids[i] for i in order] and found.screened == 60
    assert [row["front"] for row in found.rows] == [1, 2, 3, 4, 5]
    row = found.rows[0]
    assert row["gap_ev"] == pytest.approx(truth(toy)[order[0], 0]) and row["gap_ev_unit"] == "eV"
    assert row["gap_ev_std"] == 0.5 and row["formula"].startswith("LiCoO")
    least = discover(toy, ["gap_ev=min"], predictors=[reader(toy)], k=1).rows[0]
    assert least["id"] == toy.ids[truth(toy)[:, 0].argmin()]


def test_a_range_is_ranked_by_its_probability(toy: Dataset) -> None:
    found = discover(toy, ["gap_ev=0.2..0.6"], predictors=[reader(toy)], k=60)
    chances = [row["gap_ev_probability"] for row in found.rows]
    assert chances == sorted(chances, reverse=True) and found.rows[0]["gap_ev_probability_from"] == "std"
    distance = [abs(row["gap_ev"] - 0.4) for row in found.rows]
    assert distance == pytest.approx(sorted(distance)), "with one deviation for all, the middle of the range is best"
    alone = discover(toy, ["gap_ev=0.2..0.6"], predictors=[reader(toy, uncertain=False)], k=60)
    assert {row["gap_ev_probability"] for row in alone.rows} == {0.0, 1.0}
    assert alone.rows[0]["gap_ev_probability_from"] == "value"


def test_several_goals_give_a_front_that_nothing_dominates(toy: Dataset) -> None:
    found = discover(toy, ["gap_ev=max", "bulk_gpa=min"], predictors=[reader(toy)], k=60)
    points = truth(toy) * [1, -1]
    right = dict(zip(toy.ids, by_definition(points), strict=True))
    assert {row["id"]: row["front"] for row in found.rows} == right
    assert [row["front"] for row in found.rows] == sorted(right.values())
    # the wrong variant, a mean of both, is not the order of the fronts
    total = [row["score"] for row in found.rows]
    assert total != sorted(total, reverse=True)


def test_likeness_and_the_nearest_known_material(toy: Dataset, foundation: Foundation, toy_folder: Path) -> None:
    wanted = toy[11]
    known = known_index(foundation, str(toy_folder), "a", "chemical_system:train")
    train = toy.manifest.split("chemical_system").ids["train"]
    assert {sample.id for sample in known.samples} == set(train)
    found = discover(toy, foundation=foundation, like=wanted, among="a", known=known, k=60)
    assert found.rows[0]["id"] == wanted.id and found.rows[0]["similarity"] == pytest.approx(1, abs=1e-5)
    for row in found.rows:
        assert row["nearest_known"] in train
        if row["id"] in train:
            assert row["nearest_known"] == row["id"] and row["nearest_known_similarity"] == pytest.approx(1)
    both = discover(toy, ["gap_ev=max"], predictors=[reader(toy)], foundation=foundation, like=wanted, among="a", k=4)
    assert both.objectives == ["maximum of gap_ev", "similarity"] and "nearest_known" not in both.rows[0]


def test_candidates_that_cannot_be_screened_are_named(toy: Dataset) -> None:
    samples = [toy[0], replace(toy[1], arrays={}, text={}), {"a": np.zeros(3)}, toy[2]]
    found = discover(samples, ["gap_ev=max"], predictors=[reader(toy)])
    assert found.screened == 2 and found.refused.keys() == {toy.ids[1], "2"}
    assert "none of the modalities ['a']" in found.refused[toy.ids[1]]
    # what a difference is added to is known of every other material
    added = discover(toy, ["gap_ev=max"], predictors=[reader(toy, delta=("gap_ev",) * 2)])
    assert added.screened == 30 and len(added.refused) == 30
    assert "its label 'gap_ev' is not known" in added.refused[toy.ids[0]]
    with pytest.raises(DataError, match="no candidate can be screened"):
        discover(samples[1:2], ["gap_ev=max"], predictors=[reader(toy)])
    with pytest.raises(ConfigError, match="did you mean 'gap_ev'"):
        discover(toy, ["gapev=max"], predictors=[reader(toy)])
    with pytest.raises(ConfigError, match="nothing to look for"):
        discover(toy)


def test_tables_as_csv_and_json(toy: Dataset, tmp_path: Path) -> None:
    import csv

    found = discover(toy, ["gap_ev=max"], predictors=[reader(toy)], k=3)
    write_table(tmp_path / "new" / "found.csv", found)
    write_table(tmp_path / "found.json", found)
    with (tmp_path / "new" / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["id"] for row in found.rows]
    assert float(rows[0]["gap_ev"]) == found.rows[0]["gap_ev"]
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == found.rows
    with pytest.raises(ConfigError, match=r"\.csv or \.json"):
        write_table(tmp_path / "found.txt", found)
