"""A fitted linear model as plain arrays: what the trivial and the linear estimator come down to, and can be stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.pipeline import Pipeline

from finetune.estimators.base import CLASSIFICATION, REGRESSION, Fitted


@dataclass(frozen=True, kw_only=True)
class Linear(Fitted):
    """Scores ``z @ weight.T + bias``, z = (x - mean) / scale clipped to the limit, then a link for classes.

    Attributes
    ----------
    task : str
        See `finetune.heads.base.Head`.
    fill, mean, scale : ndarray
        (F,): what stands in for NaN, and the standardisation, all of the training rows.
    limit : ndarray
        () greatest absolute value of a standardised feature.
    weight, bias : ndarray
        (S, F) and (S,): one score, or one a class of ``multiclass`` beyond two.
    classes : ndarray
        (K,) class numbers seen in training; empty for a regression.
    """

    task: str
    fill: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    limit: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray

    @classmethod
    def of(cls, pipeline: Pipeline, task: str) -> Linear:
        """Return the arrays of a fitted pipeline of imputer, scaler, clipping and linear model."""
        imputer, scaler, clip, model = (step for _, step in pipeline.steps)
        return cls(
            task=task,
            fill=imputer.statistics_,
            mean=scaler.mean_,
            scale=scaler.scale_,
            limit=np.array(clip.kw_args["a_max"]),
            weight=np.atleast_2d(model.coef_),
            bias=np.atleast_1d(model.intercept_),
            classes=np.zeros(0) if task == REGRESSION else model.classes_,
        )

    @classmethod
    def constant(cls, targets: np.ndarray, width: int, task: str) -> Linear:
        """Return the model that looks at nothing: the mean of the targets (N,), or the shares of their classes."""
        zeros, ones = np.zeros(width), np.ones(width)
        if task == REGRESSION:
            classes, bias = np.zeros(0), np.array([targets.mean()])
        else:
            classes, counts = np.unique(targets, return_counts=True)
            bias = np.log(counts / counts.sum())
        weight = np.zeros((len(bias), width))
        limit = np.array(np.inf)
        return cls(
            task=task, fill=zeros, mean=zeros, scale=ones, limit=limit, weight=weight, bias=bias, classes=classes
        )

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return (N,) predictions; see `Fitted.predict`."""
        if self.task == REGRESSION:
            return self._scores(features)[:, 0]
        return predicted(self.probabilities(features), self.task)

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Return (N, C); see `Fitted.probabilities`."""
        if self.task == REGRESSION:
            return None
        scores = self._scores(features)
        if scores.shape[1] == 1 and len(self.classes) == 2:
            shares = np.concatenate([expit(-scores), expit(scores)], axis=1)
        else:
            shares = softmax(scores, axis=1)
        return placed(shares, self.classes)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by the name of their attribute."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, np.ndarray)}

    def _scores(self, features: np.ndarray) -> np.ndarray:
        filled = np.where(np.isnan(features), self.fill, features)
        z = ((filled - self.mean) / self.scale).clip(-self.limit, self.limit)
        return z @ self.weight.T + self.bias


def placed(shares: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Place probabilities (N, K) of the classes seen in training among 0 .. C - 1; those not seen have 0."""
    table = np.zeros((len(shares), max(2, int(classes.max()) + 1)))
    table[:, classes.astype(int)] = shares
    return table


def predicted(probabilities: Any, task: str) -> np.ndarray:
    """Return what `Fitted.predict` says where the probabilities (N, C) are known."""
    return probabilities[:, 1] if task == CLASSIFICATION else probabilities.argmax(axis=1).astype(float)
