"""How well training rows cover a place of the embedding: three scores, the higher the better covered."""

from __future__ import annotations

from typing import Literal

import numpy as np

from shards.errors import DataError

Method = Literal["kde", "knn", "mahalanobis"]
METHODS: tuple[Method, ...] = ("kde", "knn", "mahalanobis")
# directions of less than this share of the greatest variance are rounding, which whitening would blow up
LEAST_VARIANCE = 1e-6


class Density:
    """Fitted to the embeddings of the training rows.

    They are whitened by their principal components, at most ``components``: a density of hundreds of dimensions cannot
    be estimated, its logarithms are huge and tell nothing apart.

    Parameters
    ----------
    vectors : ndarray
        (N, D) of the training rows.
    components : int
        Most dimensions.
    neighbours : int
        k of the distance to the k-th nearest row.
    """

    def __init__(self, vectors: np.ndarray, *, components: int = 10, neighbours: int = 10) -> None:
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA
        from sklearn.neighbors import KernelDensity, NearestNeighbors

        if len(vectors) < 3:
            raise DataError(f"{len(vectors)} training rows have no density", do="give more")
        whole = PCA().fit(vectors)
        kept = int((whole.explained_variance_ > LEAST_VARIANCE * whole.explained_variance_[0]).sum())
        # as many dimensions as rows would put every row at the same distance from the middle
        self.components = max(1, min(components, kept, len(vectors) // 3))
        self.pca = PCA(self.components, whiten=True, svd_solver="full").fit(vectors)
        seen = self.pca.transform(vectors)
        # Scott's rule, n^(-1 / (d + 4)), for rows of unit variance
        self._kde = KernelDensity(bandwidth="scott").fit(seen)
        self._nearest = NearestNeighbors(n_neighbors=min(neighbours, len(seen))).fit(seen)
        self._normal = LedoitWolf().fit(seen)

    def score(self, vectors: np.ndarray, method: Method = "kde") -> np.ndarray:
        """Return a score (M,) of vectors (M, D).

        ``kde``: log density of a Gaussian kernel with Scott's bandwidth; ``knn``: minus the distance to the k-th
        nearest training row; ``mahalanobis``: minus the distance from the middle, by a shrunk covariance.
        """
        seen = self.pca.transform(vectors)
        if method == "kde":
            return self._kde.score_samples(seen)
        if method == "knn":
            return -self._nearest.kneighbors(seen)[0][:, -1]
        return -np.sqrt(self._normal.mahalanobis(seen))
