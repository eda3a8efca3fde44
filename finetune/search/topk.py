"""Exact top-k by chunked matrix products: the result does not depend on chunks, threads or the number of queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

# products that are held at once, and queries that are compared together
BUDGET, QUERIES = 2**22, 256
# float32 products of unit vectors that are equal but for rounding
EQUAL = 1 - 2e-6


def exact_topk(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    barred: Sequence[np.ndarray] | None = None,
    allowed: np.ndarray | None = None,
    equal: bool = True,
    budget: int = BUDGET,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k rows of largest inner product for each query.

    Chunks are multiplied in float32. Whatever rounding leaves a chance is multiplied again in float64, row by row, and
    that decides; so vectors that are equal tie exactly, and the earlier one comes first.

    Parameters
    ----------
    vectors : ndarray
        (N, D) float32 rows of norm 1 at most.
    queries : ndarray
        (Q, D) float32.
    k : int
        How many; N at most are returned.
    barred : sequence of ndarray, optional
        Rows that each query must not find.
    allowed : ndarray, optional
        (N,) bool, rows that any query may find.
    equal : bool
        False: rows that are the query itself, but for rounding, are not found.
    budget : int
        Products that are held at once; never all Q x N.

    Returns
    -------
    scores : ndarray
        (Q, k) float64, descending; -inf where fewer than k rows may be found.
    places : ndarray
        (Q, k) int64 rows; -1 there.
    """
    k = min(k, len(vectors))
    scores, places = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    for first in range(0, len(queries) if k else 0, QUERIES):
        some = slice(first, first + QUERIES)
        mine = None if barred is None else barred[some]
        scores[some], places[some] = _topk(vectors, queries[some], k, mine, allowed, equal, budget)
    return scores, places


def _topk(
    vectors: np.ndarray,
    queries: np.ndarray,
    k: int,
    barred: Sequence[np.ndarray] | None,
    allowed: np.ndarray | None,
    equal: bool,
    budget: int,
) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    lengths = np.linalg.norm(queries, axis=1)
    # twice the bound on the error of a float32 product of D terms (Higham, Accuracy and Stability, 3.5)
    slack = 2 * vectors.shape[1] * np.finfo(np.float32).eps * lengths
    rows = max(k, budget // len(queries))
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        products = queries @ part.T
        if allowed is not None:
            products[:, ~allowed[start : start + rows]] = -np.inf
        for number, never in enumerate(barred or ()):
            products[number, never[(never >= start) & (never < start + rows)] - start] = -np.inf
        if not equal:
            products[products >= EQUAL * lengths[:, None]] = -np.inf
        floor = best[0][:, -1] - slack
        if len(part) >= k:
            kth = torch.topk(torch.from_numpy(products), k, dim=1).values[:, -1].numpy()
            floor = np.maximum(floor, kth - slack)
        # what is barred lies below the least finite number
        floor = np.maximum(floor, np.finfo(np.float32).min).astype(np.float32)
        row, column = np.nonzero(products >= np.nextafter(floor, np.float32(-2))[:, None])
        best = merged(best, row, start + column, dots(queries, vectors, row, start + column, budget))
    return best


def dots(
    queries: np.ndarray, vectors: np.ndarray, row: np.ndarray, place: np.ndarray, budget: int = BUDGET
) -> np.ndarray:
    """Return the inner products (P,) of P pairs in float64, each by itself: equal pairs give equal bits."""
    found = np.empty(len(row))
    size = max(1, budget // vectors.shape[1])
    for start in range(0, len(row), size):
        here = slice(start, start + size)
        found[here] = (queries[row[here]].astype(np.float64) * vectors[place[here]]).sum(axis=1)
    return found


def merged(
    best: tuple[np.ndarray, np.ndarray], row: np.ndarray, place: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of each query among those that it has (Q, k) and P new pairs; a tie goes to the lower row."""
    count, k = best[0].shape
    rows = np.concatenate([np.repeat(np.arange(count), k), row])
    scores, places = np.concatenate([best[0].ravel(), score]), np.concatenate([best[1].ravel(), place])
    order = np.lexsort((places, -scores, rows))
    rows = rows[order]
    within = np.arange(len(rows)) - np.searchsorted(rows, np.arange(count))[rows]
    kept = order[within < k]
    return scores[kept].reshape(count, k), places[kept].reshape(count, k)
