"""How long a search among as many vectors as the Materials Project has crystals takes on one core.

``OMP_NUM_THREADS=1 python benchmarks/search.py`` measures in turn (A B C D, A B C D, ...), prints medians, and checks
every answer against a sort of all products in float64.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import faiss
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from finetune.search.approximate import Approximate
from finetune.search.topk import exact_topk

Search = Callable[[np.ndarray], np.ndarray]


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors (count, dim) around 2,000 centres, as embeddings of materials are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2000, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[rng.integers(2000, size=count)] + 0.06 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ways(vectors: np.ndarray, k: int) -> dict[str, Search]:
    """Return what is compared: each from queries (Q, D) to rows (Q, k)."""
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine", n_jobs=1).fit(vectors)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    cells = Approximate(vectors, "ivf")

    def sort(queries: np.ndarray) -> np.ndarray:
        return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]

    return {
        "matloom, exact": lambda queries: exact_topk(vectors, queries, k)[1],
        "numpy, all products and argsort": sort,
        "scikit-learn, brute force": lambda queries: brute.kneighbors(queries, return_distance=False),
        "FAISS, flat": lambda queries: flat.search(queries, k)[1],
        f"FAISS, {cells.cells} cells": lambda queries: cells.candidates(queries, k),
    }


def measure(searches: dict[str, Search], queries: np.ndarray, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each, measured in turn after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for number in range(rounds + 1):
        for name, search in searches.items():
            began = time.perf_counter()
            search(queries)
            if number:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: float(np.median(taken)) for name, taken in times.items()}


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """Return the share of the right rows that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), right.tolist(), strict=True)]))


def main() -> None:
    """Print a table for each number of queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=155_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    vectors = clustered(options.vectors, options.dim, 0)
    searches = ways(vectors, options.k)
    print(f"top {options.k} of {options.vectors} x {options.dim}, one thread, medians of {options.rounds}")
    for count in options.queries:
        queries = vectors[np.random.default_rng(1).choice(len(vectors), count, replace=False)]
        exact = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).argsort(axis=1)[:, ::-1][:, : options.k]
        rounds = options.rounds if count == 1 else max(3, options.rounds // 5)
        print(f"\n| {count} queries at once | ms | ms a query | recall |\n|---|---|---|---|")
        for name, taken in measure(searches, queries, rounds).items():
            share = recall(searches[name](queries), exact)
            print(f"| {name} | {taken:.1f} | {taken / count:.2f} | {share:.4f} |")


if __name__ == "__main__":
    main()
