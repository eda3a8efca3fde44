"""The estimator contract: vectors and targets in, a fitted predictor of further vectors out."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from shards.plugins import Options, Registry


class Estimator(Options):
    """Base of the estimator plug-ins: a typed table of options that makes fitted scikit-learn models.

    Everything that is fitted, scalers and selection of hyper-parameters included, is fitted inside `fit`, so that a
    fold that calls it leaks nothing.
    """

    @abstractmethod
    def fit(self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int) -> Fitted:
        """Fit to features (N, F) and known targets (N,) of one target."""


class Fitted:
    """A fitted estimator of one target."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,): values in the target's unit, or probabilities of class 1."""
        raise NotImplementedError


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator", {})
