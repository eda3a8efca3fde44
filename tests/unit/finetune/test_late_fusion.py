from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.tree import DecisionTreeRegressor

from finetune.cross_validation import cross_validate
from finetune.folds import Fold, FoldPlan, make_folds
from finetune.late_fusion import (
    LateFused,
    LateFusion,
    LateFusionOptions,
    fit_late_fusion,
    fit_out_of_fold,
)
from shards.errors import CheckpointError, ConfigError, DataError
from shards.splits import SampleInfo

WEIGHTED = ("mean", "inverse_mse", "nnls", "lasso", "elastic_net", "simplex")
METHODS = (*WEIGHTED, "random_forest", "gradient_boosting")


def branches(count: int = 400, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Three views of a value around 5: a good one, a fair one, one that knows nothing."""
    rng = np.random.default_rng(seed)
    y = 5 + 2 * rng.normal(size=count)
    noise = rng.normal(size=(3, count))
    return {"good": y + 0.5 * noise[0], "fair": y + 1.0 * noise[1], "none": 5 + 2 * noise[2]}, y


def fit(method: str, predictions: dict[str, np.ndarray], y: np.ndarray, **options: object) -> LateFusion:
    ids = [str(i) for i in range(len(y))]
    return fit_late_fusion(
        LateFusionOptions(method=method, **options), predictions, y, ids=ids, trained_on={n: [] for n in predictions}
    )


def mse(values: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((values - y) ** 2))


@pytest.mark.parametrize("method", METHODS)
def test_the_combination_beats_the_mean_branch_and_the_right_ones_the_best(method: str) -> None:
    fusion = fit(method, *branches())
    predictions, y = branches(seed=1)
    error, alone = mse(fusion.predict(predictions), y), [mse(values, y) for values in predictions.values()]
    assert error < np.mean(alone)
    if method in ("nnls", "simplex"):
        assert error < min(alone), (error, alone)
    if method in WEIGHTED and method != "mean":
        weights = dict(zip(fusion.branches, fusion.weights, strict=True))
        assert weights["good"] > weights["fair"] > weights["none"] >= -0.05, weights


def test_the_weights_are_those_of_the_textbook() -> None:
    predictions, y = branches(20000)
    assert fit("mean", predictions, y).weights == (1 / 3,) * 3
    errors = np.array([mse(values, y) for values in predictions.values()])
    assert np.allclose(fit("inverse_mse", predictions, y).weights, (1 / errors) / (1 / errors).sum())
    # independent errors: least squares weighs by the inverse variances, the prior's (4) included
    optimum = np.array([1 / 0.25, 1.0, 0.0]) / (1 / 0.25 + 1.0 + 1 / 4)
    assert np.allclose(fit("nnls", predictions, y).weights, optimum, atol=0.02)
    assert np.allclose(fit("simplex", predictions, y).weights, [0.8, 0.2, 0.0], atol=0.03)


@pytest.mark.parametrize("method", ["lasso", "elastic_net"])
def test_penalties_have_no_unit(method: str) -> None:
    predictions, y = branches()
    fusion = fit(method, predictions, y)
    small = fit(method, {n: 1e-3 * p for n, p in predictions.items()}, 1e-3 * y)
    assert np.allclose(fusion.weights, small.weights) and sum(fusion.weights) > 0.3
    assert sum(fit(method, predictions, y, alpha=1e-4).weights) > sum(fusion.weights)


def overfitted(count: int = 200) -> dict[str, np.ndarray]:
    """C10: a tree that learns its training rows by heart, and a line that is right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * count, 8))
    y = x[:, 0] + 0.6 * rng.normal(size=2 * count)
    return {"x": x, "y": y, "train": np.arange(count), "test": np.arange(count, 2 * count)}


def test_weights_fitted_to_training_predictions_trust_the_branch_that_overfits() -> None:
    """The wrong variant gives the tree all the weight; out of fold the line gets it."""
    data = overfitted()
    x, y, train, test = data["x"], data["y"], data["train"], data["test"]
    models = {"tree": DecisionTreeRegressor(random_state=0), "line": Ridge(1e-3)}
    fitted = {name: model.fit(x[train], y[train]) for name, model in models.items()}
    held_out = {name: model.predict(x[test]) for name, model in fitted.items()}

    wrong = fit("nnls", {name: model.predict(x[train]) for name, model in fitted.items()}, y[train])
    infos = [SampleInfo(id=str(i)) for i in train]
    folds = make_folds(FoldPlan(), infos)
    make = {"tree": lambda fold: DecisionTreeRegressor(random_state=0), "line": lambda fold: Ridge(1e-3)}
    right = fit_out_of_fold(
        LateFusionOptions(), {name: cross_validate(make[name], x[train], y[train], folds) for name in make}
    )
    assert np.allclose(wrong.weights, [1.0, 0.0], atol=1e-3)
    assert right.weights[0] < 0.2 and right.weights[1] > 0.8
    bad, good = mse(wrong.predict(held_out), y[test]), mse(right.predict(held_out), y[test])
    assert bad > 1.7 * good and good <= 1.05 * mse(held_out["line"], y[test])


def test_rows_that_a_branch_was_trained_on_are_refused() -> None:
    predictions, y = branches(20)
    ids = [f"s{i}" for i in range(20)]
    seen = {"good": ["t1", "t2"], "fair": ["t1", "s7"], "none": []}
    with pytest.raises(DataError, match="'fair' was trained on 1 of the rows"):
        fit_late_fusion(LateFusionOptions(), predictions, y, ids=ids, trained_on=seen)
    with pytest.raises(ConfigError, match="what was branch"):
        fit_late_fusion(LateFusionOptions(), predictions, y, ids=ids, trained_on={"good": []})
    seen["fair"] = ["t1"]
    assert fit_late_fusion(LateFusionOptions(), predictions, y, ids=ids, trained_on=seen).weights


def test_branches_over_different_folds_are_refused() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    infos = [SampleInfo(id=str(i)) for i in range(30)]
    found = [
        cross_validate(lambda fold: Ridge(), x[:, None], y, make_folds(FoldPlan(seed=seed), infos)) for seed in (0, 1)
    ]
    with pytest.raises(DataError, match="other folds"):
        fit_out_of_fold(LateFusionOptions(), {"a": found[0], "b": found[1]})


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_modality_leaves_a_usable_combination_of_the_others(method: str) -> None:
    fusion = fit(method, *branches(2000))
    predictions, y = branches(seed=1)
    whole = fusion.predict(predictions)
    for name in predictions:
        some = dict(predictions)
        some[name] = np.where(np.arange(len(y)) % 2 == 0, np.nan, predictions[name])
        found = fusion.predict(some)
        assert np.isfinite(found).all()
        assert np.array_equal(found[1::2], whole[1::2]), "rows that have all are as they were"
        if name != "good" and method != "mean":
            assert mse(found[::2], y[::2]) < 0.6 * np.var(y)
    none = fusion.predict({name: np.full(3, np.nan) for name in predictions})
    assert np.isfinite(none).all()
    if method in WEIGHTED:
        assert np.allclose(none, fusion.centre)
        assert np.allclose(fusion.predict({n: predictions[n] for n in ("good", "fair")}),
                           fusion.predict({**predictions, "none": np.full(len(y), np.nan)}))  # fmt: skip


def test_weights_are_scaled_up_over_what_is_there() -> None:
    fusion = LateFusion(method="nnls", branches=("a", "b", "c"), weights=(0.6, 0.3, 0.0), centre=1.0)
    one, gone = np.ones(1), np.full(1, np.nan)
    assert fusion.predict({"a": 3 * one, "b": 5 * one, "c": 0 * one}) == pytest.approx(1 + 0.6 * 2 + 0.3 * 4)
    assert fusion.predict({"a": 3 * one, "b": gone, "c": 9 * one}) == pytest.approx(1 + 0.9 * 2)
    # c alone has no weight that could be scaled: what there is counts by itself
    assert fusion.predict({"a": gone, "b": gone, "c": 9 * one}) == pytest.approx(1 + 0.9 * 8)
    # two halves of a sum: one of them alone predicts what it predicts, not twice that
    halves = LateFusion(method="nnls", branches=("a", "b"), weights=(1.0, 1.0), centre=0.0)
    assert halves.predict({"a": 3 * one, "b": gone}) == pytest.approx(3.0)
    # the wrong variant: a missing prediction counted as 0
    assert pytest.approx(float(fusion.predict({"a": 3 * one, "b": gone, "c": gone})[0])) != 0.6 * 3


def test_rows_that_lack_a_modality_still_weigh_the_others() -> None:
    predictions, y = branches(500)
    gaps = {
        name: np.where(np.arange(500) % 3 == i, np.nan, values) for i, (name, values) in enumerate(predictions.items())
    }
    assert np.argmax(fit("inverse_mse", gaps, y).weights) == 0
    with pytest.raises(DataError, match="0 rows have all branches"):
        fit("nnls", gaps, y)
    assert np.isfinite(fit("random_forest", gaps, y, trees=10).predict(gaps)).all()


@pytest.mark.parametrize("method", WEIGHTED)
def test_weights_are_stored_as_json(method: str, tmp_path) -> None:
    fusion = fit(method, *branches())
    fusion.write(tmp_path / "late.json")
    again = LateFusion.read(tmp_path / "late.json")
    assert again == fusion and np.array_equal(again.predict(branches()[0]), fusion.predict(branches()[0]))


def test_what_is_no_stored_fusion_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="without pickle"):
        fit("random_forest", *branches(30), trees=5).write(tmp_path / "late.json")
    bad = {
        "more": '{"method": "nnls", "branches": ["a"], "weights": [1, 2], "centre": 0}',
        "stacking": '{"method": "random_forest", "branches": ["a"], "weights": [], "centre": 0}',
        "unknown": '{"method": "nnls", "branches": ["a"], "weights": [1], "centre": 0, "run": "rm"}',
        "nan": '{"method": "nnls", "branches": ["a"], "weights": [NaN], "centre": 0}',
        "binary": "\x80",
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError):
            LateFusion.read(tmp_path / name)


def test_a_branch_that_was_not_fitted_is_refused() -> None:
    predictions, y = branches(30)
    fusion = fit("nnls", predictions, y)
    with pytest.raises(DataError, match="no branch"):
        fusion.predict({"other": y})
    with pytest.raises(ValueError, match="alpha"):
        LateFusionOptions(method="nnls", alpha=0.1)


def test_inside_a_fold_the_weights_see_neither_held_out_rows_nor_torn_groups() -> None:
    """Near copies of rows: with groups the tree that learns by heart gets little weight; torn apart it gets it all."""
    rng = np.random.default_rng(0)
    base, groups = rng.normal(size=(40, 8)), np.repeat(np.arange(40), 4)
    x = base[groups] + 1e-3 * rng.normal(size=(160, 8))
    y = (base[:, 0] + rng.normal(size=40))[groups]
    infos = [SampleInfo(id=str(i), group=f"g{g}") for i, g in enumerate(groups)]
    folds = make_folds(FoldPlan(folds=4), infos)

    def make(torn: bool):
        def model(fold: Fold) -> LateFused:
            names = [str(row) if torn else f"g{groups[row]}" for row in fold.train]
            trees = {"tree": lambda: DecisionTreeRegressor(random_state=0), "line": lambda: Ridge(1.0)}
            return LateFused(trees, LateFusionOptions(), groups=names)

        return model

    features = {"tree": x, "line": x}
    right = cross_validate(make(False), features, y, folds)
    wrong = cross_validate(make(True), features, y, folds)
    weights = [np.mean([model.fusion.weights[0] for model in found.models]) for found in (right, wrong)]
    assert weights[0] < 0.4 and weights[1] > 0.9
    assert right.score("regression")["mae"] < wrong.score("regression")["mae"]


def test_branches_are_fitted_to_the_rows_that_have_their_modality() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4))
    y = x.sum(1)
    features = {"left": x[:, :2].copy(), "right": x[:, 2:].copy()}
    features["right"][::3] = np.nan
    truth, y = y, np.where(np.arange(120) % 10 == 0, np.nan, y)
    infos = [SampleInfo(id=str(i)) for i in range(120)]
    found = cross_validate(
        lambda fold: LateFused(
            {"left": lambda: Ridge(0.1), "right": lambda: Ridge(0.1)},
            LateFusionOptions(),
            groups=[str(i) for i in fold.train],
        ),
        features,
        y,
        make_folds(FoldPlan(), infos),
    )
    values = found.by_row()
    assert np.isfinite(values).all()
    assert mse(values[1::3], truth[1::3]) < 0.1 < mse(values[::3], truth[::3]) < np.var(truth)
