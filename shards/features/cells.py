"""Means of a piecewise linear function over the cells of a uniform grid, so that a spectrum keeps its area."""

from __future__ import annotations

import numpy as np


def cell_edges(grid: np.ndarray) -> np.ndarray:
    """Return (p + 1,) edges of the cells of a (p,) grid.

    Cells reach half a step to either side, those at the ends not beyond the grid.
    """
    return np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])


def cell_means(axis: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Average a piecewise linear function between each two of ``edges``.

    Parameters
    ----------
    axis, values : ndarray
        (n,) ascending abscissae and values; outside of them the function is 0.
    edges : ndarray
        (p + 1,) ascending.

    Returns
    -------
    ndarray
        (p,) means: times the widths of the cells, they add up to the area.
    """
    return np.diff(_integral(axis, values, edges)) / np.diff(edges)


def _integral(axis: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Integrate the piecewise linear function from its first abscissa to each of ``at``."""
    steps = np.diff(axis)
    whole = np.append(0.0, np.cumsum(steps * (values[1:] + values[:-1]) / 2))
    at = np.clip(at, axis[0], axis[-1])
    segment = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(steps) - 1)
    part = at - axis[segment]
    slope = np.diff(values)[segment] / steps[segment]
    return whole[segment] + part * (values[segment] + slope * part / 2)
