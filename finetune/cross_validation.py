"""Cross-validation in which everything that is fitted is fitted inside the fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from finetune.estimators.base import Estimator, Fitted
from finetune.fold_leakage import in_both, row_digests
from finetune.folds import Fold
from finetune.metrics import evaluate
from shards.errors import DataError

Features = Any  # an array, a sequence of anything, or a dict of these: N rows
Resample = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Model(Protocol):
    """What is cross-validated: any scikit-learn pipeline, or anything with these two methods."""

    def fit(self, features: Any, targets: np.ndarray, /) -> Any:
        """Fit scalers, vocabularies, selections and weights to these rows."""

    def predict(self, features: Any, /) -> np.ndarray:
        """Return (N,) or (N, T) predictions."""


class EstimatorModel:
    """An estimator plug-in for one target, under the interface of `Model`."""

    def __init__(self, estimator: Estimator, *, task: str, seed: int) -> None:
        self.estimator, self.task, self.seed = estimator, task, seed
        self.fitted: Fitted | None = None

    def fit(self, features: np.ndarray, targets: np.ndarray) -> EstimatorModel:
        """Fit to features (N, F) and targets (N,)."""
        self.fitted = self.estimator.fit(features, targets, task=self.task, seed=self.seed)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,); see `finetune.estimators.base.Fitted`."""
        assert self.fitted is not None, "fit before predicting"
        return self.fitted.predict(features)


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of rows by models that were fitted without them.

    Attributes
    ----------
    folds : tuple of Fold
        Which rows each model was fitted to, and which it predicted.
    models : tuple of Model
        One a fold, fitted.
    predictions : tuple of ndarray
        One a fold, (n, ...) for its n held-out rows.
    targets : ndarray
        (N, ...) of all rows.
    """

    folds: tuple[Fold, ...]
    models: tuple[Model, ...]
    predictions: tuple[np.ndarray, ...]
    targets: np.ndarray

    def by_row(self) -> np.ndarray:
        """Return (N, ...): the mean over the folds that held a row out, NaN where none did."""
        total = np.zeros((len(self.targets), *self.predictions[0].shape[1:]))
        times = np.zeros(len(self.targets))
        for fold, values in zip(self.folds, self.predictions, strict=True):
            total[fold.test] += values
            times[fold.test] += 1
        total[times == 0] = np.nan
        return total / np.maximum(times, 1).reshape(-1, *[1] * (total.ndim - 1))

    def scores(self, task: str) -> list[dict[str, float]]:
        """Return the metrics of every fold on its held-out rows."""
        return [
            evaluate(task, _columns(values), _columns(self.targets[fold.test]))
            for fold, values in zip(self.folds, self.predictions, strict=True)
        ]

    def score(self, task: str) -> dict[str, float]:
        """Return the metrics of all rows that were held out, together: of small folds R2 alone is no mean of theirs."""
        values = self.by_row()
        tested = ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
        return evaluate(task, _columns(values[tested]), _columns(self.targets[tested]))


def cross_validate(
    make_model: Callable[[Fold], Model],
    features: Features,
    targets: np.ndarray,
    folds: Sequence[Fold],
    *,
    resample: Resample | None = None,
    seed: int = 0,
    duplicates: Literal["error", "allow"] = "error",
) -> OutOfFold:
    """Fit a new model to the training rows of every fold and predict the rows that it holds out.

    A model gets nothing but its training rows: what it fits (scaler, vocabulary, selection of features, weights of a
    late fusion) cannot have seen the others. What is fitted before this function is called has.

    Parameters
    ----------
    make_model : callable
        Fold to a new, unfitted model; ``fold.train`` are the very rows that the model will get, in their order, so that
        it can choose inner folds by their groups.
    features : ndarray, sequence or dict of these
        N rows.
    targets : ndarray
        (N,) or (N, T), NaN where unknown; rows of which no target is known are predicted and not fitted to.
    folds : sequence of Fold
        From `finetune.folds` or `finetune.pair_folds`.
    resample : callable, optional
        Gets the targets (n, ...) of a fold's training rows and a generator, returns which of these rows are fitted to,
        with repetition (see `balanced`). It is never applied to held-out rows.
    seed : int
        Of the resampling.
    duplicates : str
        ``error`` refuses rows of equal features and target in both parts of a fold: the mark of data that were
        resampled, augmented or copied before they were divided. ``allow``: they are equal by nature.
    """
    targets = np.asarray(targets, np.float64)
    for fold in folds:
        _check(fold, len(targets))
    if duplicates == "error":
        refuse_duplicates(features, targets, folds)
    models, predictions = [], []
    for number, fold in enumerate(folds):
        rows = fold.train[~np.isnan(targets[fold.train].reshape(len(fold.train), -1)).all(axis=1)]
        if not len(rows):
            raise DataError(f"no target of the training rows is known in {fold.name}")
        if resample is not None:
            rows = rows[resample(targets[rows], np.random.default_rng([seed, number]))]
        model = make_model(replace(fold, train=rows))
        model.fit(take(features, rows), targets[rows])
        models.append(model)
        predictions.append(np.asarray(model.predict(take(features, fold.test)), np.float64))
    return OutOfFold(tuple(folds), tuple(models), tuple(predictions), targets)


def balanced(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows with repetition so that each class of targets (n,) is as frequent as the most frequent one."""
    classes, counts = np.unique(targets, return_counts=True)
    drawn = [
        rng.choice(np.flatnonzero(targets == label), counts.max() - count)
        for label, count in zip(classes, counts, strict=True)
    ]
    return np.concatenate([np.arange(len(targets)), *drawn])


def take(features: Features, rows: np.ndarray) -> Features:
    """Return some rows of features: of an array, of a sequence, of each value of a dict."""
    if isinstance(features, Mapping):
        return {name: take(values, rows) for name, values in features.items()}
    if isinstance(features, np.ndarray | torch.Tensor):
        return features[rows]
    return [features[int(row)] for row in rows]


def refuse_duplicates(features: Features, targets: np.ndarray, folds: Sequence[Fold]) -> None:
    """Raise `DataError` where rows of equal features and target are in both parts of a fold."""
    digests = row_digests({"features": features, "target": targets})
    for fold in folds:
        both = in_both(digests, fold)
        if both.any():
            raise DataError(
                f"{both.sum()} of {len(both)} held-out rows of {fold.name} are training rows too",
                where=f"row {fold.test[both.argmax()]}",
                why="rows were copied, resampled or augmented before they were divided",
                do="resample inside the fold (resample=...), or group what is equal; duplicates='allow' where it is so "
                "by nature",
            )


def _check(fold: Fold, count: int) -> None:
    held = np.concatenate([fold.train, fold.test])
    if not len(fold.train) or not len(fold.test):
        raise DataError(f"{fold.name} has an empty part")
    if held.max() >= count:
        raise DataError(f"{fold.name} holds row {held.max()}, there are {count}", why="it was made for other data")
    if len(np.intersect1d(fold.train, fold.test)):
        raise DataError(f"{fold.name} tests on rows that it is fitted to")


def _columns(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.reshape(len(values), -1)).float()
