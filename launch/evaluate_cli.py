"""`matloom evaluate`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.options import DATA, Data, Json, Set, Uri, show


def evaluate(
    uri: Uri,
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "chemical_system",
    part: Annotated[str, typer.Option(help="Part of the split.")] = "test",
    only: Annotated[list[str], typer.Option(metavar="KIND", help="An evaluation; default: all that fit.")] = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder (default: runs/evaluate/MODEL).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    track: Annotated[
        bool | None,
        typer.Option("--track/--no-track", help="Log to MLflow (default: where the model is from a registry)."),
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "matloom",
    as_json: Json = False,
) -> None:
    """Evaluate a registered model on held-out materials: tables, plots and a page for each evaluation."""
    from contextlib import nullcontext

    from finetune.evaluations.base import Subject
    from finetune.evaluations.run import chosen_evaluations, parameters_of, run_evaluations
    from finetune.loading import load
    from finetune.registry import SCHEMES
    from pretrain.tracking import Tracker
    from shards.locate import locate
    from shards.reader import Dataset

    def report(line: str) -> None:
        # what is printed is the result; with --json it must stay JSON
        typer.echo(line, err=as_json)

    subject = Subject(model=load(uri), dataset=Dataset(locate(data)), split=split, part=part, seed=seed)
    evaluations = chosen_evaluations(subject, only, set_)
    name = re.sub(r"[^\w.-]+", "-", uri.partition(":/")[2] or Path(uri).resolve().name).strip("-")
    out = out or Path("runs") / "evaluate" / name
    tracked = uri.startswith(SCHEMES) if track is None else track
    parameters = parameters_of(uri, subject, evaluations)
    with (
        Tracker(out, experiment, f"{name}-evaluate", parameters, report=report) if tracked else nullcontext() as tracker
    ):
        findings = run_evaluations(subject, evaluations, out, must=bool(only), tracker=tracker, uri=uri, report=report)
    if as_json:
        typer.echo(json.dumps(_plain(findings), indent=1))
        return
    for kind, found in findings.items():
        show([dict(row) for row in found.tables[kind]], False, _retrieval_line) if kind == "retrieval" else _print(
            kind, found
        )
    typer.echo(f"everything on one page: {out}/report/report.html; tables and plots beside it")


def _plain(findings: dict[str, Any]) -> Any:
    """Return the rows of the first table of a single evaluation, or values and tables of several by kind."""
    if len(findings) == 1:
        (found,) = findings.values()
        return next(iter(found.tables.values()))
    return {kind: {"values": found.values, "tables": found.tables} for kind, found in findings.items()}


def _print(kind: str, found: Any) -> None:
    typer.echo(f"{found.title}")
    for name, value in found.values.items():
        typer.echo(f"{kind:>18}  {name:50} {value:.4g}")


def _retrieval_line(r: dict[str, Any]) -> str:
    first, *others = [int(key.removeprefix("recall_at_")) for key in r if key.startswith("recall_at_")]
    return (
        f"{r['query']:>15} -> {r['target']:15} n {r['n']:4}  recall@{first} {r[f'recall_at_{first}']:.2f} "
        f"(chance {r[f'chance_at_{first}']:.3f})  "
        + "".join(f"@{k} {r[f'recall_at_{k}']:.2f}  " for k in others)
        + f"median rank {r['median_rank']:.0f}"
    )
