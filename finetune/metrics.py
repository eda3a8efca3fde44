"""Metrics of predictions, from torchmetrics."""

from __future__ import annotations

from statistics import fmean

from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy, binary_auroc
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

SELECTION = {"regression": "mae", "classification": "auroc"}
LOWER_IS_BETTER = {"mae", "rmse"}


def evaluate(task: str, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions (N, T) against targets (N, T), NaN where unknown; the mean over T of each metric."""
    columns = []
    for predicted, target in zip(predictions.T, targets.T, strict=True):
        known = ~target.isnan()
        columns.append(evaluate_one(task, predicted[known], target[known]))
    return {name: fmean(column[name] for column in columns) for name in columns[0]}


def evaluate_one(task: str, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions of one target.

    Parameters
    ----------
    task : str
        ``regression`` (``mae``, ``rmse`` in the target's unit, ``r2``) or ``classification``
        (``accuracy``, ``auroc`` of the probability of class 1).
    predictions, targets : Tensor
        (N,), no NaN.
    """
    if task == "regression":
        return {
            "mae": float(mean_absolute_error(predictions, targets)),
            "rmse": float(mean_squared_error(predictions, targets, squared=False)),
            "r2": float(r2_score(predictions, targets)),
        }
    return {
        "accuracy": float(binary_accuracy(predictions, targets.long())),
        "auroc": float(binary_auroc(predictions, targets.long())),
    }


def better(metric: str, value: float, best: float) -> bool:
    """Say whether ``value`` beats ``best``."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def worst(metric: str) -> float:
    """Return a value that anything beats."""
    return float("inf") if metric in LOWER_IS_BETTER else float("-inf")
