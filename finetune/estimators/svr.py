"""Support vector regression with a Gaussian kernel."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from finetune.estimators.base import ESTIMATORS, REGRESSION
from finetune.estimators.chosen import chosen
from finetune.estimators.scikit import ScikitEstimator, standardised
from shards.errors import ConfigError


@ESTIMATORS.register("svr")
class Svr(ScikitEstimator):
    """Support vector regression (Drucker et al., NeurIPS 1996) on standardised features and targets.

    Attributes
    ----------
    penalties : tuple of float
        What the penalty C is chosen from, by inner folds.
    epsilon : float
        Width of the tube without loss, in standard deviations of the target.
    """

    kind: Literal["svr"] = "svr"
    penalties: tuple[float, ...] = Field((0.1, 1.0, 10.0, 100.0), min_length=1)
    epsilon: float = Field(0.1, ge=0)

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the search."""
        if task != REGRESSION:
            raise ConfigError(f"svr predicts values, not a {task}", do='use {kind = "linear_probe"}')
        pipeline = make_pipeline(*standardised(), SVR(C=self.penalties[0], epsilon=self.epsilon))
        search = chosen(pipeline, {"svr__C": list(self.penalties)}, task=task, seed=seed, folds=folds)
        return TransformedTargetRegressor(search, transformer=StandardScaler())
