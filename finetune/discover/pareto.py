"""Non-dominated sorting: which candidates no other one beats in everything."""

from __future__ import annotations

import numpy as np

CHUNK = 256


def fronts(points: np.ndarray, limit: int | None = None) -> np.ndarray:
    """Return the number of the Pareto front of each point, 1 for the first (Deb et al., IEEE TEC 6 (2002) 182).

    A point dominates another where it is at least as good in every objective and better in one. The first front is
    what nothing dominates; the next is the first without it, and so on.

    Parameters
    ----------
    points : ndarray
        (N, M) objectives, each the larger the better, finite.
    limit : int, optional
        Stop once this many points have a front; the others get 0.

    Returns
    -------
    ndarray
        (N,) int64. Equal points share a front.
    """
    if not len(points):
        return np.zeros(0, np.int64)
    # descending by the first objective, then the next: what dominates a point stands before it
    unique, inverse = np.unique(-np.asarray(points, dtype=np.float64), axis=0, return_inverse=True)
    unique, inverse = -unique, inverse.reshape(-1)
    sizes = np.bincount(inverse)
    found = np.zeros(len(unique), np.int64)
    if unique.shape[1] == 1:
        found[:] = np.arange(1, len(unique) + 1)
        return found[inverse]
    left, number, done = np.arange(len(unique)), 0, 0
    while len(left) and (limit is None or done < limit):
        number += 1
        best = first_front(unique[left])
        found[left[best]] = number
        done += int(sizes[left[best]].sum())
        left = left[~best]
    return found[inverse]


def first_front(ordered: np.ndarray) -> np.ndarray:
    """Return which of N different points (N, M), in descending lexicographic order, nothing dominates.

    With two objectives one pass is enough; else points are compared with those of the front before them, in chunks.
    """
    if ordered.shape[1] == 2:
        before = np.maximum.accumulate(np.concatenate([[-np.inf], ordered[:-1, 1]]))
        return ordered[:, 1] > before
    kept = np.zeros(len(ordered), dtype=bool)
    front = ordered[:0]
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        alive = ~_dominated(chunk, front)
        # one that is dominated within the chunk alone; by what is itself dominated counts too: dominance is transitive
        alive[alive] = ~_dominated(chunk[alive], chunk[alive])
        kept[start : start + CHUNK] = alive
        front = np.concatenate([front, chunk[alive]])
    return kept


def _dominated(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which points any of the others dominates; a point does not dominate itself."""
    found = np.zeros(len(points), dtype=bool)
    for start in range(0, len(others), 16 * CHUNK):
        block = others[None, start : start + 16 * CHUNK]
        at_least, better = block >= points[:, None], block > points[:, None]
        found |= np.any(np.all(at_least, axis=2) & np.any(better, axis=2), axis=1)
    return found
