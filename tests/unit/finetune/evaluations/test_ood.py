"""Extrapolation above the training range, on a split by the top quantile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor

from finetune.evaluations.base import Subject
from finetune.evaluations.ood import OutOfRange, extrapolation
from finetune.prediction import Prediction
from shards.batch import Batch
from shards.errors import DataError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import LABEL, linear_model

GROUPS = (("left",), ("right",))


class Forest(torch.nn.Linear):
    """Averages training values, so that it cannot leave their range."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(1, 1)
        rows = [dataset[int(i)] for i in dataset.positions("extremes", "train")]
        features = np.stack([np.concatenate([r.arrays[n]["values"] for n in ("left", "right")]) for r in rows])
        self.model = RandomForestRegressor(20, random_state=0).fit(features, [r.labels[LABEL] for r in rows])

    def predict(self, batch: Batch) -> Prediction:
        features = torch.cat([batch.inputs[name]["values"] for name in ("left", "right")], 1)  # type: ignore[misc]
        return Prediction(torch.from_numpy(self.model.predict(features.numpy())).float()[:, None])


def test_a_linear_model_extrapolates_and_a_forest_cannot(linear_data: Dataset) -> None:
    found = {}
    for name, predictor in (("linear", None), ("forest", Forest(linear_data))):
        model = linear_model(linear_data, GROUPS, predictor=predictor)
        (found[name],) = OutOfRange()(Subject(model=model, dataset=linear_data, split="extremes")).tables["ood"]
    linear, forest = found["linear"], found["forest"]
    labels = {
        part: [linear_data[int(i)].labels[LABEL] for i in linear_data.positions("extremes", part)]
        for part in ("train", "val", "test")
    }
    assert linear["threshold"] == pytest.approx(max(labels["train"]))
    # a value of val may be above the maximum of train: it counts as one
    above = sum(value > max(labels["train"]) + 1e-6 for value in labels["val"])
    assert linear["n_ood"] == len(labels["test"]) + above and linear["n_id"] == len(labels["val"]) - above
    assert linear["recall"] > 0.95 and linear["precision"] > 0.95 and linear["mae_ood"] < 1e-4
    assert forest["recall"] == 0 and forest["precision"] is None
    assert forest["highest_prediction"] < forest["threshold"] and forest["mae_ood"] > 3 * forest["mae_id"]
    # the order may be good all the same
    assert forest["precision_of_top"] > 3 * forest["chance"]


def test_the_measures_by_hand() -> None:
    truth, predicted = np.array([1.0, 2.0, 5.0, 6.0]), np.array([1.5, 4.5, 3.0, 7.0])
    row = extrapolation(4.0, truth, predicted)
    assert (row["n_id"], row["n_ood"]) == (2, 2)
    assert row["mae_id"] == pytest.approx((0.5 + 2.5) / 2) and row["mae_ood"] == pytest.approx((2 + 1) / 2)
    assert row["recall"] == 0.5 and row["precision"] == 0.5 and row["precision_of_top"] == 0.5 and row["chance"] == 0.5


def test_a_constant_prediction_finds_as_many_as_chance_whatever_the_order_of_the_rows() -> None:
    """A forest predicts one value for many rows; the part within the range stands before the other."""
    truth = np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0])
    for order in (truth, truth[::-1]):
        row = extrapolation(4.0, order, np.full(6, 3.5))
        assert row["precision_of_top"] == pytest.approx(row["chance"]) == 0.5
    # the wrong variant takes the rows as they stand
    assert (truth[np.argsort(-np.full(6, 3.5), kind="stable")[:3]] > 4).mean() == 0


def test_a_part_within_the_range_is_refused(linear_data: Dataset) -> None:
    subject = Subject(model=linear_model(linear_data, GROUPS), dataset=linear_data, split="extremes", part="train")
    with pytest.raises(DataError, match="above the training maximum"):
        OutOfRange(in_range="train")(subject)
