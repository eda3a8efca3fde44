"""Metrics of predictions: the few by which a fit is steered (`evaluate`), and all of them (`measure`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy, binary_auroc
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from finetune.prediction import Prediction

SELECTION = {"regression": "mae", "classification": "auroc", "multiclass": "balanced_accuracy"}
LOWER_IS_BETTER = {"mae", "rmse", "mse", "max_error", "mape", "error_rate", "nll", "brier", "ece"}


def evaluate(task: str, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions (N, T) against targets (N, T), NaN where unknown; see `macro` for several targets."""
    known = ~targets.isnan()
    if task == "regression" and targets.shape[1] > 1 and bool((known == known[:, :1]).all()):
        return _together(predictions[known[:, 0]], targets[known[:, 0]])
    columns = []
    for predicted, target in zip(predictions.T, targets.T, strict=True):
        known = ~target.isnan()
        columns.append(evaluate_one(task, predicted[known], target[known]))
    return macro(columns)


def _together(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what `evaluate` does for targets that are known for the same rows: a spectrum has hundreds of them."""
    rows, width = targets.shape
    if not rows:
        return dict.fromkeys(("mae", "rmse", "r2"), math.nan)
    varied = (targets != targets[:1]).any(dim=0)
    r2 = math.nan
    if bool(varied.any()):
        # torchmetrics takes one column for none
        predicted, truth = predictions[:, varied], targets[:, varied]
        r2 = float(r2_score(predicted, truth, multioutput="uniform_average"))
    return {
        "mae": float(mean_absolute_error(predictions, targets, num_outputs=width).mean()),
        "rmse": float(mean_squared_error(predictions, targets, squared=False, num_outputs=width).mean()),
        "r2": r2,
    }


def evaluate_one(task: str, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions of one target; NaN where a metric is not defined for these rows.

    Parameters
    ----------
    task : str
        ``regression`` (``mae``, ``rmse`` in the target's unit, ``r2``), ``classification``
        (``accuracy``, ``auroc`` of the probability of class 1) or ``multiclass`` (``accuracy``, ``balanced_accuracy``
        of class numbers).
    predictions, targets : Tensor
        (N,), no NaN.
    """
    rows, classes = len(targets), len(targets.unique())
    if task == "regression":
        return {
            "mae": float(mean_absolute_error(predictions, targets)) if rows else math.nan,
            "rmse": float(mean_squared_error(predictions, targets, squared=False)) if rows else math.nan,
            "r2": float(r2_score(predictions, targets)) if classes > 1 else math.nan,
        }
    if task == "multiclass":
        right = (predictions == targets).float()
        recalls = [float(right[targets == c].mean()) for c in targets.unique()]
        return {"accuracy": float(right.mean()), "balanced_accuracy": fmean(recalls) if recalls else math.nan}
    return {
        "accuracy": float(binary_accuracy(predictions, targets.long())) if rows else math.nan,
        "auroc": float(binary_auroc(predictions, targets.long())) if classes > 1 else math.nan,
    }


def measure(task: str, prediction: Prediction, targets: Tensor, target: int = 0) -> dict[str, float]:
    """Return all metrics of one target over its known rows.

    Parameters
    ----------
    task : str
        See `finetune.heads.base.Head`.
    prediction : Prediction
        Of N rows.
    targets : Tensor
        (N, T), NaN where unknown.
    target : int
        Which of the T.
    """
    from finetune.metrics.classification import classification, multiclass
    from finetune.metrics.regression import regression

    known = ~targets[:, target].isnan()
    value, truth = (rows[known, target].double().numpy() for rows in (prediction.value, targets))
    if task == "regression":
        return regression(value, truth)
    if task == "classification":
        return classification(value, truth)
    probabilities = None if prediction.probabilities is None else prediction.probabilities[known].double().numpy()
    return multiclass(value, truth, probabilities)


def macro(columns: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric over those targets (or labels, or folds) for which it is defined, NaN if none."""
    rows = list(columns)
    defined = {name: [float(row[name]) for row in rows if not math.isnan(row[name])] for name in rows[0]}
    return {name: fmean(values) if values else math.nan for name, values in defined.items()}


def better(metric: str, value: float, best: float) -> bool:
    """Say whether ``value`` beats ``best``."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def worst(metric: str) -> float:
    """Return a value that anything beats."""
    return float("inf") if metric in LOWER_IS_BETTER else float("-inf")
