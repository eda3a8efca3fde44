"""Metrics of binding affinity: how well the order is found, and the two things that are both called r2m."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats


def affinity(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure predictions (N,) of affinities (N,): ``ci``, ``rm2``, ``rm2_deepdta``, ``pearson2``."""
    return {
        "ci": concordance_index(predicted, truth),
        "rm2": rm2(predicted, truth),
        "rm2_deepdta": rm2_deepdta(predicted, truth),
        "pearson2": pearson2(predicted, truth),
    }


def concordance_index(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the pairs of different truth that are predicted in their order; a tie counts one half.

    Goenen and Heller, Biometrika 92 (2005) 965. By way of Kendall's tau-b, in N log N: tau is the difference of
    concordant and discordant pairs over the root of (pairs untied in one) (pairs untied in the other).
    NaN where all values are the same.
    """
    untied_truth, untied_predicted = _untied_pairs(truth), _untied_pairs(predicted)
    if not untied_truth:
        return math.nan
    if not untied_predicted:
        return 0.5
    tau = stats.kendalltau(predicted, truth).statistic
    return float(0.5 + 0.5 * tau * math.sqrt(untied_predicted / untied_truth))


def rm2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return r^2 (1 - sqrt|r^2 - r0^2|) (Roy and Roy, QSAR Comb. Sci. 27 (2008) 302), r0 of the line through 0."""
    r2, r02 = pearson2(predicted, truth), _through_origin(predicted, truth)
    return r2 * (1 - math.sqrt(abs(r2 - r02)))


def rm2_deepdta(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return r^2 (1 - sqrt|r^4 - r0^4|), which DeepDTA's code and its descendants compute and tables call r2m."""
    r2, r02 = pearson2(predicted, truth), _through_origin(predicted, truth)
    return r2 * (1 - math.sqrt(abs(r2**2 - r02**2)))


def pearson2(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the square of Pearson's correlation, NaN where one side is constant."""
    if len(truth) < 2 or not np.ptp(truth) or not np.ptp(predicted):
        return math.nan
    return float(stats.pearsonr(predicted, truth).statistic ** 2)


def _through_origin(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return r0^2 = 1 - sum (y - k p)^2 / sum (y - mean)^2 with k of least squares."""
    if len(truth) < 2 or not np.ptp(truth) or not predicted.any():
        return math.nan
    slope = (truth @ predicted) / (predicted @ predicted)
    return float(1 - np.square(truth - slope * predicted).sum() / np.square(truth - truth.mean()).sum())


def _untied_pairs(values: np.ndarray) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return math.comb(len(values), 2) - sum(math.comb(int(count), 2) for count in counts)
