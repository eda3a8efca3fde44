"""Metrics of classes, from scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from finetune.metrics import macro
from pretrain.plots import Row

AVERAGES = ("macro", "micro", "weighted")
THRESHOLD = 0.5


def classification(probability: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure probabilities (N,) of class 1, any score between 0 and 1, against classes (N,), 0 or 1.

    Returns
    -------
    dict of str to float
        ``rows``, ``positives``, ``prevalence``; ``accuracy``, ``balanced_accuracy``, ``precision``, ``recall``, ``f1``
        (and its averages over both classes), ``kappa``, ``mcc`` of the decision at one half; ``fmax``, the best F1 of
        all thresholds; ``auroc``; ``average_precision``, whose value without skill is ``prevalence``, and
        ``auprc_trapezoid``, which interpolates between points that no threshold reaches and flatters: a constant gets
        (1 + prevalence) / 2. NaN where the rows do not define one.
    """
    rows, positives = len(truth), int(truth.sum())
    found = {
        "rows": float(rows),
        "positives": float(positives),
        "prevalence": positives / rows if rows else math.nan,
        **_decisions((probability > THRESHOLD).astype(float), truth),
    }
    found |= {
        name: float(measure(truth, (probability > THRESHOLD).astype(float), zero_division=0)) if rows else math.nan
        for name, measure in _BINARY.items()
    }
    if not positives:
        return found | dict.fromkeys(("fmax", "auroc", "average_precision", "auprc_trapezoid"), math.nan)
    precision, recall, _ = metrics.precision_recall_curve(truth, probability)
    return found | {
        "fmax": float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()),
        "auroc": float(metrics.roc_auc_score(truth, probability)) if positives < rows else math.nan,
        "average_precision": float(metrics.average_precision_score(truth, probability)),
        "auprc_trapezoid": float(metrics.auc(recall, precision)),
    }


def multiclass(predicted: np.ndarray, truth: np.ndarray, probabilities: np.ndarray | None = None) -> dict[str, float]:
    """Measure class numbers (N,) against class numbers (N,), and probabilities (N, C) where there are some.

    Returns
    -------
    dict of str to float
        As `classification`, precision and recall as means over classes; with probabilities ``auroc`` of each class
        against the others, the mean over those that the rows have.
    """
    rows = len(truth)
    found = {"rows": float(rows), "classes": float(len(np.unique(truth))), **_decisions(predicted, truth)}
    for name, measure in _BINARY.items():
        found[f"{name}_macro"] = (
            float(measure(truth, predicted, average="macro", zero_division=0)) if rows else math.nan
        )
    if probabilities is not None:
        each = [
            metrics.roc_auc_score(truth == c, probabilities[:, c])
            for c in range(probabilities.shape[1])
            if 0 < (truth == c).sum() < rows
        ]
        found["auroc"] = float(np.mean(each)) if each else math.nan
    return found


def label_macro(probability: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> tuple[list[Row], dict[str, float]]:
    """Measure L labels (N, L), NaN where unknown, one by one; a mean over labels hides those of few positives.

    Returns
    -------
    list of dict
        A row a label: ``label`` and what `classification` returns, with the number of its positives.
    dict of str to float
        The mean over the labels for which a metric is defined.
    """
    rows = []
    for name, column, target in zip(names, probability.T, truth.T, strict=True):
        known = ~np.isnan(target)
        rows.append((name, classification(column[known], target[known])))
    table: list[Row] = [{"label": name, **found} for name, found in rows]
    return table, macro([found for _, found in rows])


_BINARY: dict[str, Any] = {
    "precision": metrics.precision_score,
    "recall": metrics.recall_score,
    "f1": metrics.f1_score,
}


def _decisions(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    names = ["accuracy", "balanced_accuracy", "kappa", "mcc", *(f"f1_{average}" for average in AVERAGES)]
    if not len(truth):
        return dict.fromkeys(names, math.nan)
    classes = np.unique(truth)
    # the mean of the recalls of the classes that are there
    recalls = [float((predicted[truth == c] == c).mean()) for c in classes]
    # one class on both sides: agreement by chance is complete, kappa is 0 / 0
    both = len(np.unique(np.concatenate([predicted, truth]))) > 1
    return {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "balanced_accuracy": float(np.mean(recalls)),
        "kappa": float(metrics.cohen_kappa_score(truth, predicted)) if both else math.nan,
        "mcc": float(metrics.matthews_corrcoef(truth, predicted)) if both else math.nan,
        **{
            f"f1_{average}": float(metrics.f1_score(truth, predicted, average=average, zero_division=0))
            for average in AVERAGES
        },
    }
