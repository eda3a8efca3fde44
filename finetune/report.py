"""The plots of a comparison, each as PNG with a CSV of the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pretrain.plots import plot, write_csv


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
