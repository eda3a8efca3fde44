"""Noise on the inputs: the exact law of a linear model, and the figures that are derived."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.evaluations.base import Subject
from finetune.evaluations.noise import Noise, doubling_of, noisy, noisy_values, slope_of, training_scales
from finetune.evaluations.rows import Measure, rows_of
from finetune.loading import PropertyModel
from finetune.prediction import Prediction
from shards.augment import Augmenter
from shards.batch import Batch
from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from tests.synthetic import GRAPH_FIELDS, graph
from tests.unit.finetune.evaluations.linear import LABEL, WEIGHTS, Linear, info_of, linear_model

GROUPS = (("left",), ("right",))


@pytest.fixture
def subject(linear_data: Dataset) -> Subject:
    # a bias, so that the error without noise is not 0
    model = linear_model(linear_data, GROUPS, predictor=Linear(GROUPS, bias=0.3))
    return Subject(model=model, dataset=linear_data, split="chemical_system")


def train_values(dataset: Dataset, name: str) -> np.ndarray:
    return np.stack([dataset[int(i)].arrays[name]["values"] for i in dataset.positions("chemical_system", "train")])


def test_the_scale_is_the_standard_deviation_in_training_of_every_feature(linear_data: Dataset) -> None:
    specs = {name: linear_data.modalities[name] for name in ("left", "right")}
    train = [linear_data[int(i)] for i in linear_data.positions("chemical_system", "train")]
    scales = training_scales(specs, train)
    for name in specs:
        np.testing.assert_allclose(
            scales[name]["values"], train_values(linear_data, name).astype(np.float64).std(0), rtol=1e-9, atol=1e-9
        )


def test_a_linear_model_obeys_the_exact_law(subject: Subject, linear_data: Dataset) -> None:
    model = subject.model
    assert isinstance(model, PropertyModel)
    rows, sigma, draws = rows_of(subject, "test"), 0.3, 60
    scales = training_scales(
        model.specs, (linear_data[int(i)] for i in linear_data.positions("chemical_system", "train"))
    )
    plain = (model.estimate(rows.samples).value - rows.targets).square().mean()

    def distance(chosen: dict[str, dict[str, np.ndarray]]) -> float:
        """MSE(sigma) - MSE(0) - sigma^2 sum (w s)^2, in standard errors."""
        errors = [
            float(
                (noisy_values(model, rows.samples, chosen, sigma, seed=(0, r)) - rows.targets).square().mean() - plain
            )
            for r in range(draws)
        ]
        law = sigma**2 * sum(float(((WEIGHTS[name] * scales[name]["values"]) ** 2).sum()) for name in scales)
        return abs(np.mean(errors) - law) / (np.std(errors, ddof=1) / np.sqrt(draws))

    assert distance(scales) < 3
    # the wrong variant: one scale for all features of a modality
    assert distance({n: {"values": np.full(6, s["values"].mean())} for n, s in scales.items()}) > 3


def test_without_noise_it_is_the_plain_evaluation_to_the_last_bit(subject: Subject) -> None:
    model = subject.model
    assert isinstance(model, PropertyModel)
    rows = rows_of(subject, "test")
    plain = Measure("regression", (LABEL,)).metrics(model.estimate(rows.samples).value, rows.targets)
    findings = Noise(sigmas=(0.0, 0.1, 0.5), repeats=3)(subject)
    for line in findings.tables["noise"]:
        assert (line["sigma"] == 0) == ({key: line[key] for key in plain} == plain)
    assert [line["modality"] for line in findings.tables["slopes"]] == ["left", "right", "all"]
    whole = {line["modality"]: line["mae"] for line in findings.tables["noise"] if line["sigma"] == 0.5}
    assert whole["all"] > whole["right"] > plain["mae"]
    again = Noise(sigmas=(0.0, 0.1, 0.5), repeats=3)(subject)
    assert again.tables["noise"] == findings.tables["noise"]


def test_slope_and_doubling() -> None:
    sigmas = [0.0, 0.1, 0.2, 0.5]
    assert slope_of(sigmas, [2 * np.exp(3 * s) for s in sigmas]) == pytest.approx(3)
    assert slope_of(sigmas, [0.0, 1.0, 2.0, 3.0]) is None
    assert doubling_of(sigmas, [1.0, 1.2, 1.8, 2.4]) == pytest.approx(0.2 + 0.3 * (0.2 / 0.6))
    assert doubling_of(sigmas, [1.0, 1.2, 1.8, 1.9]) is None


def test_integers_stay_and_floats_keep_their_precision() -> None:
    rng = np.random.default_rng(0)
    fields = {**GRAPH_FIELDS, "half": FieldSpec(dtype="float16", shape=(3,))}
    spec = ModalitySpec(name="crystal", kind="graph", fields=fields)
    samples = [
        Sample(id=str(i), arrays={"crystal": {**graph(rng, atoms=4, edges=5), "half": np.ones(3, np.float16) * i}})
        for i in range(5)
    ]
    scales = training_scales({"crystal": spec}, samples)
    positions = np.concatenate([sample.arrays["crystal"]["position"] for sample in samples]).astype(np.float64)
    np.testing.assert_allclose(scales["crystal"]["position"], positions.std(0)[None], rtol=1e-6)
    assert set(scales["crystal"]) == {"position", "cell", "half"}
    moved = noisy(samples[0], scales, 0.5, rng).arrays["crystal"]
    for name, value in samples[0].arrays["crystal"].items():
        assert moved[name].dtype == value.dtype
        assert (moved[name] == value).all() == (name in ("number", "edge"))


def test_flips_are_counted_for_classes(linear_data: Dataset) -> None:
    class Sign(torch.nn.Linear):
        def predict(self, batch: Batch) -> Prediction:
            values = batch.inputs["left"]["values"]
            assert isinstance(values, torch.Tensor)
            return Prediction((values[:, 1:2] > 0).float())

    specs = {"left": linear_data.modalities["left"]}
    info = info_of("is_metal", "classification", ["left"])
    model = PropertyModel(info, Sign(1, 1), specs, Augmenter(specs, {}, training=False))  # type: ignore[arg-type]
    findings = Noise(sigmas=(0.0, 0.05, 2.0), repeats=4)(
        Subject(model=model, dataset=linear_data, split="chemical_system")
    )
    flips = [line["flips"] for line in findings.tables["noise"]]
    assert flips[0] == 0 < flips[1] < flips[2] < 0.5
    # the truth is the sign without noise: what flips is wrong
    assert flips == pytest.approx([line["error_rate"] for line in findings.tables["noise"]])
