"""A prediction as a user reads it: a number with name, unit and uncertainty, alone, by target and as a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.loading import PropertyModel
from finetune.predicted import Predicted, Predictions
from finetune.prediction import Prediction
from finetune.predictor import PredictorInfo
from finetune.units import UNITS, describe
from shards.reader import Dataset
from shards.units import suffix_unit
from tests.unit.finetune.test_streaming import written

INFO = PredictorInfo(
    targets=("band_gap_ev", "bulk_modulus_gpa"), task="regression", modalities=("crystal", "dos"), head={},
    foundation="", foundation_seal="", strategy="frozen", metrics={},
)  # fmt: skip
TWO = Prediction(
    value=torch.tensor([[1.234, 80.0], [2.0, 90.0]]),
    std=torch.tensor([[0.1, 5.0], [0.0, 1.0]]),
    lower=torch.tensor([[1.0, 70.0], [1.5, 85.0]]),
    upper=torch.tensor([[1.5, 90.0], [2.5, 95.0]]),
    importance=torch.tensor([[0.75, 0.25], [1.0, 0.0]]),
)


@pytest.fixture
def model(export_folder: Path, tmp_path: Path) -> PropertyModel:
    return written(export_folder, tmp_path / "predictor")


def test_a_prediction_is_a_number_with_its_unit() -> None:
    found = Predictions(["a", "b"], INFO, TWO)[0]["band_gap_ev"]
    assert float(found) == pytest.approx(1.234) and f"{found:.2f}" == "1.23" and found.unit == "eV"
    assert repr(found) == f"{found}" == "1.23 +- 0.10 [1, 1.5] eV"
    assert found == pytest.approx(1.234) and np.isclose(np.asarray(found), 1.234)
    assert found.importance == pytest.approx({"crystal": 0.75, "dos": 0.25})
    assert str(Predicted(name="x", value=3.0, importance={})) == "3"
    assert json.loads(json.dumps(found.as_dict()))["std"] == pytest.approx(0.1)


def test_several_targets_come_by_name_and_in_order() -> None:
    found = Predictions(["a", "b"], INFO, TWO)
    assert list(found[1]) == ["band_gap_ev", "bulk_modulus_gpa"] and found[1]["bulk_modulus_gpa"].upper == 95.0
    assert found.values.shape == (2, 2) and found.std is not None and found.std[0, 1] == 5.0
    frame = found.to_frame()
    assert list(frame.index) == ["a", "b"] and frame.loc["b", "bulk_modulus_gpa_lower"] == 85.0
    assert {"band_gap_ev", "band_gap_ev_std", "importance_dos"} <= set(frame.columns) and len(frame.columns) == 10
    assert found[1:].ids == ["b"] and float(found[1:][0]["band_gap_ev"]) == 2.0


def test_classes_have_probabilities_and_no_unit() -> None:
    binary = replace(INFO, targets=("is_metal",), task="classification")
    found = Predictions(["a"], binary, Prediction(torch.tensor([[0.25]])))[0]
    assert (found.value, found.probability, found.unit) == (0.25, 0.25, "")
    several = replace(INFO, targets=("crystal_system",), task="multiclass")
    prediction = Prediction(torch.tensor([[1.0]]), probabilities=torch.tensor([[0.25, 0.75]]))
    found = Predictions(["a"], several, prediction)
    assert found[0].probability == (0.25, 0.75) and list(found.to_frame()["probability_1"]) == [0.75]


def test_order_and_values_are_those_of_one_by_one(model: PropertyModel, toy: Dataset) -> None:
    samples = [toy[i] for i in (7, 3, 50, 3)]
    found = model.predict(samples, batch_size=3)
    assert found.ids == [sample.id for sample in samples]
    np.testing.assert_allclose(found.values, [float(model.predict(sample)) for sample in samples], atol=1e-6)
    assert [float(one) for one in found] == list(found.values) and [one.name for one in found] == ["gap_ev"] * 4
    assert len(model.predict(iter(samples))) == 4 and len(model.predict(toy)) == 60


def test_no_material_gives_no_prediction(model: PropertyModel) -> None:
    found = model.predict([])
    assert len(found) == 0 and list(found.to_frame().columns) == ["gap_ev"] and found.values.shape == (0,)


def test_a_unit_says_what_the_name_of_the_label_says() -> None:
    assert describe("formation_energy_ev_per_atom") == ("formation energy", "eV/atom")
    assert describe("thermal_conductivity_w_per_m_k") == ("thermal conductivity", "W/(m K)")
    assert describe("is_metal") == ("is metal", "")
    for suffix in UNITS:
        # what the shards' own table knows, it must not contradict
        assert suffix_unit(f"x_{suffix}"), suffix
