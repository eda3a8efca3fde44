from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.evaluations.base import Subject
from finetune.evaluations.confidence import classes_found
from finetune.evaluations.intervals import numbers_found
from finetune.evaluations.stated import Stated
from finetune.evaluations.uncertainty import Uncertainty
from finetune.evaluations.writer import write_findings
from finetune.metrics.uncertainty import (
    aurc,
    classes,
    coverage_range,
    miscalibration_area,
    observed,
    reliability,
    risk_coverage,
)
from finetune.prediction import Prediction
from shards.batch import Batch
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import label, linear_model


def stated(rows: int, *, too_small: float = 2.0, bias: float = 0.0) -> Stated:
    """Errors whose standard deviation is said too small; the tested rows may have a bias."""
    draw = torch.Generator().manual_seed(0)

    def part(shift: float) -> tuple[Prediction, Tensor]:
        std = 0.2 + torch.rand(rows, 1, generator=draw)
        truth = torch.randn(rows, 1, generator=draw)
        return Prediction(truth + shift + std * torch.randn(rows, 1, generator=draw), std=std / too_small), truth

    (held, held_targets), (tested, targets) = part(0.0), part(bias)
    targets[0] = float("nan")
    return Stated(
        names=("y_ev",), task="regression", held=held, held_targets=held_targets, tested=tested, targets=targets,
        ids=[f"m{i}" for i in range(rows)],
    )  # fmt: skip


def test_calibration_before_and_after() -> None:
    found = numbers_found(stated(8000), (0.5, 0.9), 0.9)
    before, after = found.tables["calibration"]
    assert before["factor"] == pytest.approx(2, abs=0.04)
    assert before["coverage_1std"] == pytest.approx(0.383, abs=0.015)
    assert after["coverage_1std"] == pytest.approx(0.683, abs=0.015)
    assert before["rms_z"] == pytest.approx(2, abs=0.05) and after["rms_z"] == pytest.approx(1, abs=0.03)
    assert before["miscalibration_area"] > 0.15 > 0.02 > after["miscalibration_area"]
    assert after["nll"] < before["nll"] and after["sharpness"] == pytest.approx(before["factor"] * before["sharpness"])
    half, most = found.tables["intervals"]
    for row, level in ((half, 0.5), (most, 0.9)):
        assert row["coverage"] == pytest.approx(level, abs=0.02) and row["low"] < level < row["high"]
        assert row["normal_before"] < level - 0.1 and row["normal_after"] == pytest.approx(level, abs=0.02)
    # the row of which the truth is unknown counts nowhere
    assert most["rows"] == 7999 and len(found.tables["rows"]) == 7999 and found.tables["rows"][0]["id"] == "m1"
    # its std knows which rows are uncertain
    assert found.values["y_ev/aurc_oracle"] < found.values["y_ev/aurc"] < 0.85 * found.values["y_ev/aurc_random"]
    assert found.values["y_ev/error_std_spearman"] > 0.3


def test_under_shift_coverage_is_measured_and_not_promised() -> None:
    (row,) = numbers_found(stated(2000, bias=1.0), (0.9,), 0.9).tables["intervals"]
    assert row["coverage"] < 0.8 < row["low"]


def test_the_range_of_coverage_by_simulation() -> None:
    rng = np.random.default_rng(0)
    low, high = coverage_range(50, 80, 0.9)
    covered = []
    for _ in range(2000):
        scores = rng.uniform(size=130)
        covered.append((scores[50:] <= np.sort(scores[:50])[int(np.ceil(51 * 0.9)) - 1]).mean())
    assert np.mean([low <= share <= high for share in covered]) >= 0.94
    # the wrong variant takes the calibration for exact: a binomial range is too narrow
    from scipy.stats import binom

    narrow = np.array(binom(80, 0.9).interval(0.95)) / 80
    assert np.mean([narrow[0] <= share <= narrow[1] for share in covered]) < 0.9


def test_miscalibration_area_of_known_cases() -> None:
    z = np.random.default_rng(0).normal(size=20_000)
    assert miscalibration_area(z) < 0.01
    # no error at all, and nothing but errors
    assert miscalibration_area(np.zeros(100)) == pytest.approx(0.5, abs=0.01)
    assert miscalibration_area(np.full(100, 50.0)) == pytest.approx(0.5, abs=0.01)
    assert observed(z, np.array([0.683]))[0] == pytest.approx(0.683, abs=0.01)


def test_expected_calibration_error_by_hand() -> None:
    p = np.array([0.1, 0.12, 0.88, 0.9])
    found = classes(np.stack([1 - p, p], 1), np.array([0.0, 1.0, 1.0, 1.0]))
    # bins of 1/15: {.1, .12} holds half of class 1, {.88, .9} all
    assert found["ece"] == pytest.approx(0.5 * (0.5 - 0.11) + 0.5 * (1 - 0.89), abs=1e-5)
    assert found["brier"] == pytest.approx((0.01 + 0.88**2 + 0.12**2 + 0.01) / 4)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.12, 0.88, 0.9]).mean())
    three = classes(np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]), np.array([2.0, 0.0]))
    assert three["ece"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.4, abs=1e-5)
    assert three["brier"] == pytest.approx((0.04 + 0.09 + 0.25 + 0.16 + 0.04 + 0.04) / 2)
    # 15 bins tell 0.63 from 0.68, ten would not
    p = np.array([0.63, 0.68])
    apart = classes(np.stack([1 - p, p], 1), np.array([0.0, 1.0]))
    assert apart["ece"] == pytest.approx(0.5 * 0.63 + 0.5 * 0.32, abs=1e-5)
    rows = reliability(np.array([0.9, 1.0, 0.5]), np.array([1.0, 0.0, 1.0]))
    assert [(row["rows"], row["right"]) for row in rows] == [(1, 1.0), (1, 1.0), (1, 0.0)]


def test_risk_and_coverage_by_hand() -> None:
    loss = np.array([3.0, 1.0, 2.0])
    coverage, risk = risk_coverage(np.array([0.9, 0.1, 0.5]), loss)
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1]) and risk == pytest.approx([1, 1.5, 2])
    found = aurc(np.array([0.9, 0.1, 0.5]), loss)
    assert found["aurc"] == found["aurc_oracle"] == pytest.approx(1.5) and found["aurc_random"] == 2
    # a constant says nothing, even where the rows stand in the order of their losses
    assert aurc(np.zeros(3), np.sort(loss))["aurc"] == pytest.approx(2)
    assert np.mean(np.cumsum(np.sort(loss)) / [1, 2, 3]) == pytest.approx(1.5)


@pytest.mark.parametrize("task", ["classification", "multiclass"])
def test_overconfident_classes(task: str) -> None:
    draw = torch.Generator().manual_seed(0)

    def part() -> tuple[Prediction, Tensor]:
        logits = torch.randn(4000, 3 if task == "multiclass" else 2, generator=draw) * 1.5
        truth = torch.multinomial(logits.softmax(1), 1, generator=draw).float()
        loud = (logits * 3).softmax(1)
        if task == "classification":
            return Prediction(loud[:, 1:]), truth
        return Prediction(loud.argmax(1, keepdim=True).float(), probabilities=loud), truth

    (held, held_targets), (tested, targets) = part(), part()
    found = classes_found(
        Stated(
            names=("kind",), task=task, held=held, held_targets=held_targets, tested=tested, targets=targets,
            ids=[str(i) for i in range(4000)],
        ),
        (0.5, 0.9), 0.9,
    )  # fmt: skip
    before, after = found.tables["calibration"]
    assert before["temperature"] == pytest.approx(3, rel=0.15)
    assert before["ece"] > 0.1 > 0.04 > after["ece"]
    assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
    assert found.values["kind/aurc"] < 0.8 * found.values["kind/aurc_random"]
    for row, level in zip(found.tables["sets"], (0.5, 0.9), strict=True):
        assert row["level"] == level and row["low"] < row["coverage"] < row["high"]
        mine = [line for line in found.tables["sets_by_class"] if line["level"] == level]
        assert len(mine) == (3 if task == "multiclass" else 2) and sum(line["rows"] for line in mine) == 4000
        assert sum(line["rows"] * line["coverage"] for line in mine) == pytest.approx(4000 * row["coverage"])
    few, most = found.tables["sets"]
    assert few["mean_size"] < 1 < most["mean_size"] and few["empty"] > 0.2 > 0 == most["empty"]
    assert found.values["kind/set_mean_size_90"] == most["mean_size"]
    listed = [set(line["set"].split()) for line in found.tables["rows"]]
    assert np.mean([len(one) for one in listed]) == pytest.approx(most["mean_size"])
    inside = [str(line["truth"]) in one for line, one in zip(found.tables["rows"], listed, strict=True)]
    assert np.mean(inside) == pytest.approx(most["coverage"])


def test_a_rare_class_may_be_covered_less_than_is_promised_for_all() -> None:
    draw = torch.Generator().manual_seed(0)

    def part() -> tuple[Prediction, Tensor]:
        truth = (torch.rand(4000, 1, generator=draw) < 0.05).float()
        return Prediction((truth * 1.5 - 3 + torch.randn(4000, 1, generator=draw)).sigmoid()), truth

    (held, held_targets), (tested, targets) = part(), part()
    made = Stated(
        names=("kind",), task="classification", held=held, held_targets=held_targets, tested=tested, targets=targets,
        ids=[str(i) for i in range(4000)],
    )  # fmt: skip
    found = classes_found(made, (0.9,), 0.9)
    common, rare = found.tables["sets_by_class"]
    (every,) = found.tables["sets"]
    assert every["low"] <= every["coverage"] <= every["high"]
    assert rare["rows"] < 300 and rare["coverage"] < 0.3 < 0.9 < common["coverage"]


class Knowing(nn.Module):
    """Knows the truth, adds errors that are fixed by the sample's name, and says half their standard deviation."""

    def __init__(self, salt: int = 0, *, says_std: bool = True) -> None:
        super().__init__()
        self.salt, self.says_std, self.here = salt, says_std, nn.Parameter(torch.zeros(1), requires_grad=False)
        self.featurizer, self.drop = SimpleNamespace(encoders={}), nn.Dropout(0.5)

    def predict(self, batch: Batch) -> Prediction:
        rows = [self._row(name) for name in batch.ids]
        value, std = torch.tensor(rows).T[:, :, None]
        value = value + self.drop(torch.ones(len(rows), 1)) - 1
        return Prediction(value, std=std) if self.says_std else Prediction(value)

    def _row(self, name: str) -> tuple[float, float]:
        rng = np.random.default_rng([self.salt, int(name[1:])])
        std = float(rng.uniform(0.1, 1))
        return label(name) + std * float(rng.normal()), std / 2


def subject(dataset: Dataset, predictor: nn.Module, part: str = "test") -> Subject:
    model = linear_model(dataset, [("left",)], predictor=predictor.eval())
    return Subject(model=model, dataset=dataset, split="chemical_system", part=part)


def test_the_evaluation_of_a_predictor(linear_data: Dataset, tmp_path: Path) -> None:
    findings = Uncertainty()(subject(linear_data, Knowing()))
    assert set(findings.tables) == {"intervals", "calibration", "risk_coverage", "rows"}
    assert set(findings.plots) == {"calibration_y_ev", "risk_coverage_y_ev", "error_std_y_ev"}
    row = next(row for row in findings.tables["intervals"] if row["level"] == 0.9)
    assert row["rows_calibrated"] > 50 and row["score"] == "normalised" and row["low"] <= row["coverage"] <= row["high"]
    assert findings.values["y_ev/rms_z_before"] == pytest.approx(2, abs=0.4)
    assert findings.values["y_ev/rms_z_after"] == pytest.approx(1, abs=0.25)
    write_findings(tmp_path, findings)
    assert (tmp_path / "error_std_y_ev.png").exists()

    # without a standard deviation there are intervals of one width, and no more
    findings = Uncertainty()(subject(linear_data, Knowing(says_std=False)))
    assert set(findings.tables) == {"intervals", "rows"} and not findings.plots
    assert {row["score"] for row in findings.tables["intervals"]} == {"absolute"}


def test_ensembles_and_dropout(linear_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {f"m{salt}": linear_model(linear_data, [("left",)], predictor=Knowing(salt).eval()) for salt in (1, 2)}
    known: Mapping[str, Any] = others
    monkeypatch.setattr("finetune.loading.load", known.__getitem__)
    findings = Uncertainty(members=("m1", "m2"))(subject(linear_data, Knowing()))
    (row,) = findings.tables["ensemble"]
    assert row["members"] == 3 and row["ambiguity"] > 0.05
    assert row["mse_ensemble"] == pytest.approx(row["mse_mean_member"] - row["ambiguity"])
    assert row["total"] ** 2 == pytest.approx(row["aleatoric"] ** 2 + row["epistemic"] ** 2, rel=1e-5)

    findings = Uncertainty(draws=10)(subject(linear_data, Knowing(says_std=False)))
    (row,) = findings.tables["ensemble"]
    assert row["members"] == 10 and row["aleatoric"] == 0 and row["epistemic"] > 0.5
    with pytest.raises(ConfigError, match="not both"):
        Uncertainty(draws=2, members=("m1",))(subject(linear_data, Knowing()))


def test_it_refuses_the_part_that_it_calibrates_on(linear_data: Dataset) -> None:
    with pytest.raises(ConfigError, match="calibrated on what part 'val' holds"):
        Uncertainty()(subject(linear_data, Knowing(), part="val"))
