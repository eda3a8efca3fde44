"""The trivial predictor: what must be beaten before anything has been learned."""

from __future__ import annotations

from typing import Literal

import numpy as np

from finetune.estimators.base import ESTIMATORS, Estimator, Fitted
from finetune.estimators.linear import Linear
from finetune.estimators.scikit import checked


@ESTIMATORS.register("mean")
class Mean(Estimator):
    """The mean of the training targets; for classes their shares, so that the likeliest is the most frequent one."""

    kind: Literal["mean"] = "mean"

    def fit(self, features: np.ndarray, targets: np.ndarray, *, task: str, seed: int) -> Fitted:
        """Fit; the features' number alone is looked at."""
        features, targets = checked(features, targets)
        return Linear.constant(targets, features.shape[1], task)
