from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from finetune.evaluations.accuracy import Metrics
from finetune.evaluations.base import EVALUATIONS, Subject
from finetune.evaluations.writer import write_findings
from finetune.prediction import Prediction
from shards.batch import Batch
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import label, linear_model


class Shifted(nn.Module):
    """The truth and three, of as many targets as are asked for."""

    def __init__(self, targets: int = 1) -> None:
        super().__init__()
        self.targets, self.here = targets, nn.Parameter(torch.zeros(1), requires_grad=False)

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(torch.tensor([[label(name) + 3] * self.targets for name in batch.ids]))


def test_all_metrics_of_a_shifted_predictor(linear_data: Dataset, tmp_path: Path) -> None:
    assert EVALUATIONS.get("metrics") is Metrics
    subject = Subject(
        model=linear_model(linear_data, [("left",)], predictor=Shifted()), dataset=linear_data, split="chemical_system"
    )
    findings = Metrics(affinity=True)(subject)
    (row,) = findings.tables["metrics"]
    assert row["mae"] == pytest.approx(3, abs=1e-4) and row["ci"] == 1 and row["pearson"] == pytest.approx(1)
    truth = [label(linear_data[int(i)].id) for i in linear_data.positions("chemical_system", "test")]
    assert row["r2"] == pytest.approx(1 - 9 / np.var(truth), abs=1e-3) and row["rows"] == len(truth)
    assert "ci" not in Metrics()(subject).tables["metrics"][0]
    assert write_findings(tmp_path, findings).exists()


class Constant(Shifted):
    def predict(self, batch: Batch) -> Prediction:
        return Prediction(torch.full((len(batch.ids), self.targets), 0.5))


def test_a_constant_probability_is_worth_its_prevalence(linear_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_model(linear_data, [("left",)], predictor=Constant())
    model = replace(model, info=replace(model.info, task="classification"))
    subject = Subject(model=model, dataset=linear_data, split="chemical_system")
    from finetune.evaluations import accuracy

    real = accuracy.rows_of

    def classes(subject: Subject, part: str) -> object:
        rows = real(subject, part)
        return replace(rows, targets=(rows.targets > 1).float())

    monkeypatch.setattr(accuracy, "rows_of", classes)
    findings = Metrics(ks=(10,))(subject)
    (row,) = findings.tables["metrics"]
    assert 0.1 < row["prevalence"] < 0.6
    for name in ("average_precision", "precision_at_10"):
        assert row[name] == pytest.approx(row["prevalence"])
    assert row["auprc_trapezoid"] == pytest.approx((1 + row["prevalence"]) / 2) and row["kappa"] == 0
    assert set(findings.plots) == {"precision_recall_y_ev"}
