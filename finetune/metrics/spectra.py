r"""How unlike two spectra are: :math:`\int |g - \hat g| dE / \int g\, dE`, 0 for the same (MultiMat, arXiv 2312.00111).

Multiplying both by a number changes nothing.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from shards.errors import ConfigError


def trapezoid_weights(axis: np.ndarray, window: tuple[float, float] | None = None, *, where: str) -> np.ndarray:
    """Return the weights (P,) by which values at evenly spaced energies (P,) are summed to their integral.

    Between them the spectrum is linear. The window's ends are the energies nearest to them; without one all count.
    """
    step = axis[1] - axis[0] if len(axis) > 1 else 0.0
    low, high = window or (axis[0], axis[-1])
    inside = np.flatnonzero((axis >= low - step / 2) & (axis <= high + step / 2))
    if len(inside) < 2:
        raise ConfigError(
            f"the window {[low, high]} has {len(inside)} points",
            where=where,
            why=f"it holds {len(inside)} energies of a spectrum from {axis[0]:g} to {axis[-1]:g}; it takes two",
        )
    weights = np.zeros(len(axis))
    weights[inside] = step
    weights[inside[[0, -1]]] = step / 2
    return weights


def integral_scores(wanted: np.ndarray, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the score (T, C) of each of C spectra for each of T.

    Parameters
    ----------
    wanted, found : ndarray
        (T, P) of positive integral, (C, P).
    weights : ndarray
        (P,), see `trapezoid_weights`.
    """
    return cdist(wanted * weights, found * weights, "cityblock") / (wanted @ weights)[:, None]


def paired_scores(wanted: np.ndarray, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the score (n,) of each of N spectra for the one of the same row, of the n that have a positive integral.

    Parameters
    ----------
    wanted, found : ndarray
        (N, P).
    weights : ndarray
        (P,), see `trapezoid_weights`.
    """
    area = wanted @ weights
    there = area > 0
    return np.abs(wanted[there] - found[there]) @ weights / area[there]
