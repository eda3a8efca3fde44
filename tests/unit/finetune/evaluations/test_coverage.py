from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.evaluations.base import Subject
from finetune.evaluations.coverage import Coverage, against_error, separation
from finetune.evaluations.writer import write_findings
from finetune.loading import Foundation
from finetune.prediction import Prediction
from shards.batch import Batch
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import linear_model


class Vectors(nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        return torch.cat([batch.inputs[name]["values"] for name in ("left", "right")], dim=1)  # type: ignore[misc]


class Local(nn.Module):
    """Is right in the middle of the embedding, and the more wrong the farther from it."""

    def __init__(self) -> None:
        super().__init__()
        self.here, self.featurizer = nn.Parameter(torch.zeros(1), requires_grad=False), Vectors()

    def predict(self, batch: Batch) -> Prediction:
        truth = batch.inputs["left"]["values"] @ torch.tensor([1.0, 0.2, 0, 0, 0, 0])  # type: ignore[operator]
        truth = truth + batch.inputs["right"]["values"] @ torch.tensor([-1.5, 0.05, 0, 0, 0, 0])  # type: ignore[operator]
        rows = self.featurizer(batch)
        return Prediction((truth + (rows * torch.tensor([1, 0.1, 0, 0, 0, 0] * 2)).square().sum(1))[:, None])


def subject(dataset: Dataset, split: str, **options: str) -> Subject:
    model = linear_model(dataset, [("left",), ("right",)], predictor=Local())
    return Subject(model=model, dataset=dataset, split=split, **options)  # type: ignore[arg-type]


def test_a_density_warns_of_errors_far_from_the_training_rows(linear_data: Dataset, tmp_path: Path) -> None:
    findings = Coverage()(subject(linear_data, "chemical_system"))
    assert {row["score"] for row in findings.tables["coverage"]} == {"kde", "knn", "mahalanobis"}
    # the modalities hold four numbers, whatever the width of the vectors
    assert {row["dimensions"] for row in findings.tables["coverage"]} == {4}
    for row in findings.tables["coverage"]:
        assert row["spearman"] > 0.6 and row["aurc"] < 0.7 * row["aurc_random"]
        # the two parts are drawn alike
        assert row["auroc_ood"] == pytest.approx(0.5, abs=0.12)
    assert {row["part"] for row in findings.tables["rows"]} == {"val", "test"}
    write_findings(tmp_path, findings)
    assert {path.name for path in tmp_path.glob("*.png")} == {"density.png", "error.png", "risk_coverage_kde.png"}

    # by the top quantile of the label the tested part lies outside
    for row in Coverage(components=4)(subject(linear_data, "extremes")).tables["coverage"]:
        assert row["auroc_ood"] > 0.7


def test_coverage_of_a_pretrained_embedding(foundation: Foundation, toy_folder: Path) -> None:
    dataset = Dataset(toy_folder, ["a", "b", "c"])
    model = Subject(model=foundation, dataset=dataset, split="chemical_system")
    findings = Coverage(embedding="b")(model)
    assert "spearman" not in findings.tables["coverage"][0] and set(findings.plots) == {"density"}


def test_it_refuses_what_makes_no_sense(linear_data: Dataset) -> None:
    with pytest.raises(ConfigError, match="three parts"):
        Coverage()(subject(linear_data, "chemical_system", part="val"))
    with pytest.raises(ConfigError, match="one embedding"):
        Coverage(embedding="left")(subject(linear_data, "chemical_system"))


def test_the_signs() -> None:
    score = np.array([3.0, 2.0, 1.0])
    assert separation(score, score - 10)["auroc_ood"] == 1 and separation(score, score)["auroc_ood"] == 0.5
    assert against_error(score, np.array([0.0, 1.0, 2.0]))["spearman"] == pytest.approx(1)
    assert np.isnan(against_error(score, np.ones(3))["pearson"])
