"""``matloom shards``: build, inspect, verify, split and fetch data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.shards_build import shards_build

if TYPE_CHECKING:
    from shards.leakage import LeakageReport
    from shards.reader import Dataset

shards_app = typer.Typer(help="Build, inspect, verify, split and fetch data sets.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataSet = Annotated[str, typer.Argument(metavar="DATA", help="Folder of shards, its URL, or embedded:NAME.")]
Folder = Annotated[Path, typer.Argument(help="Folder of shards.")]

shards_app.command("build")(shards_build)


@shards_app.command("inspect")
def shards_inspect(
    data: DataSet,
    out: Annotated[Path | None, typer.Option(help="Write JSON, CSV and PNG into this folder.")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Samples to describe.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Read manifest and indices alone, no sample.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a data set holds: coverage, bytes, splits, labels, elements, what was refused, examples."""
    from launch.bars import bar
    from launch.tables import print_summary
    from shards.errors import ConfigError
    from shards.summary import summarize, survey

    if quick and out is not None:
        raise ConfigError("--out needs the samples", where="--quick", do="leave --quick out")
    dataset = _opened(data)
    report = summarize(dataset)
    if not quick:
        with bar("inspect", len(dataset)) as progress:
            report["survey"] = survey(dataset, examples=examples, progress=progress).table()
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        print_summary(report)
    if out is not None:
        from launch.inspection import write_inspection

        written = write_inspection(out, report)
        typer.echo(f"{out}: {', '.join(path.name for path in written)}", err=as_json)


@shards_app.command("verify")
def shards_verify(
    folder: Folder,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read shards.")] = 1,
    leakage: Annotated[bool, typer.Option(help="Look for duplicates and for leakage between splits.")] = True,
    as_json: Json = False,
) -> None:
    """Check every hash, digest and value, and every claim of the manifest; count duplicates and leaks.

    Exit code 3 for whatever is damaged. Duplicates and leaks are named; `leakage` fails for them.
    """
    from launch.bars import bar
    from shards.manifest import read_manifest
    from shards.reader import Dataset
    from shards.verify import verify_dataset

    with bar("verify", read_manifest(folder).samples) as progress:
        samples = verify_dataset(folder, progress, workers=workers)
    found = _leakage(Dataset(folder)) if leakage else None
    if as_json:
        table = found.table() if found else None
        typer.echo(json.dumps({"folder": str(folder), "samples": samples, "leakage": table}, indent=1))
        return
    typer.echo(f"{folder}: {samples} samples verified")
    for kind, sets in (found.alike if found else {}).items():
        if sets:
            typer.echo(f"same {kind}: {len(sets)} sets of samples, for example {', '.join(sets[0])}")
    for leak in found.grave if found else []:
        typer.echo(f"split '{leak.split}': of the sets of the same {leak.kind}, {leak.sets} stand in several parts")


@shards_app.command("leakage")
def shards_leakage(data: DataSet, as_json: Json = False) -> None:
    """Report what several parts of a split share: structures in any cell, groups, ids, texts, equal values.

    Exit code 3 where structures, groups or ids cross the parts of a split.
    """
    from launch.tables import print_leakage
    from shards.errors import DataError

    found = _leakage(_opened(data))
    if as_json:
        typer.echo(json.dumps(found.table(), indent=1))
    else:
        print_leakage(found.table())
    if found.grave:
        raise typer.Exit(DataError.exit_code)


@shards_app.command("split")
def shards_split(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="Name of the new split.")],
    by: Annotated[
        str,
        typer.Option(
            help="id, group, formula, chemical_system, prototype, any tag, top_quantile, chronological or cluster."
        ),
    ],
    set_: Annotated[
        list[str], typer.Option("--set", metavar="A=B", help="Parameter of the split, for example label=band_gap_ev.")
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Add a split to a data set; its shards are linked, not rewritten, and overlays of it still fit."""
    from shards.recipes import apply_overrides, parse
    from shards.resplit import add_split
    from shards.splits import SplitPlan

    plan = parse(SplitPlan, apply_overrides({"by": by}, set_), where="--by, --set")
    split = add_split(folder, name, plan)
    typer.echo(f"{folder}: split '{name}': {', '.join(f'{part} {len(ids)}' for part, ids in split.ids.items())}")


@shards_app.command("fetch")
def shards_fetch(
    place: Annotated[str, typer.Argument(metavar="URL", help="https://..., s3://..., any URL of fsspec, or a folder.")],
    out: Annotated[Path, typer.Argument(help="Target folder.")],
) -> None:
    """Make a local, verified copy of a data set. The same command goes on with a fetch that was cut off."""
    from launch.bars import share_bar
    from shards.fetch import fetch_dataset

    with share_bar("fetch") as progress:
        manifest = fetch_dataset(place, out, progress=progress)
    size = sum(entry.bytes for entry in manifest.shards)
    typer.echo(f"{out}: {manifest.samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB, verified")


def _opened(data: str) -> Dataset:
    from shards.locate import locate
    from shards.reader import Dataset

    return Dataset(locate(data))


def _leakage(dataset: Dataset) -> LeakageReport:
    from launch.bars import bar
    from shards.leakage import find_leakage

    with bar("leakage", len(dataset)) as progress:
        return find_leakage(dataset, progress)
