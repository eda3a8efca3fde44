"""The linear probe: ridge or logistic regression on standardised features, its strength chosen inside."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline

from finetune.estimators.base import ESTIMATORS, REGRESSION, Fitted
from finetune.estimators.linear import Linear
from finetune.estimators.scikit import ScikitEstimator, standardised


@ESTIMATORS.register("linear_probe")
class LinearProbe(ScikitEstimator):
    """Ridge regression (Hoerl and Kennard, 1970), or logistic regression for classes; can be stored.

    Attributes
    ----------
    strengths : tuple of float
        Penalties of the ridge regression; the best by leave-one-out on the training rows is taken.
    inverse_strengths : int
        How many inverse penalties of the logistic regression between 1e-4 and 1e4 stratified inner folds choose from.
    max_iter : int
        Of the solver of the logistic regression.
    """

    kind: Literal["linear_probe"] = "linear_probe"
    strengths: tuple[float, ...] = Field(tuple(np.logspace(-3, 5, 33).tolist()), min_length=1)
    inverse_strengths: int = Field(10, ge=1)
    max_iter: int = Field(2000, ge=1)

    def model(self, *, task: str, seed: int, folds: int) -> Any:
        """Return the pipeline."""
        if task == REGRESSION:
            regression: Any = RidgeCV(self.strengths)
        elif folds < 2:
            # a class of one row leaves nothing to choose the penalty by
            regression = LogisticRegression(max_iter=self.max_iter)
        else:
            regression = LogisticRegressionCV(Cs=self.inverse_strengths, cv=folds, max_iter=self.max_iter)
        return make_pipeline(*standardised(), regression)

    def fitted(self, model: Any, task: str) -> Fitted:
        """Return the arrays of the model."""
        return Linear.of(model, task)
