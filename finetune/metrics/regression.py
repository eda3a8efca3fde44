"""Metrics of numbers, from scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from sklearn import metrics


def regression(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure predictions (N,) of values (N,).

    Returns
    -------
    dict of str to float
        ``rows``; ``mae``, ``rmse``, ``max_error`` in the unit and ``mse`` in its square; ``mape``, a fraction, over
        the rows whose value is not 0; ``r2`` = 1 - SS_res / SS_tot, which a shift makes negative; ``pearson`` and
        ``spearman``, which do not see a shift. NaN where the rows do not define one.
    """
    nonzero, rows = truth != 0, len(truth)
    correlate = rows > 1 and np.ptp(truth) > 0 and np.ptp(predicted) > 0
    return {
        "rows": float(rows),
        "mae": float(metrics.mean_absolute_error(truth, predicted)) if rows else math.nan,
        "rmse": float(metrics.root_mean_squared_error(truth, predicted)) if rows else math.nan,
        "mse": float(metrics.mean_squared_error(truth, predicted)) if rows else math.nan,
        "max_error": float(metrics.max_error(truth, predicted)) if rows else math.nan,
        "mape": float(metrics.mean_absolute_percentage_error(truth[nonzero], predicted[nonzero]))
        if nonzero.any()
        else math.nan,
        "r2": float(metrics.r2_score(truth, predicted)) if rows > 1 and np.ptp(truth) > 0 else math.nan,
        "pearson": float(stats.pearsonr(predicted, truth).statistic) if correlate else math.nan,
        "spearman": float(stats.spearmanr(predicted, truth).statistic) if correlate else math.nan,
    }
