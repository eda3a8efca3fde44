from __future__ import annotations

import math

import pytest
import torch

from finetune.metrics import SELECTION, better, evaluate, measure, worst
from finetune.prediction import Prediction
from finetune.units import describe


def test_regression_by_hand() -> None:
    values = evaluate("regression", torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([[1.0], [4.0], [4.0]]))
    assert values["mae"] == pytest.approx(1.0)
    assert values["rmse"] == pytest.approx((5 / 3) ** 0.5)
    assert values["r2"] == pytest.approx(1 - 5 / 6)


def test_classification_by_hand() -> None:
    values = evaluate(
        "classification", torch.tensor([[0.9], [0.6], [0.4], [0.1]]), torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    )
    assert values == {"accuracy": pytest.approx(0.5), "auroc": pytest.approx(0.75)}


def test_classes_by_hand() -> None:
    values = evaluate(
        "multiclass", torch.tensor([[0.0], [0.0], [2.0], [1.0]]), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    )
    assert values == {"accuracy": pytest.approx(0.75), "balanced_accuracy": pytest.approx(0.75)}
    assert set(SELECTION.values()) <= {*values, "mae", "auroc"}


def test_what_is_not_defined_is_no_number_and_counts_for_nothing_in_the_mean() -> None:
    nan = float("nan")
    predictions = torch.tensor([[0.9, 0.9, 0.5], [0.1, 0.2, 0.5]])
    values = evaluate("classification", predictions, torch.tensor([[1.0, 0.0, nan], [0.0, 0.0, nan]]))
    # the second target has one class, the third none
    assert values == {"accuracy": pytest.approx(0.75), "auroc": pytest.approx(1.0)}
    values = evaluate("regression", predictions, torch.tensor([[1.0, 0.0, nan], [nan, 0.0, nan]]))
    assert values["mae"] == pytest.approx((0.1 + 0.55) / 2) and math.isnan(values["r2"])


def test_all_metrics_of_one_target_look_at_its_known_rows() -> None:
    nan = float("nan")
    prediction = Prediction(torch.tensor([[9.0, 1.0], [9.0, 2.0], [9.0, 7.0]]))
    targets = torch.tensor([[0.0, 1.0], [0.0, 4.0], [0.0, nan]])
    assert measure("regression", prediction, targets, 1)["mae"] == pytest.approx(1.0)
    assert (
        measure("classification", Prediction(torch.tensor([[0.9], [0.2]])), (targets[:2, 1:] > 2).float())["rows"] == 2
    )
    three = Prediction(torch.tensor([[2.0]]), probabilities=torch.tensor([[0.1, 0.2, 0.7]]))
    assert measure("multiclass", three, torch.tensor([[2.0]]))["accuracy"] == 1.0


def test_better_knows_the_direction() -> None:
    assert better("mae", 1.0, 2.0) and not better("mae", 2.0, 1.0)
    assert better("auroc", 0.8, 0.7) and not better("auroc", 0.7, 0.8)
    assert better("mae", 1e9, worst("mae")) and better("auroc", 0.0, worst("auroc"))


@pytest.mark.parametrize(
    ("label", "name", "unit"),
    [
        ("band_gap_ev", "band gap", "eV"),
        ("formation_energy_ev_per_atom", "formation energy", "eV/atom"),
        ("bulk_modulus_dft_gpa", "bulk modulus dft", "GPa"),
        ("is_metal", "is metal", ""),
    ],
)
def test_units_stand_in_the_name(label: str, name: str, unit: str) -> None:
    assert describe(label) == (name, unit)
