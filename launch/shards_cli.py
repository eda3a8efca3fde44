"""``matloom shards``: build, inspect, verify and fetch data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.shards_build import shards_build

shards_app = typer.Typer(help="Build, inspect and verify data sets.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

shards_app.command("build")(shards_build)


@shards_app.command("inspect")
def shards_inspect(
    path: Annotated[str, typer.Argument(help="Folder of shards, or embedded:NAME.")], as_json: Json = False
) -> None:
    """Print the coverage matrix, the splits and the labels of a data set."""
    from launch.tables import print_summary
    from shards.locate import locate
    from shards.reader import Dataset
    from shards.summary import summarize

    summary = summarize(Dataset(locate(path)))
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        print_summary(summary)


@shards_app.command("verify")
def shards_verify(folder: Annotated[Path, typer.Argument(help="Folder of shards.")]) -> None:
    """Check every hash, digest and value of a data set."""
    from shards.verify import verify_dataset

    typer.echo(f"{folder}: {verify_dataset(folder)} samples verified")
