"""How often each element occurs, drawn as a periodic table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

# a dot is an empty place; the last two rows are the lanthanides and actinides
TABLE = """
H . . . . . . . . . . . . . . . . He
Li Be . . . . . . . . . . B C N O F Ne
Na Mg . . . . . . . . . . Al Si P S Cl Ar
K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe
Cs Ba . Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra . Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
. . . . . . . . . . . . . . . . . .
. . La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu .
. . Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr .
"""
ABSENT = "#eeeeee"


def places() -> dict[str, tuple[int, int]]:
    """Return row and column of each of the 118 elements, from 0 at the top left."""
    rows = (line.split() for line in TABLE.strip().splitlines())
    return {symbol: (i, j) for i, row in enumerate(rows) for j, symbol in enumerate(row) if symbol != "."}


def periodic_table_plot(path: Path, counts: Mapping[str, int], *, title: str) -> None:
    """Draw the number of samples that contain each element as PNG, on a logarithmic colour scale.

    Parameters
    ----------
    path : Path
        Target file.
    counts : mapping of str to int
        Symbol to count; elements that are not named, or named with 0, are grey.
    title : str
        Printed in the gap at the top.
    """
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    axes = figure.subplots()
    # a scale of no width would have no colours
    scale = ScalarMappable(LogNorm(1, max(10, *counts.values(), 0)), "YlGnBu")
    for symbol, (row, column) in places().items():
        _cell(axes, scale, symbol, counts.get(symbol, 0), row, column)
    axes.text(7.0, 0.55, title, ha="center", va="center", fontsize=15)
    axes.text(7.0, 1.25, "samples that contain the element", ha="center", va="center", fontsize=11, color="0.35")
    for row in (8, 9):
        axes.text(1.85, row + 0.5, "57-71" if row == 8 else "89-103", ha="right", va="center", fontsize=9, color="0.35")
    axes.set(xlim=(-0.1, 18.1), ylim=(10.1, -0.1), aspect="equal")
    axes.axis("off")
    bar = figure.colorbar(scale, ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("samples")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda count, _: _short(round(count))))
    figure.savefig(path, dpi=120)


def _cell(axes: Axes, scale: ScalarMappable, symbol: str, count: int, row: int, column: int) -> None:
    colour = to_rgba(ABSENT) if not count else tuple(scale.to_rgba(np.array([float(count)]))[0])
    axes.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, facecolor=colour, edgecolor="none"))
    ink = "0.6" if not count else _ink(colour)
    axes.text(column + 0.5, row + 0.38, symbol, ha="center", va="center", fontsize=14, color=ink, weight="bold")
    if count:
        axes.text(column + 0.5, row + 0.76, _short(count), ha="center", va="center", fontsize=9, color=ink)


def _ink(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever stands out (weights of ITU-R BT.709)."""
    return "black" if 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 0.45 else "white"


def _short(count: int) -> str:
    """Return at most five characters: 999, 1.2k, 156k."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 999_500 else f"{count / 1e6:.1f}M"
