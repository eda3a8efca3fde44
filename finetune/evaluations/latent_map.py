"""Two-dimensional maps of a frozen embedding, each with the figure that says how far to trust it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from finetune.evaluations.base import EVALUATIONS, Draw, Findings, Subject
from finetune.evaluations.embedding import EmbeddingEvaluation
from finetune.evaluations.properties import classes_of, values_of
from pretrain.plots import Row
from shards.errors import DataError
from shards.schema import Sample

Method = Literal["pca", "umap", "tsne"]
Paint = Callable[[Axes, np.ndarray], None]

NAMES: dict[Method, str] = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE"}
# colours of a qualitative map; more classes than these are drawn in grey
COLOURS = 20


@EVALUATIONS.register("latent_map")
class LatentMap(EmbeddingEvaluation):
    """PCA, UMAP or t-SNE of the embeddings, coloured by what is known of the materials.

    UMAP as MultiMat does it: cosine, 15 neighbours, minimal distance 0.1. t-SNE (van der Maaten and Hinton, 2008) by
    cosine, from principal components, perplexity 30. Trustworthiness (Venna and Kaski, 2001) is
    1 where every neighbour in the map is one in the embedding, and about 0.5 for a map at random.

    Attributes
    ----------
    methods : tuple of str
        ``pca``, ``umap``, ``tsne``.
    colours : tuple of str
        ``crystal_system``, ``metal``, tags, or labels.
    neighbours, min_dist : int, float
        Of UMAP, and of the trustworthiness.
    """

    kind: Literal["latent_map"] = "latent_map"
    methods: tuple[Method, ...] = Field(("pca", "umap"), min_length=1)
    colours: tuple[str, ...] = ("crystal_system", "metal", "formation_energy_ev_per_atom")
    neighbours: int = Field(15, ge=2)
    min_dist: float = Field(0.1, ge=0)

    def __call__(self, subject: Subject) -> Findings:
        """Map all samples of the parts."""
        vectors, samples, name = self.pooled(subject)
        if len(vectors) < 2 * self.neighbours + 2:
            raise DataError(
                f"{len(vectors)} samples are too few for a map with {self.neighbours} neighbours",
                do=f"--set latent_map.neighbours={max(2, len(vectors) // 4)}",
            )
        maps = {method: self.points(method, vectors, subject.seed) for method in self.methods}
        trust = {method: trustworthiness(vectors, points, self.neighbours) for method, points in maps.items()}
        plots: dict[str, Draw] = {}
        for colour in self.colours:
            paint = _painter(samples, colour)
            if paint is not None:
                for method, points in maps.items():
                    plots[f"{method}_{colour}"] = _titled(paint, points, f"{NAMES[method]} of '{name}' by {colour}")
        columns = {f"{method}_{axis}": maps[method][:, i] for method in maps for i, axis in enumerate("xy")}
        rows: list[Row] = [
            {
                "id": sample.id,
                **{key: float(column[i]) for key, column in columns.items()},
                **sample.tags,
                **sample.labels,
            }
            for i, sample in enumerate(samples)
        ]
        quality: list[Row] = [
            {"map": method, "n": len(vectors), "neighbours": self.neighbours, "trustworthiness": value}
            for method, value in trust.items()
        ]
        return Findings(
            title=f"Maps of the embedding '{name}'",
            text="Distances in a UMAP or t-SNE are not distances in the embedding; the trustworthiness says how many "
            f"of the {self.neighbours} neighbours in the map are so in the embedding (1: all, 0.5: as at random).",
            values={f"trustworthiness/{method}": value for method, value in trust.items()},
            tables={"trustworthiness": quality, "latent_map": rows},
            plots=plots,
        )

    def points(self, method: Method, vectors: np.ndarray, seed: int) -> np.ndarray:
        """Map N vectors to (N, 2) points; the same for the same seed."""
        if method == "pca":
            from sklearn.decomposition import PCA

            return PCA(2, random_state=seed).fit_transform(vectors)
        if method == "tsne":
            from sklearn.manifold import TSNE

            perplexity = min(30.0, (len(vectors) - 1) / 3)
            return TSNE(metric="cosine", init="pca", random_state=seed, perplexity=perplexity).fit_transform(vectors)
        from umap import UMAP

        # with a seed UMAP runs on one thread, and says so in a warning unless it is told to
        mapper = UMAP(n_neighbors=self.neighbours, min_dist=self.min_dist, metric="cosine", random_state=seed, n_jobs=1)
        return mapper.fit_transform(vectors)


def trustworthiness(vectors: np.ndarray, points: np.ndarray, neighbours: int) -> float:
    """Trustworthiness of a map (N, 2) of unit vectors (N, D), neighbours by cosine."""
    from sklearn.manifold import trustworthiness as measure

    return float(measure(vectors, points, n_neighbors=neighbours, metric="cosine"))


def _titled(paint: Paint, points: np.ndarray, title: str) -> Draw:
    def draw(axes: Axes) -> None:
        paint(axes, points)
        axes.set(title=title, xticks=[], yticks=[])

    return draw


def _painter(samples: Sequence[Sample], colour: str) -> Paint | None:
    """Return what scatters points in the colours of a class or label, or None where nothing is known of it."""
    classes = classes_of(samples, colour)
    names = sorted({name for name in classes if name is not None})
    values = values_of(samples, colour)

    def by_class(axes: Axes, points: np.ndarray) -> None:
        palette = matplotlib.colormaps["tab20"]
        for i, name in enumerate([None, *names]):
            chosen = np.array([found == name for found in classes])
            shade = palette((i - 1) % COLOURS) if name is not None and i <= COLOURS else "0.85"
            if chosen.any():
                axes.scatter(points[chosen, 0], points[chosen, 1], s=10, color=shade, label=name or "unknown")
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

    def by_value(axes: Axes, points: np.ndarray) -> None:
        known = ~np.isnan(values)
        axes.scatter(points[~known, 0], points[~known, 1], s=6, color="0.85")
        dots = axes.scatter(points[known, 0], points[known, 1], s=10, c=values[known], cmap="plasma")
        axes.figure.colorbar(dots, ax=axes, label=colour)

    if names:
        return by_class
    return None if np.isnan(values).all() else by_value
