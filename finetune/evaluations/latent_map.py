"""Two-dimensional maps of a frozen embedding, each with the figure that says how far to trust it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from finetune.evaluations.base import EVALUATIONS, Draw, Evaluation, Findings, Subject
from finetune.evaluations.embedding import pooled
from finetune.evaluations.properties import classes_of, values_of
from finetune.loading import Foundation
from pretrain.plots import Row
from shards.errors import DataError
from shards.schema import Sample

Paint = Callable[[Axes, np.ndarray], None]

# colours of a qualitative map; more classes than these are drawn in grey
COLOURS = 20


@EVALUATIONS.register("latent_map")
class LatentMap(Evaluation):
    """PCA and UMAP of the embeddings, coloured by what is known of the materials.

    UMAP as MultiMat does it: cosine, 15 neighbours, minimal distance 0.1. Trustworthiness (Venna and Kaski, 2001) is
    1 where every neighbour in the map is one in the embedding, and about 0.5 for a map at random.

    Attributes
    ----------
    colours : tuple of str
        ``crystal_system``, ``metal``, tags, or labels.
    parts : tuple of str
        Parts of the split that are on the map; nothing is fitted to labels.
    embedding : str
        A modality or fusion of the model; empty: the first.
    neighbours, min_dist : int, float
        Of UMAP, and of the trustworthiness.
    """

    wants: ClassVar[type] = Foundation

    kind: Literal["latent_map"] = "latent_map"
    colours: tuple[str, ...] = ("crystal_system", "metal", "formation_energy_ev_per_atom")
    parts: tuple[str, ...] = Field(("train", "val", "test"), min_length=1)
    embedding: str = ""
    neighbours: int = Field(15, ge=2)
    min_dist: float = Field(0.1, ge=0)

    def __call__(self, subject: Subject) -> Findings:
        """Map all samples of the parts."""
        vectors, samples, name = pooled(subject, self.parts, self.embedding)
        if len(vectors) < 2 * self.neighbours + 2:
            raise DataError(
                f"{len(vectors)} samples are too few for a map with {self.neighbours} neighbours",
                do=f"--set latent_map.neighbours={max(2, len(vectors) // 4)}",
            )
        maps = {"pca": pca(vectors, subject.seed), "umap": self.umap(vectors, subject.seed)}
        trust = {method: trustworthiness(vectors, points, self.neighbours) for method, points in maps.items()}
        plots: dict[str, Draw] = {}
        for colour in self.colours:
            paint = _painter(samples, colour)
            if paint is not None:
                for method, points in maps.items():
                    plots[f"{method}_{colour}"] = _titled(paint, points, f"{method.upper()} of '{name}' by {colour}")
        columns = {f"{method}_{axis}": maps[method][:, i] for method in maps for i, axis in enumerate("xy")}
        rows: list[Row] = [
            {"id": sample.id, **{key: float(column[i]) for key, column in columns.items()}, **sample.tags}
            for i, sample in enumerate(samples)
        ]
        quality: list[Row] = [
            {"map": method, "n": len(vectors), "neighbours": self.neighbours, "trustworthiness": value}
            for method, value in trust.items()
        ]
        return Findings(
            title=f"Maps of the embedding '{name}'",
            text="Distances in a UMAP are not distances in the embedding; the trustworthiness says how many of the "
            f"{self.neighbours} neighbours in the map are neighbours in the embedding (1: all, 0.5: as at random).",
            values={f"trustworthiness/{method}": value for method, value in trust.items()},
            tables={"trustworthiness": quality, "latent_map": rows},
            plots=plots,
        )

    def umap(self, vectors: np.ndarray, seed: int) -> np.ndarray:
        """Return (N, 2) points; the same for the same seed."""
        from umap import UMAP

        # with a seed UMAP runs on one thread, and says so in a warning unless it is told to
        mapper = UMAP(n_neighbors=self.neighbours, min_dist=self.min_dist, metric="cosine", random_state=seed, n_jobs=1)
        return mapper.fit_transform(vectors)


def pca(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return the first two principal components (N, 2)."""
    from sklearn.decomposition import PCA

    return PCA(2, random_state=seed).fit_transform(vectors)


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
