"""The report of a comparison, and the map of a latent space: each plot as PNG with a CSV of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from pretrain.plots import Row, plot, write_csv


def parity_plot(folder: Path, target: str, label: str, targets: np.ndarray, predictions: np.ndarray) -> None:
    """Plot predictions against targets: ``parity_<target>.png`` and ``.csv``."""
    known = ~np.isnan(targets)
    targets, predictions = targets[known], predictions[known]
    rows = [{"target": float(t), "prediction": float(p)} for t, p in zip(targets, predictions, strict=True)]
    write_csv(folder / f"parity_{target}.csv", rows)
    low, high = float(min(targets.min(), predictions.min())), float(max(targets.max(), predictions.max()))

    def draw(axes: Axes) -> None:
        axes.plot([low, high], [low, high], color="0.7", lw=1)
        axes.scatter(targets, predictions, s=14)
        axes.set(xlabel=f"DFT {target}", ylabel="predicted", title=label)

    plot(folder / f"parity_{target}.png", draw, size=(4.5, 4.2))


def latent_map(folder: Path, vectors: np.ndarray, rows: Sequence[Row]) -> None:
    """Map embeddings to two dimensions by t-SNE (cosine): ``latent_map.csv``, one PNG by band gap, one by prototype.

    Parameters
    ----------
    folder : Path
        Where the files go.
    vectors : ndarray
        (N, D) unit rows.
    rows : sequence
        N rows with ``id``, ``formula``, ``prototype`` and ``band_gap_ev`` (None where unknown).
    """
    from sklearn.manifold import TSNE

    points = TSNE(metric="cosine", init="pca", random_state=0, perplexity=min(30, (len(rows) - 1) / 3)).fit_transform(
        vectors
    )
    table = [{**row, "x": float(x), "y": float(y)} for row, (x, y) in zip(rows, points, strict=True)]
    write_csv(folder / "latent_map.csv", table)
    gaps = np.array([np.nan if row["band_gap_ev"] is None else row["band_gap_ev"] for row in rows], dtype=float)

    def by_gap(axes: Axes) -> None:
        unknown = np.isnan(gaps)
        axes.scatter(points[unknown, 0], points[unknown, 1], s=8, color="0.85", label="not calculated")
        dots = axes.scatter(points[~unknown, 0], points[~unknown, 1], s=14, c=gaps[~unknown], cmap="plasma")
        axes.figure.colorbar(dots, ax=axes, label="band gap (eV)")
        axes.set(title="Crystal embeddings by band gap", xticks=[], yticks=[])
        axes.legend(fontsize=7)

    def by_prototype(axes: Axes) -> None:
        colours = matplotlib.colormaps["tab20"]
        for i, name in enumerate(sorted({row["prototype"] for row in rows})):
            chosen = np.array([row["prototype"] == name for row in rows])
            axes.scatter(points[chosen, 0], points[chosen, 1], s=12, color=colours(i % 20), label=name)
        axes.set(title="Crystal embeddings by prototype", xticks=[], yticks=[])
        axes.legend(fontsize=6, ncol=2, loc="center left", bbox_to_anchor=(1, 0.5))

    plot(folder / "latent_map_band_gap.png", by_gap, size=(6, 4.6))
    plot(folder / "latent_map_prototype.png", by_prototype, size=(7.5, 4.6))
