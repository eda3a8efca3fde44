from __future__ import annotations

import pytest
import torch

from finetune.metrics import better, evaluate, worst
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
