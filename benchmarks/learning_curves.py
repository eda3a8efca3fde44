"""Tables and a picture of what `benchmarks/finetuning.py` measured: error over the share of the labels.

python benchmarks/learning_curves.py runs/finetuning perov_5 dft_crystals --picture docs/figures/learning_curves.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import matplotlib.pyplot as plt

KINDS = ("mean", "random_forest", "linear_probe", "frozen", "scratch", "full")
NAMES = {"random_forest": "descriptors + random forest", "linear_probe": "linear probe", "full": "fine-tuned"}
Curve = dict[float, list[float]]


def curves(folder: Path, name: str, metric: str) -> dict[str, Curve]:
    """Return for every strategy the values of the seeds at each share of the labels."""
    found: dict[str, Curve] = defaultdict(lambda: defaultdict(list))
    for path in folder.glob(f"{name}-*.json"):
        kind, fraction, _ = path.stem.removeprefix(f"{name}-").rsplit("-", 2)
        found[kind][float(fraction)].append(json.loads(path.read_text())[metric])
    return found


def table(found: dict[str, Curve]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a strategy a row, a share of the labels a column."""
    fractions = sorted({fraction for curve in found.values() for fraction in curve})
    best = {f: min(fmean(curve[f]) for curve in found.values() if f in curve) for f in fractions}
    yield "| strategy | " + " | ".join(f"{100 * fraction:g} %" for fraction in fractions) + " |"
    yield "|---" * (1 + len(fractions)) + "|"
    for kind in KINDS:
        cells = []
        for fraction in fractions:
            values = found[kind].get(fraction, [])
            text = f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"**{text}**" if values and fmean(values) == best[fraction] else text)
        yield f"| {NAMES.get(kind, kind)} | " + " | ".join(cells) + " |"


def draw(every: dict[str, dict[str, Curve]], metric: str, picture: Path) -> None:
    """Draw a panel a data set: mean and standard deviation over the seeds, the axis of the labels logarithmic."""
    columns = min(3, len(every))
    rows = -(-len(every) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.1 * rows), squeeze=False)
    for axis in axes.flat[len(every) :]:
        axis.remove()
    for axis, (name, found) in zip(axes.flat, every.items(), strict=False):
        for kind in KINDS:
            curve = sorted(found[kind].items())
            x, y = [100 * fraction for fraction, _ in curve], [fmean(values) for _, values in curve]
            error = [stdev(values) if len(values) > 1 else 0.0 for _, values in curve]
            axis.errorbar(x, y, error, marker="o", markersize=3, linewidth=1.2, capsize=2, label=NAMES.get(kind, kind))
        axis.set(title=name, xscale="log", xlabel="labels / %", ylabel=f"test {metric.upper()}")
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", help="the 'name' of each recipe that was measured")
    parser.add_argument("--metric", default="mae")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    every = {name: curves(options.folder, name, options.metric) for name in options.names}
    for name, found in every.items():
        print(f"\n{name}\n\n" + "\n".join(table(found)))
    if options.picture:
        draw(every, options.metric, options.picture)


if __name__ == "__main__":
    main()
