"""Gradient boosting of trees on histograms of the features."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline

from finetune.estimators.base import ESTIMATORS, REGRESSION
from finetune.estimators.scikit import ScikitEstimator, imputer


@ESTIMATORS.register("gradient_boosting")
class GradientBoosting(ScikitEstimator):
    """Friedman, Ann. Stat. 29, 1189 (2001), as scikit-learn's histogram variant.

    Attributes
    ----------
    rounds, learning_rate, leaves : int, float, int
        Trees, shrinkage, and leaves of a tree at most. Beyond 10,000 rows a tenth of the training rows says when
        to stop earlier.
    """

    kind: Literal["gradient_boosting"] = "gradient_boosting"
    rounds: int = Field(200, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    leaves: int = Field(31, ge=2)

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the pipeline."""
        boosting = HistGradientBoostingRegressor if task == REGRESSION else HistGradientBoostingClassifier
        # it takes NaN as it is, but not a column of nothing else
        return make_pipeline(
            imputer(),
            boosting(
                max_iter=self.rounds, learning_rate=self.learning_rate, max_leaf_nodes=self.leaves, random_state=seed
            ),
        )
