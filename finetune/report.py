"""Plots and tables of a run, each as PNG and CSV of the same numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

Row = Mapping[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; a key that a row lacks is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, draw: Callable[[Axes], Any], *, size: tuple[float, float] = (6, 4)) -> None:
    """Draw one pair of axes and save it as PNG."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=120)


def loss_plot(folder: Path, metrics: Path) -> None:
    """Plot the training loss and the validation MRR of a run's ``metrics.jsonl``: ``loss.png``, ``loss.csv``."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [{"step": line["step"], "loss": line["loss"]} for line in lines if "loss" in line]
    scores = [(line["step"], line["val/mrr"]) for line in lines if "val/mrr" in line]
    write_csv(folder / "loss.csv", losses)

    def draw(axes: Axes) -> None:
        axes.plot([row["step"] for row in losses], [row["loss"] for row in losses], lw=0.8, color="tab:blue")
        axes.set(xlabel="step", ylabel="training loss", title="Contrastive pretraining")
        right = axes.twinx()
        right.plot(*zip(*scores, strict=True), "o-", ms=3, color="tab:orange")
        right.set_ylabel("validation mean reciprocal rank")

    plot(folder / "loss.png", draw)


def retrieval_plot(folder: Path, rows: Sequence[Row]) -> None:
    """Plot recall@1 of every ordered pair as a matrix: ``retrieval.png``, ``retrieval.csv``."""
    write_csv(folder / "retrieval.csv", rows)
    names = list(dict.fromkeys(row["query"] for row in rows))
    matrix = np.full((len(names), len(names)), np.nan)
    for row in rows:
        matrix[names.index(row["query"]), names.index(row["target"])] = row["recall_at_1"]

    def draw(axes: Axes) -> None:
        axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        for i, j in np.argwhere(~np.isnan(matrix)):
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color="w" if matrix[i, j] < 0.6 else "k")
        axes.set(xticks=range(len(names)), yticks=range(len(names)), yticklabels=names, xlabel="target", ylabel="query")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_title(f"recall@1 among {rows[0]['n']} held-out materials (chance {rows[0]['chance_at_1']:.3f})")

    plot(folder / "retrieval.png", draw, size=(6, 5))


def parity_plot(folder: Path, target: str, label: str, targets: np.ndarray, predictions: np.ndarray) -> None:
    """Plot predictions against targets: ``parity_<target>.png`` and ``.csv``."""
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
