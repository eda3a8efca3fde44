"""The estimator contract: vectors and targets in, a fitted predictor of further vectors out."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from shards.errors import ConfigError
from shards.plugins import Options, Registry

REGRESSION, CLASSIFICATION, MULTICLASS = "regression", "classification", "multiclass"


class Estimator(Options):
    """Base of the estimator plug-ins: a typed table of options that makes fitted scikit-learn models.

    Everything that is fitted, scalers and selection of hyper-parameters included, is fitted inside `fit`, so that a
    fold that calls it leaks nothing.
    """

    def fit_together(
        self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int
    ) -> tuple[Fitted, ...] | None:
        """Fit to targets (N, T) that are all known, one fitted estimator a target; None: each goes by itself."""
        return None

    @abstractmethod
    def fit(self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int) -> Fitted:
        """Fit to features (N, F) and known targets (N,) of one target.

        Features may hold NaN where a value is unknown: it is filled by what the N rows say. Targets are values in the
        target's unit, 0 and 1, or class numbers, as ``task`` says (see `finetune.heads.base.Head`).
        """


class Fitted:
    """A fitted estimator of one target."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,): values in the target's unit, probabilities of class 1, or numbers of the likeliest class."""
        raise NotImplementedError

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Return (N, C) probabilities of the classes 0 .. C - 1, C - 1 the last seen in training; None of a value."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything there is to know as plain arrays; see `finetune.estimators.linear.Linear`."""
        raise ConfigError(
            f"a fitted {type(self).__name__} cannot be stored",
            why="only what is a few plain arrays is written; trees and neighbours would need pickle, which runs code",
            do='use {kind = "linear_probe"}, or fit it anew where it is needed',
        )


ESTIMATORS: Registry[type[Estimator]] = Registry(
    "estimator",
    {
        "mean": "finetune.estimators.mean",
        "linear_probe": "finetune.estimators.linear_probe",
        "random_forest": "finetune.estimators.random_forest",
        "gradient_boosting": "finetune.estimators.gradient_boosting",
        "knn": "finetune.estimators.knn",
        "svr": "finetune.estimators.svr",
    },
)
