"""Tables on a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# a log has no width of its own, and 80 columns cut the tables
console = Console(width=None if sys.stdout.isatty() else 120)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a rich table of rows with equal keys."""
    result = Table(title=escape(title), title_justify="left")
    for name in rows[0]:
        result.add_column(escape(name), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        result.add_row(*[escape(_text(value)) for value in row.values()])
    return result


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print what `shards.summary.summarize` returned, and its ``survey`` where there is one."""
    shards = summary["shard_samples"]
    console.print(
        f"[bold]{escape(summary['name'])}[/bold]: {summary['samples']} samples, {summary['complete']} complete, "
        f"{summary['shards']} shards of {min(shards, default=0)} to {max(shards, default=0)} samples, "
        f"{summary['bytes'] / 1e6:.1f} MB, {len(summary['quarantined'])} quarantined"
    )
    if summary["coverage"]:
        coverage = [{"modality": name, **row} for name, row in summary["coverage"].items()]
        console.print(table("coverage: samples that have both", coverage))
    total = max(sum(summary["sizes"].values()), 1)
    sizes = [{"part": name, "MB": size / 1e6, "%": 100 * size / total} for name, size in summary["sizes"].items()]
    console.print(table("bytes", sizes))
    for split, parts in summary["splits"].items():
        console.print(table(f"split '{split}'", [{"part": part, **counts} for part, counts in parts.items()]))
    survey = summary.get("survey")
    bars = survey["histograms"] if survey else {}
    labels = [
        {"label": name, **stats, **({"distribution": sparkline(bars[name]["counts"])} if bars else {})}
        for name, stats in summary["labels"].items()
    ]
    if labels:
        console.print(table("labels", labels))
    if summary["reasons"]:
        console.print(table("quarantined", summary["reasons"]))
    if survey:
        _print_survey(survey)


def _print_survey(survey: Mapping[str, Any]) -> None:
    tags = [
        {"tag": name, "known": tag["known"], "different": tag["different"], "most frequent": _counts(tag["most"])}
        for name, tag in survey["tags"].items()
    ]
    if tags:
        console.print(table("tags", tags))
    if survey["elements"]:
        console.print(f"{len(survey['elements'])} elements: {_counts(survey['elements'], 24)}", highlight=False)
    for name, text in survey["texts"].items():
        console.print(f"{text['count']} texts '{name}' of {text['mean_characters']:.0f} characters on average")
    for example in survey["examples"]:
        rows = [{"what": "id", "value": example["id"]}, {"what": "group", "value": example["group"]}]
        rows += [{"what": kind, "value": _assignments(example[kind])} for kind in ("tags", "labels")]
        for name, value in example["modalities"].items():
            shapes = value if isinstance(value, str) else ", ".join(f"{key} {shape}" for key, shape in value.items())
            rows.append({"what": name, "value": shapes})
        console.print(table("example", rows))


def print_leakage(report: Mapping[str, Any]) -> None:
    """Print the table of a `shards.leakage.LeakageReport`."""
    leaks, rows = report["leaks"], dict[str, dict[str, Any]]()
    for leak in leaks:
        rows.setdefault(leak["split"], {"split": leak["split"]})[f"same {leak['kind']}"] = leak["sets"]
    if rows:
        console.print(table("sets of samples that are alike and stand in several parts", list(rows.values())))
    for leak in leaks:
        for parts in leak["examples"]:
            where = "; ".join(f"{part}: {', '.join(ids)}" for part, ids in parts.items())
            console.print(f"{leak['split']}, {leak['kind']}: {where}", markup=False, highlight=False)
    alike = {kind: held["sets"] for kind, held in report["alike"].items() if held["sets"]}
    console.print(f"sets that are alike in the whole data set: {_counts(alike) or 'nothing'}")


def sparkline(counts: Sequence[float]) -> str:
    """Return one block character for each bin, its height the share of the fullest; an empty bin is a space."""
    blocks, most = "▁▂▃▄▅▆▇█", max([*counts, 1])
    return "".join(blocks[math.ceil(count / most * len(blocks)) - 1] if count else " " for count in counts)


def _counts(counts: Mapping[str, int], limit: int = 5) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:limit])
    return shown + (", ..." if len(counts) > limit else "")


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
