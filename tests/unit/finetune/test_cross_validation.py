from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune.cross_validation import EstimatorModel, balanced, cross_validate
from finetune.estimators.base import ESTIMATORS
from finetune.fold_leakage import fold_leakage, material_leakage, row_digests
from finetune.folds import Fold, FoldPlan, dataset_folds, make_folds
from shards.errors import DataError
from shards.leakage import find_leakage
from shards.reader import Dataset
from shards.splits import SampleInfo


def rows(count: int, copies: int = 1, *, grouped: bool = True) -> list[SampleInfo]:
    return [
        SampleInfo(id=f"s{i}.{c}", group=f"s{i}" if grouped else "") for i in range(count) for c in range(copies)
    ]  # fmt: skip


def near_copies(count: int = 60, copies: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A label that has nothing to do with the features, every sample measured five times with small noise."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(count, 10)), copies, axis=0)
    y = np.repeat(rng.normal(size=count), copies)
    return x + 0.01 * rng.normal(size=x.shape), y


def forest(fold: Fold) -> RandomForestRegressor:
    return RandomForestRegressor(20, random_state=0)


def test_near_copies_look_like_knowledge_unless_groups_stay_together() -> None:
    """The label is independent of the features: what can be known is R2 = 0. Folds by rows say 0.9 and more."""
    torn, whole = [], []
    for seed in range(3):
        x, y = near_copies(seed=seed)
        for grouped, scores in ((False, torn), (True, whole)):
            folds = make_folds(FoldPlan(), rows(60, 5, grouped=grouped))
            scores.append(cross_validate(forest, x, y, folds).score("regression")["r2"])
    assert min(torn) > 0.9, torn
    assert max(whole) < 0.1 and np.mean(whole) < 0.0, whole


def test_the_leakage_report_tells_the_two_apart() -> None:
    x, _ = near_copies()
    torn = fold_leakage({"x": x}, make_folds(FoldPlan(), rows(60, 5, grouped=False)))
    whole = fold_leakage({"x": x}, make_folds(FoldPlan(), rows(60, 5)))
    assert all(row["near"] > 0.9 and row["nearest"] < 0.05 for row in torn)
    assert all(row["near"] == 0.0 and row["nearest"] > 0.3 for row in whole)
    assert not any(row["equal"] for row in torn), "near copies have digests of their own"


class Spy(BaseEstimator, TransformerMixin):
    """Remembers what it was fitted to."""

    def fit(self, x: Any, y: Any = None) -> Spy:
        self.seen_ = set(np.asarray(x)[:, 0])
        return self

    def transform(self, x: Any) -> Any:
        return x


def test_nothing_that_is_fitted_sees_a_row_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    folds = make_folds(FoldPlan(repeats=2), rows(50))
    found = cross_validate(lambda fold: make_pipeline(Spy(), StandardScaler(), Ridge()), x, y, folds)
    for fold, model in zip(found.folds, found.models, strict=True):
        assert model.steps[0][1].seen_ == set(x[fold.train, 0])  # type: ignore[attr-defined]
        assert np.allclose(model.steps[1][1].mean_, x[fold.train].mean(0))  # type: ignore[attr-defined]
    # the wrong variant: one model, fitted before the rows are divided
    early = Spy().fit(x)
    assert all(early.seen_ & set(x[fold.test, 0]) for fold in folds)


def test_features_selected_before_the_folds_predict_noise() -> None:
    """Hastie, Tibshirani and Friedman, section 7.10.2: the right way selects inside the fold."""
    inside, before = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(60, 5000)), rng.normal(size=60)
        folds = make_folds(FoldPlan(), rows(60))
        right = cross_validate(lambda fold: make_pipeline(SelectKBest(f_regression, k=100), Ridge()), x, y, folds)
        early = SelectKBest(f_regression, k=100).fit_transform(x, y)
        wrong = cross_validate(lambda fold: Ridge(), early, y, folds)
        inside.append(right.score("regression")["r2"])
        before.append(wrong.score("regression")["r2"])
    assert min(before) > 0.7 and max(inside) < 0.25 and np.mean(inside) < 0.0, (before, inside)


def test_a_vocabulary_is_that_of_the_training_texts() -> None:
    texts = [f"oxide word{i}" for i in range(20)]
    folds = make_folds(FoldPlan(), rows(20))
    found = cross_validate(
        lambda fold: make_pipeline(CountVectorizer(), Ridge()), texts, np.arange(20.0), folds
    )  # fmt: skip
    for fold, model in zip(found.folds, found.models, strict=True):
        words = set(model.steps[0][1].vocabulary_)  # type: ignore[attr-defined]
        assert words == {"oxide"} | {f"word{i}" for i in fold.train}


def test_resampling_before_the_folds_is_refused_and_inside_it_reaches_the_training_rows_alone() -> None:
    """The lesson of OEKRF: 77 % without, 93 % with resampling of the whole data set before they are divided."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 6)), (rng.random(120) < 0.25).astype(float)
    nearest = lambda fold: KNeighborsClassifier(1)  # noqa: E731
    early = balanced(y, rng)
    folds = make_folds(FoldPlan(), rows(len(early)))
    with pytest.raises(DataError, match="training rows too"):
        cross_validate(nearest, x[early], y[early], folds)
    inflated = cross_validate(nearest, x[early], y[early], folds, duplicates="allow").score("classification")

    seen: list[np.ndarray] = []

    def spied(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(balanced(targets, rng))
        return seen[-1]

    folds = make_folds(FoldPlan(), rows(120))
    honest = cross_validate(nearest, x, y, folds, resample=spied).score("classification")
    assert inflated["auroc"] > 0.75 and honest["auroc"] < 0.6
    for fold, chosen in zip(folds, seen, strict=True):
        assert chosen.max() < len(fold.train)
        assert y[fold.train[chosen]].mean() == 0.5, "classes are balanced"


def test_equal_rows_are_found_in_every_kind_of_features() -> None:
    texts = np.array(["a", "b", "a", "c"])
    arrays = [{"x": np.zeros(2000)}, {"x": np.eye(2000)[1000]}, {"x": -np.zeros(2000)}, {"x": np.ones(2000)}]
    for values in (texts, list(texts), arrays, np.array([0.0, 1.0, -0.0, 2.0])[:, None]):
        digests = row_digests(values)
        assert digests[0] == digests[2] and len(set(digests)) == 3
    both = row_digests({"text": list(texts), "x": np.arange(4.0)})
    assert len(set(both)) == 4
    table = fold_leakage({"text": list(texts)}, [Fold("f", np.array([0, 1]), np.array([2, 3]))])
    assert table[0]["equal"] == 1 and np.isnan(table[0]["nearest"])


def test_materials_that_are_alike_are_counted_fold_by_fold(toy: Dataset) -> None:
    report = find_leakage(toy)
    report.alike["text"].append([toy.ids[0], toy.ids[59]])
    torn = [Fold("torn", np.arange(30), np.arange(30, 60))]
    (row,) = [row for row in material_leakage(report, toy.ids, torn) if row["kind"] == "same text"]
    assert row["rows"] == 1
    whole = dataset_folds(FoldPlan(by="chemical_system", folds=3), toy)
    assert not sum(row["rows"] for row in material_leakage(report, toy.ids, whole) if row["kind"] == "same group")


def test_predictions_come_back_in_the_order_of_the_rows_and_rounds_are_averaged() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = np.stack([x @ [1, 2, 3], x @ [3, 2, 1]], axis=1)
    folds = make_folds(FoldPlan(repeats=3), rows(40))
    found = cross_validate(lambda fold: Ridge(1e-9), x, y, folds)
    assert np.allclose(found.by_row(), y, atol=1e-6)
    assert len(found.scores("regression")) == 15 and found.score("regression")["r2"] > 0.999
    alone = cross_validate(lambda fold: Ridge(1e-9), x, y, folds[:1])
    assert np.isnan(alone.by_row()[folds[0].train]).all() and np.isfinite(alone.by_row()[folds[0].test]).all()


def test_rows_without_a_target_are_not_fitted_to() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    y = np.where(np.arange(30) % 3 == 0, np.nan, x[:, 0])
    probe = ESTIMATORS.options({"kind": "linear_probe"})
    found = cross_validate(
        lambda fold: EstimatorModel(probe, task="regression", seed=0), x, y, make_folds(FoldPlan(), rows(30))
    )  # fmt: skip
    assert np.allclose(found.by_row(), x[:, 0], atol=0.05)


def test_folds_of_other_data_and_folds_that_overlap_are_refused() -> None:
    x, y = np.arange(10.0)[:, None], np.arange(10.0)
    for train, test, what in (([0, 1], [1, 2], "fitted to"), ([0], [10], "other data"), ([], [1], "empty")):
        fold = Fold("f", np.array(train, int), np.array(test, int))
        with pytest.raises(DataError, match=what):
            cross_validate(lambda fold: Ridge(), x, y, [fold])
