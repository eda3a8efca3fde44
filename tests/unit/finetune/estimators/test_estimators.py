from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.estimators.base import ESTIMATORS, Estimator
from finetune.estimators.several import FittedTargets, fit_targets
from shards.errors import CheckpointError, ConfigError, DataError

SMALL = {
    "random_forest": {"trees": 30},
    "gradient_boosting": {"rounds": 30},
    "linear_probe": {"inverse_strengths": 3},
}
KINDS = ("mean", "linear_probe", "random_forest", "gradient_boosting", "knn", "svr")
CLASSES = tuple(kind for kind in KINDS if kind != "svr")


def estimator(kind: str, **options: object) -> Estimator:
    return ESTIMATORS.options({"kind": kind, **SMALL.get(kind, {}), **options})


def rows(count: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of very different scales, and a value that depends on two of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5))
    return x * [1, 1e3, 1e-3, 1, 1], 3 + 2 * x[:, 0] - x[:, 1] + 0.05 * rng.normal(size=count)


def fit(kind: str, x: np.ndarray, y: np.ndarray, task: str = "regression", seed: int = 0):
    return estimator(kind).fit(x, y, task=task, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_is_predicted_better_than_by_the_mean_and_the_same_again(kind: str) -> None:
    x, y = rows()
    new, truth = rows(seed=1)
    predicted = fit(kind, x, y).predict(new)
    assert predicted.shape == truth.shape
    share = np.mean((predicted - truth) ** 2) / np.var(truth)
    assert 0.9 < share < 1.2 if kind == "mean" else share < 0.35, share
    assert np.array_equal(predicted, fit(kind, x, y).predict(new)), "the seed says everything"


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_get_probabilities_that_add_up_to_one(kind: str) -> None:
    x, y = rows()
    new, truth = rows(seed=1)
    two = fit(kind, x, (y > 3).astype(float), "classification")
    probability = two.predict(new)
    assert ((probability >= 0) & (probability <= 1)).all()
    assert np.allclose(two.probabilities(new).sum(1), 1) and np.array_equal(two.probabilities(new)[:, 1], probability)
    # class 1 never occurs in training
    three = fit(kind, x, np.select([y < 2, y < 4], [0.0, 2.0], 3.0), "multiclass")
    shares = three.probabilities(new)
    assert shares.shape == (len(new), 4) and np.allclose(shares.sum(1), 1) and not shares[:, 1].any()
    assert np.array_equal(three.predict(new), shares.argmax(1))
    accuracy = np.mean((probability > 0.5) == (truth > 3))
    assert accuracy < 0.7 if kind == "mean" else accuracy > 0.8, accuracy


def test_the_mean_of_classes_is_the_share_and_the_most_frequent_class() -> None:
    x = np.zeros((10, 2))
    assert np.allclose(fit("mean", x, np.repeat([0.0, 1.0], [7, 3]), "classification").predict(x), 0.3)
    assert set(fit("mean", x, np.repeat([0.0, 2.0], [3, 7]), "multiclass").predict(x)) == {2.0}


def test_the_linear_probe_is_scikit_learns_pipeline_as_arrays() -> None:
    x, y = rows()
    reference = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 33))).fit(x, y)
    fitted = estimator("linear_probe").fit(x, y, task="regression", seed=0)
    assert np.allclose(fitted.predict(x), reference.predict(x), atol=1e-10)
    for target, task in ((y > 3, "classification"), (np.digitize(y, [2, 4]), "multiclass")):
        classes = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=3, cv=5, max_iter=2000)).fit(x, target * 1.0)
        fitted = fit("linear_probe", x, target * 1.0, task)
        assert np.allclose(fitted.probabilities(x), classes.predict_proba(x), atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_feature_is_filled_by_the_training_rows_alone(kind: str) -> None:
    x, y = rows()
    x[::7, 2] = np.nan
    x[:, 4] = np.nan
    fitted = fit(kind, x, y)
    row = x[:1].copy()
    row[0, 2] = np.nan
    # what else is predicted with it must not matter
    among = np.concatenate([row, np.full((5, x.shape[1]), 1e6)])
    assert np.isfinite(fitted.predict(row)).all()
    assert np.allclose(fitted.predict(row)[0], fitted.predict(among)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_that_are_all_equal_and_classes_of_one_row_are_no_error(kind: str) -> None:
    x, y = rows(12)
    assert np.allclose(fit(kind, x, np.full(12, 2.5)).predict(x), 2.5)
    if kind in CLASSES:
        assert np.allclose(fit(kind, x, np.ones(12), "classification").predict(x), 1)
        probability = fit(kind, x, np.eye(12)[0], "classification").predict(x)
        assert np.isfinite(probability).all()
    assert np.isfinite(fit(kind, x[:1], y[:1]).predict(x)).all()


@pytest.mark.parametrize("kind", ["linear_probe", "knn", "svr"])
def test_a_feature_that_hardly_varied_in_training_does_not_run_away(kind: str) -> None:
    """As Magpie's mode of the magnetic moment: noise of 1e-7 in training, 2 in one held-out material."""
    x, y = rows()
    x[:, 4] *= 1e-7
    new, truth = rows(seed=1)
    new[:, 4] *= 1e-7
    new[0, 4] = 2.0
    predicted = fit(kind, x, y).predict(new)
    assert abs(predicted[0] - truth[0]) < 6 * truth.std(), predicted[0]
    if kind == "linear_probe":
        wild = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 33))).fit(x, y).predict(new)
        assert abs(wild[0] - truth[0]) > 1e4, "the wrong variant follows it"


def test_several_targets_are_each_fitted_to_the_rows_that_know_them() -> None:
    x, y = rows()
    targets = np.stack([y, 10 * y], axis=1)
    targets[:60, 1] = np.nan
    fitted = fit_targets(estimator("linear_probe"), x, targets, names=("a_ev", "b_ev"), task="regression", seed=0)
    alone = fit("linear_probe", x[60:], 10 * y[60:])
    assert fitted.predict(x).value.shape == (120, 2)
    assert np.allclose(fitted.predict(x).value[:, 1], alone.predict(x), rtol=1e-5)
    targets[:, 1] = np.nan
    with pytest.raises(DataError, match="b_ev"):
        fit_targets(estimator("mean"), x, targets, names=("a_ev", "b_ev"), task="regression", seed=0)


@pytest.mark.parametrize("kind", ["mean", "linear_probe"])
@pytest.mark.parametrize("task", ["regression", "classification", "multiclass"])
def test_linear_models_are_stored_without_pickle(kind: str, task: str, tmp_path) -> None:
    x, y = rows()
    x[::9, 1] = np.nan
    target = {"regression": y, "classification": y > 3, "multiclass": np.digitize(y, [2, 4])}[task] * 1.0
    fitted = fit_targets(estimator(kind), x, target[:, None], names=("gap_ev",), task=task, seed=0)
    fitted.write(tmp_path / "fitted.safetensors")
    again = FittedTargets.read(tmp_path / "fitted.safetensors")
    assert again.targets == ("gap_ev",) and again.task == task
    assert torch.equal(again.predict(x).value, fitted.predict(x).value)
    if task == "multiclass":
        assert torch.equal(again.predict(x).probabilities, fitted.predict(x).probabilities)


@pytest.mark.parametrize("kind", ["random_forest", "gradient_boosting", "knn", "svr"])
def test_what_would_need_pickle_is_not_stored(kind: str, tmp_path) -> None:
    x, y = rows(30)
    fitted = fit_targets(estimator(kind), x, y[:, None], names=("gap_ev",), task="regression", seed=0)
    with pytest.raises(ConfigError, match="cannot be stored"):
        fitted.write(tmp_path / "fitted.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_foreign_file_is_refused(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError):
        FittedTargets.read(path)


def test_wrong_input_is_named() -> None:
    x, y = rows(20)
    with pytest.raises(DataError, match="unknown or infinite"):
        fit("mean", x, np.where(np.arange(20) == 3, np.nan, y))
    with pytest.raises(DataError, match="no \\(N, F\\)"):
        fit("mean", x, y[:5])
    with pytest.raises(ConfigError, match="predicts values"):
        fit("svr", x, (y > 3) * 1.0, "classification")
    with pytest.raises(ConfigError, match="random_forest"):
        ESTIMATORS.options({"kind": "random_forrest"})
