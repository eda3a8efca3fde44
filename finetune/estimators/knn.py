"""The mean of the nearest neighbours: how much of a property the geometry of the vectors holds by itself."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline

from finetune.estimators.base import ESTIMATORS, REGRESSION, Fitted
from finetune.estimators.chosen import chosen
from finetune.estimators.scikit import INNER_FOLDS, ScikitEstimator, checked, standardised


@ESTIMATORS.register("knn")
class Knn(ScikitEstimator):
    """k nearest neighbours among standardised features, k chosen by inner folds.

    Attributes
    ----------
    neighbours : tuple of int
        What k is chosen from; those beyond half of the training rows are left out.
    weights : str
        ``uniform``, or ``distance``: each neighbour counts by the inverse of its distance.
    """

    kind: Literal["knn"] = "knn"
    neighbours: tuple[int, ...] = Field((1, 3, 5, 10, 20), min_length=1)
    weights: Literal["uniform", "distance"] = "distance"

    def fit(self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int) -> Fitted:
        """Fit; the inner folds hold half of the rows at least."""
        return super(Knn, self._for(len(targets))).fit(features, targets, task=task, seed=seed)

    def fit_together(
        self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int
    ) -> tuple[Fitted, ...] | None:
        """Fit numbers (N, T) with the same neighbours: of a spectrum, not of each of its energies."""
        if task != REGRESSION:
            return None
        features, _ = checked(features, targets[:, 0])
        model = self._for(len(targets)).model(task=task, seed=seed, folds=min(INNER_FOLDS, len(targets)))
        together = _Together(model.fit(features, targets))
        return tuple(_Column(together, number) for number in range(targets.shape[1]))

    def _for(self, rows: int) -> Knn:
        fitting = [k for k in self.neighbours if k <= rows // 2] or [1]
        return self.model_copy(update={"neighbours": tuple(fitting)})

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the search."""
        kind = KNeighborsRegressor if task == REGRESSION else KNeighborsClassifier
        neighbours = kind(n_neighbors=self.neighbours[0], weights=self.weights)
        pipeline = make_pipeline(*standardised(), neighbours)
        grid = {f"{pipeline.steps[-1][0]}__n_neighbors": list(self.neighbours)}
        return chosen(pipeline, grid, task=task, seed=seed, folds=folds)


class _Together:
    """A model of T targets; neighbours are sought once for all of them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.asked: tuple[np.ndarray, np.ndarray] | None = None

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N, T)."""
        if self.asked is None or self.asked[0] is not features:
            self.asked = (features, self.model.predict(features))
        return self.asked[1]


class _Column(Fitted):
    """One of the targets of a model of several."""

    def __init__(self, together: _Together, number: int) -> None:
        self.together, self.number = together, number

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,)."""
        return self.together.predict(features)[:, self.number]

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Return None: these are numbers."""
        return None
