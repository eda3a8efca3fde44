"""What `matloom shards inspect --out` leaves in a folder: JSON, tables as CSV, plots as PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.periodic_table import periodic_table_plot
from pretrain.plots import plot, write_csv

COLUMNS = 3


def write_inspection(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write ``summary.json``, and CSV and PNG of coverage, labels and elements; return the files.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    report : mapping
        What `shards.summary.summarize` returned, and under ``survey`` the table of a `shards.summary.Survey`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(report, indent=1))
    names, survey = list(report["coverage"]), report["survey"]
    write_csv(folder / "coverage.csv", [{"modality": name, **report["coverage"][name]} for name in names])
    if names:
        coverage_plot(folder / "coverage.png", report["coverage"], report["samples"])
    if survey["elements"]:
        write_csv(folder / "elements.csv", [{"element": e, "samples": n} for e, n in survey["elements"].items()])
        title = f"{report['name']}: {report['samples']} samples"
        periodic_table_plot(folder / "elements.png", survey["elements"], title=title)
    if survey["histograms"]:
        bins = [
            {"label": name, "from": low, "to": high, "samples": count}
            for name, bars in survey["histograms"].items()
            for low, high, count in zip(bars["edges"], bars["edges"][1:], bars["counts"], strict=False)
        ]
        write_csv(folder / "labels.csv", bins)
        labels_plot(folder / "labels.png", survey["histograms"], report["labels"])
    if report["reasons"]:
        write_csv(folder / "quarantined.csv", report["reasons"])
    return sorted(folder.iterdir())


def coverage_plot(path: Path, coverage: Mapping[str, Mapping[str, int]], samples: int) -> None:
    """Draw how many samples have both of two modalities."""
    names = list(coverage)
    counts = np.array([[coverage[a][b] for b in names] for a in names])
    size = 2.2 + 0.85 * len(names)

    def draw(axes: Axes) -> None:
        image = axes.imshow(counts, vmin=0, vmax=samples, cmap="YlGnBu")
        for i, j in np.ndindex(counts.shape):
            dark = counts[i, j] > 0.55 * samples
            share = f"{counts[i, j]}\n{counts[i, j] / max(samples, 1):.0%}"
            axes.text(j, i, share, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"samples of {samples} that have both", fontsize=10)
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="samples")

    plot(path, draw, size=(size + 1.0, size))


def labels_plot(
    path: Path, histograms: Mapping[str, Mapping[str, Any]], stats: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw the histogram of every label, with its number of values, mean and standard deviation."""
    rows = math.ceil(len(histograms) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, bars) in zip(panels, histograms.items(), strict=False):
        axes.stairs(bars["counts"], bars["edges"], fill=True, color="tab:blue")
        held = stats[name]
        about = f"{held['count']} values, mean {held['mean']:.3g}, std {held['std']:.3g}"
        axes.set_title(f"{name}\n{about}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_ylabel("samples", fontsize=8)
    for axes in panels[len(histograms) :]:
        axes.axis("off")
    figure.savefig(path, dpi=120)
