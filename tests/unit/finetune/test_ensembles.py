from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.ensembles import (
    Ensemble,
    combine,
    error_parts,
    fit_weights,
    group_mean,
    mc_dropout,
    sampling_dropout,
    spread,
)
from finetune.loading import PropertyModel
from finetune.prediction import Prediction
from finetune.predictor import PredictorInfo
from shards.augment import Augmenter
from shards.errors import ConfigError
from shards.reader import Dataset
from shards.schema import ModalitySpec

K, N, T = 5, 200, 2


@pytest.fixture
def values() -> Tensor:
    return torch.randn(K, N, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    found = torch.randn(N, T, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found[::3, 0] = float("nan")
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_of_an_ensemble_is_that_of_its_members_minus_their_ambiguity(
    values: Tensor, targets: Tensor, weighted: bool
) -> None:
    weights = torch.rand(K, T, dtype=torch.float64).softmax(0) if weighted else None
    parts = error_parts(values, targets, weights)
    assert parts["mse_ensemble"] == pytest.approx(parts["mse_mean_member"] - parts["ambiguity"], rel=1e-12)
    # it is the error of what `combine` predicts
    known = ~targets.isnan()
    predicted = combine([Prediction(v) for v in values], weights=weights).value
    assert parts["mse_ensemble"] == pytest.approx(float((predicted - targets).square()[known].mean()))
    # the wrong variants: the sample variance, and a median instead of the mean
    assert parts["ambiguity"] * K / (K - 1) > 1.2 * (parts["mse_mean_member"] - parts["mse_ensemble"])
    median = combine([Prediction(v) for v in values], "median").value
    assert abs(float((median - targets).square()[known].mean()) - parts["mse_ensemble"]) > 0.01


def test_total_variance_is_noise_and_disagreement() -> None:
    members = [Prediction(torch.tensor([[v]]), std=torch.tensor([[s]])) for v, s in ((0.0, 3.0), (2.0, 5.0))]
    parts = spread(members)
    assert float(parts.aleatoric) == pytest.approx(17**0.5) and float(parts.epistemic) == 1
    assert float(parts.total) == pytest.approx(18**0.5)
    assert combine(members).std == parts.total and combine(members).value == 1
    # it is the variance of drawing a member, then a value
    draws = torch.cat([m.value + m.std * torch.randn(1, 200_000) for m in members if m.std is not None])
    assert float(draws.std()) == pytest.approx(18**0.5, rel=0.02)
    silent = [Prediction(torch.tensor([[v]])) for v in (0.0, 2.0)]
    assert float(spread(silent).aleatoric) == 0 and float(spread(silent).total) == 1


def test_medians_and_probabilities() -> None:
    three = [Prediction(torch.tensor([[v]])) for v in (0.0, 1.0, 50.0)]
    assert float(combine(three, "median").value) == 1 and float(combine(three).value) == pytest.approx(17)
    assert float(combine([*three, Prediction(torch.tensor([[2.0]]))], "median").value) == 1.5
    rows = [torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])]
    found = combine([Prediction(row.argmax(1, keepdim=True).float(), probabilities=row) for row in rows])
    # the mean of class NUMBERS 0 and 1 is no class
    assert found.value == 0 or found.value == 1
    assert found.probabilities is not None
    torch.testing.assert_close(found.probabilities, torch.tensor([[0.4, 0.4, 0.2]]))
    with pytest.raises(ConfigError, match="no weights"):
        combine(three, "median", torch.full((3, 1), 1 / 3))


def test_weights_of_out_of_fold_predictions(targets: Tensor) -> None:
    draw = torch.Generator().manual_seed(2)
    truth = targets.nan_to_num()
    noise = torch.randn(3, N, T, generator=draw, dtype=torch.float64)
    good, bad, shifted = truth + 0.5 * noise[0], truth + 1.0 * noise[1], truth + 100 + noise[2]
    weights = fit_weights(torch.stack([good, bad, shifted]), targets)
    torch.testing.assert_close(weights.sum(0), torch.ones(T, dtype=torch.float64))
    assert (weights >= 0).all()
    # by the inverse of their variances: 4 to 1, and nothing for what is far away
    assert weights[0].numpy() == pytest.approx([0.8, 0.8], abs=0.06)
    assert weights[2].abs().max() < 1e-3
    # on training rows a member that has learned them by heart gets everything, whatever it is worth
    memorised = fit_weights(torch.stack([good, truth]), targets)
    assert memorised[1].min() > 0.999
    unknown = fit_weights(torch.stack([good, bad]), torch.full((N, T), float("nan")))
    assert (unknown == 0.5).all()


def test_records_of_one_sample_count_as_one() -> None:
    prediction = Prediction(torch.tensor([[1.0], [10.0], [3.0]]), std=torch.tensor([[1.0], [2.0], [1.0]]))
    found, names = group_mean(prediction, ["b", "a", "b"])
    assert names == ["b", "a"] and found.value.tolist() == [[2.0], [10.0]]
    assert found.std is not None
    assert found.std.squeeze(1).tolist() == pytest.approx([2**0.5, 2.0])
    classes = Prediction(torch.tensor([[0.0], [1.0]]), probabilities=torch.tensor([[0.9, 0.1], [0.4, 0.6]]))
    assert group_mean(classes, ["x", "x"])[0].value.tolist() == [[0.0]]


class Dropping(nn.Module):
    """Batch statistics, dropout, and a transformer whose fused path would run past its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        return self.drop(self.norm(rows))

    def attend(self, rows: Tensor) -> Tensor:
        return self.layer(rows[:, None])[:, 0]


def test_only_dropout_is_switched_on() -> None:
    network = Dropping().eval()
    network.norm.train()
    rows = torch.randn(32, 6) + 5
    with torch.no_grad(), sampling_dropout(network):
        assert not network.norm.training
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert not torch.equal(network(rows), network(rows))
        assert not torch.equal(network.attend(rows), network.attend(rows))
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        # the wrong variant: training mode for everything changes the batch statistics
        network.train()
        network(rows)
        assert not torch.equal(before["norm.running_mean"], network.norm.running_mean)  # type: ignore[arg-type]
        network.eval()
    # every module is as it was
    assert network.norm.training and not network.drop.training and not network.layer.training
    with torch.no_grad():
        assert torch.equal(network.attend(rows), network.attend(rows))
    with pytest.raises(ConfigError, match="no dropout"), sampling_dropout(nn.Linear(2, 2)):
        pass


class Toy(nn.Module):
    """Predicts a multiple of the first number of modality ``a``, with dropout before it."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.drop = nn.Parameter(torch.tensor(slope), requires_grad=False), nn.Dropout(0.5)
        self.featurizer = SimpleNamespace(encoders={})

    def predict(self, batch: Any) -> Prediction:
        rows: Mapping[str, Tensor] = batch.inputs["a"]
        return Prediction(self.slope * self.drop(rows["values"])[:, :1])


def toy(dataset: Dataset, slope: float, target: str = "y_ev") -> PropertyModel:
    specs: dict[str, ModalitySpec] = {"a": dataset.modalities["a"]}
    info = PredictorInfo(
        targets=(target,), task="regression", modalities=("a",), head={}, foundation="none", foundation_seal="",
        strategy="by construction", metrics={},
    )  # fmt: skip
    return PropertyModel(info, Toy(slope).eval(), specs, Augmenter(specs, {}, training=False))  # type: ignore[arg-type]


def test_predictors_as_one(toy_folder: Any) -> None:
    dataset = Dataset(toy_folder, ["a"])
    samples = [sample for sample in (dataset[i] for i in range(40)) if "a" in sample.modalities]
    ensemble = Ensemble((toy(dataset, 1.0), toy(dataset, 3.0)))
    first = ensemble.predictions(samples)[0].value
    found = ensemble.estimate(samples)
    torch.testing.assert_close(found.value, 2 * first)
    assert found.std is not None
    torch.testing.assert_close(found.std, first.abs())
    with pytest.raises(ConfigError, match="different things"):
        Ensemble((toy(dataset, 1.0), toy(dataset, 1.0, "other")))

    draws = mc_dropout(toy(dataset, 1.0), samples, draws=8, seed=1)
    again = mc_dropout(toy(dataset, 1.0), samples, draws=8, seed=1)
    assert all(torch.equal(a.value, b.value) for a, b in zip(draws, again, strict=True))
    zeros = np.mean([float((draw.value == 0).float().mean()) for draw in draws])
    assert 0.35 < zeros < 0.65 and combine(draws).std is not None
