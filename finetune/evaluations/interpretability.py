"""Whether a latent space is ordered by physics, as a number: purity of neighbours and clusters beside permuted ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from finetune.evaluations.base import EVALUATIONS, Findings, Subject
from finetune.evaluations.embedding import EmbeddingEvaluation
from finetune.evaluations.properties import DERIVED, known_of, values_of
from pretrain.plots import Row
from shards.errors import DataError

# fewer known samples say nothing
FEWEST = 10


@EVALUATIONS.register("interpretability")
class Interpretability(EmbeddingEvaluation):
    """Neighbour and cluster purity in the latent space, each against the same figure under permuted labels.

    Attributes
    ----------
    properties : tuple of str
        Classes: ``crystal_system``, ``metal``, or tags.
    labels : tuple of str
        Numbers, of which the share of variance is reported that the mean of the neighbours explains.
    neighbours : int
        k, by cosine.
    permutations : int
        Of the labels among the samples.
    """

    kind: Literal["interpretability"] = "interpretability"
    properties: tuple[str, ...] = DERIVED
    labels: tuple[str, ...] = ("formation_energy_ev_per_atom", "band_gap_ev")
    neighbours: int = Field(10, ge=1)
    permutations: int = Field(200, ge=20)

    def __call__(self, subject: Subject) -> Findings:
        """Measure every property and label of which enough is known."""
        vectors, samples, name = self.pooled(subject)
        rows: list[Row] = []
        for prop in self.properties:
            known, classes = known_of(samples, prop)
            if len(known) >= FEWEST and len(set(classes)) > 1:
                numbers = np.unique(classes, return_inverse=True)[1]
                rows += self._classes(prop, vectors[known], numbers, subject.seed)
        for label in self.labels:
            values = values_of(samples, label)
            known = np.flatnonzero(~np.isnan(values))
            if len(known) >= FEWEST and np.ptp(values[known]) > 0:
                rows.append(self._label(label, vectors[known], values[known], subject.seed))
        if not rows:
            raise DataError("the data set knows none of the properties and labels", where=subject.dataset.location)
        return Findings(
            title=f"How the embedding '{name}' is ordered",
            text=f"neighbour_purity: share of the {self.neighbours} nearest samples (cosine) that are of the sample's "
            "own class. cluster_purity: share of the samples that are of the most frequent class of their k-means "
            "cluster, as many clusters as classes. neighbour_r2: share of a label's variance that the mean of the "
            f"neighbours explains. Beside each the same figure over {self.permutations} permutations of the labels "
            "among the samples (mean and 95th percentile); p is the share of permutations that reach the measured one.",
            values={f"{row['property']}/{row['measure']}": row["value"] for row in rows}
            | {f"{row['property']}/{row['measure']}/permuted": row["permuted"] for row in rows},
            tables={"interpretability": rows},
            plots={"interpretability": lambda axes: _bars(axes, rows)},
        )

    def _classes(self, prop: str, vectors: np.ndarray, classes: np.ndarray, seed: int) -> list[Row]:
        near = neighbours(vectors, self.neighbours)
        cluster = clusters(vectors, int(classes.max()) + 1, seed)
        measures: dict[str, Callable[[np.ndarray], float]] = {
            "neighbour_purity": lambda y: float((y[near] == y[:, None]).mean()),
            "cluster_purity": lambda y: cluster_purity(cluster, y),
        }
        return [self._row(prop, name, measure, classes, seed) for name, measure in measures.items()]

    def _label(self, label: str, vectors: np.ndarray, values: np.ndarray, seed: int) -> Row:
        near = neighbours(vectors, self.neighbours)

        def explained(y: np.ndarray) -> float:
            return float(1 - ((y - y[near].mean(1)) ** 2).sum() / ((y - y.mean()) ** 2).sum())

        return self._row(label, "neighbour_r2", explained, values, seed)

    def _row(self, prop: str, name: str, measure: Callable[[np.ndarray], float], y: np.ndarray, seed: int) -> Row:
        rng = np.random.default_rng(seed)
        value = measure(y)
        permuted = np.array([measure(rng.permutation(y)) for _ in range(self.permutations)])
        return {
            "property": prop, "measure": name, "n": len(y), "value": value, "permuted": float(permuted.mean()),
            "permuted_95": float(np.quantile(permuted, 0.95)),
            "p": float((1 + (permuted >= value).sum()) / (1 + self.permutations)),
        }  # fmt: skip


def neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest other rows (N, k) of each of N rows, by cosine."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(vectors) - 1)
    # without a query, a row is not its own neighbour
    return NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(return_distance=False)


def clusters(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the k-means cluster (N,) of each row."""
    from sklearn.cluster import KMeans

    return KMeans(min(count, len(vectors)), n_init=10, random_state=seed).fit_predict(vectors)


def cluster_purity(cluster: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of N rows that are of the most frequent class of their cluster."""
    from sklearn.metrics.cluster import contingency_matrix

    return float(contingency_matrix(classes, cluster).max(axis=0).sum() / len(classes))


def _bars(axes: Axes, rows: list[Row]) -> None:
    places = np.arange(len(rows))
    axes.barh(places, [row["value"] for row in rows], color="tab:blue", label="measured")
    axes.plot([row["permuted_95"] for row in rows], places, "k|", ms=12, label="95 % of permutations")
    axes.set_yticks(places, [f"{row['property']}\n{row['measure']}" for row in rows], fontsize=7)
    axes.legend(fontsize=7)
