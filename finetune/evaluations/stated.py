"""What a predictor says of its own uncertainty on calibration rows and on tested rows, and what is found of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from finetune.evaluations.base import Draw
from finetune.metrics.uncertainty import aurc, risk_coverage
from finetune.prediction import Prediction
from pretrain.plots import Row

# points of a curve in a table
POINTS = 100


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Predictions and truth of two parts.

    Attributes
    ----------
    names : tuple of str
        Of the T targets.
    task : str
        See `finetune.heads.base.Head`.
    held, held_targets : Prediction, Tensor
        Of the rows that calibrate; (N, T), NaN where unknown.
    tested, targets : Prediction, Tensor
        Of the rows that are reported.
    ids : sequence of str
        Of the rows that are reported.
    """

    names: tuple[str, ...]
    task: str
    held: Prediction
    held_targets: Tensor
    tested: Prediction
    targets: Tensor
    ids: Sequence[str]

    def known(self) -> Iterator[tuple[int, str, np.ndarray]]:
        """Yield each target of which a tested row is known: its number, its name, the rows (N,) bool."""
        for i, name in enumerate(self.names):
            rows = (~self.targets[:, i].isnan()).numpy()
            if rows.any():
                yield i, name, rows


@dataclass
class Found:
    """Parts of findings."""

    text: str = ""
    values: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    plots: dict[str, Draw] = field(default_factory=dict)

    def joined(self, other: Found) -> Found:
        """Return both."""
        return Found(
            self.text + other.text,
            self.values | other.values,
            self.tables | other.tables,
            self.plots | other.plots,
        )

    def add(self, table: str, *rows: Row) -> None:
        """Add rows to a table."""
        self.tables.setdefault(table, []).extend(rows)

    def risk(self, name: str, uncertainty: np.ndarray, loss: np.ndarray, unit: str) -> dict[str, float]:
        """Add the risk-coverage curve of a target; return its areas."""
        found = aurc(uncertainty, loss)
        curves = {
            "by uncertainty": risk_coverage(uncertainty, loss),
            "by the error itself": risk_coverage(loss, loss),
        }
        chosen = np.unique(np.linspace(0, len(loss) - 1, min(POINTS, len(loss))).astype(int))
        coverage, risk = curves["by uncertainty"]
        oracle = curves["by the error itself"][1]
        self.add(
            "risk_coverage",
            *(
                {"target": name, "coverage": float(coverage[j]), "risk": float(risk[j]), "oracle": float(oracle[j])}
                for j in chosen
            ),
        )
        self.values |= {f"{name}/{key}": value for key, value in found.items()}

        def draw(axes: Axes) -> None:
            for label, (share, value) in curves.items():
                axes.plot(share, value, label=label)
            axes.axhline(found["aurc_random"], color="0.7", lw=1, label="at random")
            axes.set(xlabel="share of the rows that is kept", ylabel=unit, title=name, xlim=(0, 1), ylim=(0, None))
            axes.legend(fontsize=7)

        self.plots[f"risk_coverage_{name}"] = draw
        return found
