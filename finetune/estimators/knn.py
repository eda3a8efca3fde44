"""The mean of the nearest neighbours: how much of a property the geometry of the vectors holds by itself."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline

from finetune.estimators.base import ESTIMATORS, REGRESSION, Fitted
from finetune.estimators.chosen import chosen
from finetune.estimators.scikit import ScikitEstimator, standardised


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
        fitting = [k for k in self.neighbours if k <= len(targets) // 2] or [1]
        return super(Knn, self.model_copy(update={"neighbours": tuple(fitting)})).fit(
            features, targets, task=task, seed=seed
        )

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the search."""
        kind = KNeighborsRegressor if task == REGRESSION else KNeighborsClassifier
        neighbours = kind(n_neighbors=self.neighbours[0], weights=self.weights)
        pipeline = make_pipeline(*standardised(), neighbours)
        grid = {f"{pipeline.steps[-1][0]}__n_neighbors": list(self.neighbours)}
        return chosen(pipeline, grid, task=task, seed=seed, folds=folds)
