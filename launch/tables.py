"""Tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# a log has no width of its own, and 80 columns cut the tables
console = Console(width=None if sys.stdout.isatty() else 120)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a rich table of rows with equal keys."""
    result = Table(title=title, title_justify="left")
    for name in rows[0]:
        result.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        result.add_row(*[_text(value) for value in row.values()])
    return result


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what `shards.summary.summarize` returned."""
    console.print(
        f"[bold]{summary['name']}[/bold]: {summary['samples']} samples, {summary['complete']} complete, "
        f"{summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB, {len(summary['quarantined'])} quarantined"
    )
    coverage = [{"modality": name, **row} for name, row in summary["coverage"].items()]
    console.print(table("coverage: samples that have both", coverage))
    for split, parts in summary["splits"].items():
        console.print(table(f"split '{split}'", [{"part": part, **counts} for part, counts in parts.items()]))
    console.print(table("labels", [{"label": name, **stats} for name, stats in summary["labels"].items()]))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
