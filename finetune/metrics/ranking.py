"""Metrics of a ranking: what the first k of a list hold. For retrieval of partners see `pretrain.evaluate`."""

from __future__ import annotations

import math

import numpy as np


def hits_at_k(scores: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Return how many of the k highest scores (N,) are ``relevant`` (N,) bool.

    Equal scores at the k-th place are taken in random order, in the mean over all orders: a constant score finds as
    many as chance, whatever the order of the rows.
    """
    k = min(k, len(scores))
    if not k:
        return 0.0
    last = np.sort(scores)[-k]
    above, tied = scores > last, scores == last
    return float(relevant[above].sum() + relevant[tied].sum() * (k - above.sum()) / tied.sum())


def precision_at_k(scores: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Return the share of relevant rows among the k highest scores; k at most N."""
    return hits_at_k(scores, relevant, k) / min(k, len(scores)) if len(scores) else math.nan


def recall_at_k(scores: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """Return the share of the relevant rows that are among the k highest scores, NaN where none is relevant."""
    return hits_at_k(scores, relevant, k) / int(relevant.sum()) if relevant.any() else math.nan
