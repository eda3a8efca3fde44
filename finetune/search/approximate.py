"""FAISS (an extra): candidates among more vectors than an exact product should scan."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from shards.errors import ConfigError

Kind = Literal["ivf", "hnsw"]
# more vectors than this take an exact product tens of milliseconds a query
LARGE = 1_000_000
# vectors that train one cell; FAISS warns below 39
TRAINING = 64


def faiss_library() -> Any:
    """Return the library, or raise `ConfigError` that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("FAISS is not installed", why=str(error), do='pip install "matloom[faiss]"') from None
    return faiss


class Approximate:
    """Candidates by inner product; what they score is computed again, exactly, by whoever asks.

    Parameters
    ----------
    vectors : ndarray
        (N, D) float32 unit rows.
    kind : str
        ``ivf``: cells around centroids, of which the nearest are looked into; ``hnsw``: a graph of neighbours (Malkov
        & Yashunin, TPAMI 2020), which takes longer to build and more memory, and finds more in less time.
    effort : int, optional
        Cells that are looked into, or the length of the list that the graph is searched with; more finds more.
    """

    def __init__(self, vectors: np.ndarray, kind: Kind = "ivf", effort: int | None = None) -> None:
        faiss = faiss_library()
        count, dim = vectors.shape
        self.kind, self.effort = kind, effort
        if kind == "hnsw":
            self.index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        else:
            self.cells = max(1, min(int(4 * count**0.5), count // TRAINING))
            self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, self.cells, faiss.METRIC_INNER_PRODUCT)
            self.index.train(np.ascontiguousarray(vectors))
        self.index.add(np.ascontiguousarray(vectors))

    def candidates(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Return (Q, k) rows, -1 where fewer were found."""
        if self.kind == "hnsw":
            self.index.hnsw.efSearch = max(self.effort or 64, 2 * k)
        else:
            self.index.nprobe = self.effort or max(8, self.cells // 32)
        return self.index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, self.index.ntotal))[1]
