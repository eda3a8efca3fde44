"""Missing modalities and noise for every kind of predictor: classes, differences, several targets in their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.evaluations import references
from finetune.evaluations.base import Findings, Subject
from finetune.evaluations.missing import Missing
from finetune.evaluations.noise import Noise
from finetune.evaluations.rows import Measure, rows_of
from finetune.evaluations.seen import check_unseen
from finetune.loading import PropertyModel
from finetune.prediction import Prediction
from finetune.predictor import Predictor
from shards.batch import Batch
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import LABEL, PRESSURE, QUADRANT, ROUGH, Linear, linear_model

TWO = (("left",), ("right",))


def values(batch: Batch, name: str, column: int) -> torch.Tensor:
    """One number of a modality (B,), 0 where it is absent."""
    found = torch.zeros(len(batch.ids))
    if name in batch.inputs:
        rows = batch.inputs[name]["values"]
        assert isinstance(rows, torch.Tensor)
        found[batch.present[name]] = rows[:, column]
    return found


class Metal(Linear):
    """Class 1 where the second hidden number is positive."""

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(values(batch, "left", 1).sigmoid()[:, None])


class Quadrant(Linear):
    """Four classes by the signs of two hidden numbers, one in each modality."""

    def predict(self, batch: Batch) -> Prediction:
        signs = [values(batch, name, 0) for name in ("left", "right")]
        shares = [torch.stack([(-4 * s).sigmoid(), (4 * s).sigmoid()], 1) for s in signs]
        table = (shares[1][:, :, None] * shares[0][:, None, :]).flatten(1)
        return Prediction(table.argmax(1, keepdim=True).float(), probabilities=table)


class Difference(Linear):
    """What is to be added to the rough label, from `right` alone."""

    delta = (ROUGH,)

    def predict(self, batch: Batch) -> Prediction:
        return super().predict(batch).shifted(Predictor._known_part(self, batch))  # type: ignore[arg-type]


class Both(Linear):
    """The label in two units, the second with a factor too little or too much."""

    def __init__(self, groups: Sequence[Sequence[str]], factor: float = 1.0) -> None:
        super().__init__(groups)
        self.factor = factor

    def predict(self, batch: Batch) -> Prediction:
        value = super().predict(batch).value
        return Prediction(torch.cat([value, 100 * self.factor * value], 1))


def subject(dataset: Dataset, predictor: Linear, targets: tuple[str, ...], **info: Any) -> Subject:
    model = linear_model(dataset, predictor.groups, predictor=predictor)
    model = replace(model, info=replace(model.info, targets=targets, **info))
    return Subject(model=model, dataset=dataset, split="chemical_system")


def predictor_in(asked: Subject) -> PropertyModel:
    assert isinstance(asked.model, PropertyModel)
    return asked.model


def row(findings: Findings, modalities: str) -> dict[str, Any]:
    return next(dict(r) for r in findings.tables["subsets"] if r["modalities"] == modalities)


def curve(findings: Findings, modality: str, column: str) -> list[float]:
    return [float(r[column]) for r in findings.tables["noise"] if r["modality"] == modality]


QUICK: dict[str, Any] = {"rates": (0.0, 0.5), "repeats": 5}
NOISE: dict[str, Any] = {"sigmas": (0.0, 0.2, 0.5), "repeats": 3}


def test_a_classifier_is_measured_by_its_wrong_classes(linear_data: Dataset) -> None:
    asked = subject(linear_data, Metal(TWO), ("is_metal",), task="classification")
    rows = rows_of(asked, "test")
    positive = float(rows.targets.mean())
    found = Missing(**QUICK)(asked)
    # without `left` every probability is one half, which is no class 1
    assert row(found, "left+right")["error_rate"] == row(found, "left")["error_rate"] == 0
    assert row(found, "right")["error_rate"] == pytest.approx(positive)
    assert row(found, "left")["reference_error_rate"] < 0.05 < 0.3 < row(found, "right")["reference_error_rate"]
    assert found.values["error_rate/mean_predictor"] == pytest.approx(min(positive, 1 - positive), abs=0.15)
    # the wrong variant: probabilities as if they were numbers lose something where no class is wrong
    assert Measure("regression", ("is_metal",)).mean(predictor_in(asked).estimate(rows.samples).value, rows.targets) > 0
    noisy = Noise(**NOISE)(asked)
    assert curve(noisy, "left", "error_rate") == pytest.approx(curve(noisy, "left", "flips"))
    assert curve(noisy, "left", "flips")[0] == 0 < curve(noisy, "left", "flips")[2]
    assert curve(noisy, "right", "flips") == [0, 0, 0]


def test_several_classes_take_both_modalities(linear_data: Dataset) -> None:
    asked = subject(linear_data, Quadrant(TWO), (QUADRANT,), task="multiclass")
    found = Missing(**QUICK)(asked)
    assert row(found, "left+right")["error_rate"] == 0 and row(found, "left+right")["balanced_accuracy"] == 1
    for alone in ("left", "right"):
        assert 0.3 < row(found, alone)["error_rate"] < 0.7
        # classes, no means of class numbers
        assert 0.3 < row(found, alone)["reference_error_rate"] < 0.7
    assert row(found, "left+right")["reference_error_rate"] < 0.15
    assert "mae" not in row(found, "left")
    noisy = Noise(**NOISE)(asked)
    for name in ("left", "right"):
        flips = curve(noisy, name, "flips")
        assert flips[0] == 0 < flips[1] < flips[2] < curve(noisy, "all", "flips")[2]


def test_a_difference_is_compared_with_what_learned_the_difference(linear_data: Dataset) -> None:
    groups = (("right",), ("junk",))
    asked = subject(linear_data, Difference(groups), (LABEL,), delta=(ROUGH,))
    rows, train = rows_of(asked, "test"), rows_of(asked, "train")
    part = [linear_data[int(i)] for i in linear_data.positions("chemical_system", "test")]
    assert len(rows.samples) == sum(ROUGH in sample.labels for sample in part) < len(part)
    found = Missing(**QUICK)(asked)
    assert row(found, "right")["mae"] < 1e-5 and row(found, "right")["reference_mae"] < 0.05
    trivial = float((rows.learned - train.learned.mean()).abs().mean())
    assert found.values["mae/mean_predictor"] == pytest.approx(trivial, rel=1e-4)
    # the wrong variant: a probe that must find what is given to the predictor
    plain = subject(linear_data, Difference(groups), (LABEL,))
    wrong = references.References({}, plain, replace(train, offset=torch.zeros_like(train.offset)))
    assert Measure("regression", (LABEL,)).mean(wrong.of(("right",))(rows.samples), rows.targets) > 1
    noisy = Noise(**NOISE)(asked)
    assert curve(noisy, "right", "mae")[0] < 0.05 < 0.1 < curve(noisy, "right", "mae")[2]


def test_errors_in_different_units_are_in_standard_deviations_of_training(linear_data: Dataset) -> None:
    targets = (LABEL, PRESSURE)
    asked = subject(linear_data, Both(TWO, factor=1.1), targets)
    train = rows_of(asked, "train")
    found = Missing(**QUICK)(asked)
    whole = row(found, "left+right")
    assert whole["mae_y_ev"] < 1e-5 < 5 < whole["mae_y_gpa"] and not {"mae", "rmse"} & whole.keys()
    spread = float(np.nanstd(train.targets[:, 1].numpy()))
    known = [i for i, sample in enumerate(rows_of(asked, "test").samples) if PRESSURE in sample.labels]
    # half of it, the other target being exact, where both are known
    assert whole["mae_over_std"] == pytest.approx(whole["mae_y_gpa"] / spread / 2 * len(known) / whole["n"], rel=1e-3)
    assert (
        row(found, "left")["reference_mae_over_std"] > 0.2 > 0.02 > row(found, "left+right")["reference_mae_over_std"]
    )
    assert "training rows" in row(found, "left")["reference"] and " to " in row(found, "left")["reference"]
    # the wrong variant, the plain mean, is that of the larger unit
    plain = Measure("regression", targets)
    values_, rows = predictor_in(asked).estimate(rows_of(asked, "test").samples).value, rows_of(asked, "test")
    assert plain.mean(values_, rows.targets) > 100 * plain.mean(values_[:, :1], rows.targets[:, :1])
    assert min(curve(Noise(**NOISE)(asked), "all", "mae_over_std")) > 0
    assert "mae_over_std" in Noise(**NOISE)(asked).text
    # targets of one unit keep it
    same = subject(linear_data, Both(TWO, factor=0.01), (LABEL, "z_ev"))
    assert Measure.of(predictor_in(same), lambda: train).headline == "mae"


def test_what_cannot_be_measured_is_refused(linear_data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = subject(linear_data, Both(TWO), (LABEL, PRESSURE))
    train = rows_of(asked, "train")
    constant = replace(train, targets=torch.cat([train.targets[:, :1], torch.ones_like(train.targets[:, 1:])], 1))
    with pytest.raises(DataError, match="y_gpa"):
        Measure.of(predictor_in(asked), lambda: constant)
    unlabelled = replace(train, targets=train.targets * torch.tensor([1.0, torch.nan]))
    with pytest.raises(DataError, match="'y_gpa' and any of"):
        references.References({}, asked, unlabelled).of(("left",))
    lacking = subject(linear_data, Difference(TWO), (LABEL,), delta=("no_ev",))
    with pytest.raises(ConfigError, match="no label 'no_ev'"):
        Noise(**NOISE)(lacking)
    metal = subject(linear_data, Metal(TWO), ("is_metal",), task="classification")
    number = subject(linear_data, Metal((("left",),)), ("is_metal",))
    monkeypatch.setattr(references, "load", lambda uri: number.model)
    with pytest.raises(ConfigError, match="no classification"):
        Missing(references={"left": "models:/other/1"}, **QUICK)(metal)
    # a reference that has seen the tested rows is none
    elsewhere = {"split": "extremes", "data_contents": tuple(linear_data.contents)}
    seen = subject(linear_data, Metal((("left",),)), ("is_metal",), task="classification", **elsewhere)
    monkeypatch.setattr(references, "load", lambda uri: seen.model)
    with pytest.raises(ConfigError, match="trained on split 'extremes'"):
        Missing(references={"left": "models:/other/1"}, **QUICK)(metal)
    for split, message in (("extremes", "on split"), ("folds", "on folds")):
        asked = subject(linear_data, Metal(TWO), ("is_metal",), **{**elsewhere, "split": split})
        with pytest.raises(ConfigError, match=message):
            check_unseen(asked)
    check_unseen(subject(linear_data, Metal(TWO), ("is_metal",), split="extremes", data_contents=("other",)))
    check_unseen(subject(linear_data, Metal(TWO), ("is_metal",), **{**elsewhere, "split": "chemical_system"}))


def test_the_reference_does_not_follow_a_feature_that_was_nearly_constant(linear_data: Dataset) -> None:
    asked = subject(linear_data, Linear(TWO), (LABEL,))
    train, test = rows_of(asked, "train"), rows_of(asked, "test")

    def with_moment(samples: list[Any], moment: float) -> list[Any]:
        found = []
        for i, sample in enumerate(samples):
            array = sample.arrays["left"]["values"].copy()
            array[4] = moment if i == 0 else 0.0
            found.append(replace(sample, arrays={**sample.arrays, "left": {"values": array}}))
        return found

    seen = replace(train, samples=with_moment(train.samples, 1e-3))
    probe = references.References({}, asked, seen).of(("left", "right"))
    far = probe(with_moment(test.samples, 1e3))
    assert float((far - test.targets).abs().max()) < 5
