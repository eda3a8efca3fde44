"""Options and output that several commands of the command line share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def new_folder(path: Path | None) -> Path | None:
    """Return the path of a folder that is there or can be made, or raise `ConfigError` where a file is in its way."""
    from shards.errors import ConfigError

    above = (path, *path.parents) if path else ()
    taken = next((part for part in above if part.exists() and not part.is_dir()), None)
    if taken:
        raise ConfigError(f"{path} can be no folder", where="--out", why=f"{taken} is a file", do="choose another one")
    return path


Config = Annotated[Path, typer.Argument(help="Recipe, TOML.")]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).", callback=new_folder)]
Hostfile = Annotated[Path | None, typer.Option(help="A host a line, 'NAME slots=RANKS'; none: this host.")]
Include = Annotated[str, typer.Option(help="Only these, as in 'worker-0@worker-1:0,2'.")]
Exclude = Annotated[str, typer.Option(help="All but these.")]
MasterAddr = Annotated[str | None, typer.Option(help="Of the first host; default: its name.")]
MasterPort = Annotated[int, typer.Option(min=0, max=65535, help="On the first host; 0: a free one.")]
Ssh = Annotated[str, typer.Option(help="How to reach hosts, as in 'ssh -F config'.")]
Env = Annotated[list[str], typer.Option("--env", metavar="NAME[=VALUE]", help="Give the ranks this variable too.")]
EnvFile = Annotated[
    Path | None, typer.Option(help="NAME=VALUE lines for the ranks; of mode 600 where one is a secret.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print the command.")]
Uri = Annotated[str, typer.Argument(help="models:/name@alias, models:/name/version, hf://org/name, or a folder.")]
Data = Annotated[str, typer.Option(help="Folder of shards, or embedded:NAME.")]
DATA = "embedded:dft_crystals"


def show(rows: list[dict[str, Any]], as_json: bool, line: Any) -> None:
    """Print rows, as JSON or a line each."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(line(row))
