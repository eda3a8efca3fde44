"""Estimators that are one scikit-learn model: checks, imputation and the degenerate cases that all of them share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from finetune.estimators.base import REGRESSION, Estimator, Fitted
from finetune.estimators.linear import Linear, placed, predicted
from shards.errors import DataError

INNER_FOLDS = 5
# standard deviations beyond which a feature says no more
LIMIT = 10.0


class ScikitEstimator(Estimator):
    """Base of the estimators that are one scikit-learn model, new for every call of `fit`."""

    @abstractmethod
    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return an unfitted model; ``folds`` are how many inner folds the rows allow to choose hyper-parameters by."""

    def fit(self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int) -> Fitted:
        """Fit; targets of which all are equal are answered by that constant."""
        features, targets = checked(features, targets)
        if len(np.unique(targets)) == 1:
            return Linear.constant(targets, features.shape[1], task)
        smallest = len(targets) if task == REGRESSION else int(np.unique(targets, return_counts=True)[1].min())
        model = self.model(task=task, seed=seed, folds=min(INNER_FOLDS, smallest))
        return self.fitted(model.fit(features, targets), task)

    def fitted(self, model: Any, task: str) -> Fitted:
        """Return the fitted model under the contract."""
        return ScikitFitted(model, task)


@dataclass(frozen=True)
class ScikitFitted(Fitted):
    """A fitted scikit-learn model of one target."""

    model: Any
    task: str

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,) predictions; see `Fitted.predict`."""
        if self.task == REGRESSION:
            return self.model.predict(features)
        return predicted(self.probabilities(features), self.task)

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Return (N, C); see `Fitted.probabilities`."""
        if self.task == REGRESSION:
            return None
        return placed(self.model.predict_proba(features), self.model.classes_)


def imputer() -> SimpleImputer:
    """Return what fills unknown features by the mean of the rows that it is fitted to; of an unknown column by 0."""
    return SimpleImputer(keep_empty_features=True)


def standardised() -> list[Any]:
    """Return the steps that fill, standardise and clip features, for models that look at their size.

    Of a feature that is nearly constant in the training rows (a magnetic moment, where one material in a thousand has
    one) a held-out row can be millions of standard deviations away; a linear model would follow it.
    """
    return [imputer(), StandardScaler(), FunctionTransformer(np.clip, kw_args={"a_min": -LIMIT, "a_max": LIMIT})]


def checked(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 features (N, F) and targets (N,), or raise `DataError` where they cannot be fitted."""
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if features.ndim != 2 or targets.shape != (len(features),):
        raise DataError(f"features {features.shape} and targets {targets.shape} are no (N, F) and (N,)")
    if not np.isfinite(targets).all():
        raise DataError("a target is unknown or infinite", do="give the rows whose target is known")
    if np.isinf(features).any():
        raise DataError("a feature is infinite", where=f"row {int(np.isinf(features).any(axis=1).argmax())}")
    if not len(targets):
        raise DataError("there is no row to fit to")
    return features, targets
