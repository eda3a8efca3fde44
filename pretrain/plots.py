"""Plots of a run, each as PNG with a CSV of the same numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
