"""`matloom registry`: what models there are, which are in use, and copies of them that are what was registered."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Json, Uri, show
from shards.quoting import printable

if TYPE_CHECKING:
    from finetune.registry.entries import Entry
    from pretrain.claim import Promotion

registry_app = typer.Typer(help="List, fetch, verify and promote registered models.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Registered model.")]
Alias = Annotated[str, typer.Option(help="Which alias.")]
Why = Annotated[str, typer.Option(help="Reason, for the history.")]
CHAMPION = "champion"


@registry_app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Registered model; default: all.")] = None,
    metric: Annotated[list[str], typer.Option(metavar="NAME<VALUE", help="Condition on a metric.")] = [],  # noqa: B006
    tag: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="Condition on a tag.")] = [],  # noqa: B006
    alias: Annotated[str | None, typer.Option(help="What points to it.")] = None,
    modality: Annotated[list[str], typer.Option(help="Must read it; several may be given.")] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(metavar="SHA256", help="Beginning of the data set's digest.")] = None,
    as_json: Json = False,
) -> None:
    """List versions of registered models, by conditions that all must hold."""
    from finetune.registry.entries import entries, search

    found = search(entries(name), metrics=metric, tags=tag, alias=alias, modalities=modality, data=data)
    show([_row(entry) for entry in found], as_json, _line)


@registry_app.command("show")
def show_(name: Name, alias: Alias = CHAMPION, as_json: Json = False) -> None:
    """Show a model's versions, and how its alias came to where it points."""
    from finetune.registry.entries import entries
    from finetune.registry.promotions import promoted

    rows = [_row(entry) for entry in entries(name)]
    past = [asdict(record) for record in promoted(name, alias)]
    if as_json:
        typer.echo(json.dumps({"versions": rows, "promotions": past}, indent=1))
        return
    show(rows, False, _line)
    for record in past:
        who, why, metric, now, before = (
            printable(record[key]) for key in ("who", "why", "metric", "version", "previous")
        )
        when = _when(record["time_ms"])
        told = f"{record['number']}. {when}  {alias} -> {now} (before: {before or 'none'}) by {who}: {why}"
        typer.echo(f"{told} ({metric})" if metric else told)


@registry_app.command()
def pull(
    uri: Uri,
    out: Annotated[Path | None, typer.Option(help="Copy there; default: the offline cache alone.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model, verified against its sealed hashes, for use without the server."""
    import shutil

    from finetune.registry import resolve
    from finetune.registry.contents import check_contents
    from shards.sealed import SEAL, sealing, sha256

    folder = resolve(uri)
    if out is not None:
        with sealing(out) as stage:
            shutil.copytree(folder, stage, dirs_exist_ok=True)
            # the copy is what is used: it is checked itself before it is sealed anew
            check_contents(stage, seal=sha256(folder / SEAL))
            (stage / SEAL).unlink()
    told = {"uri": uri, "folder": str(out or folder), "seal": sha256((out or folder) / SEAL)}
    typer.echo(json.dumps(told, indent=1) if as_json else told["folder"])


@registry_app.command()
def promote(
    name: Name,
    version: Annotated[str, typer.Argument(help="Its number.")],
    why: Why,
    alias: Alias = CHAMPION,
    metric: Annotated[str | None, typer.Option(help="A metric of it that decided.")] = None,
    as_json: Json = False,
) -> None:
    """Let an alias point to a version; who, when and why go into the history."""
    from finetune.registry.promotions import promote_version

    _tell(name, promote_version(name, version, alias=alias, why=why, metric=metric), as_json)


@registry_app.command()
def rollback(name: Name, why: Why, alias: Alias = CHAMPION, as_json: Json = False) -> None:
    """Let an alias point to the version before."""
    from finetune.registry.promotions import rollback as go_back

    _tell(name, go_back(name, alias=alias, why=why), as_json)


@registry_app.command()
def verify(
    uri: Annotated[str | None, typer.Argument(help="A model; default: every version there is.")] = None,
    as_json: Json = False,
) -> None:
    """Hash every file of registered models again; exit code 4 where one is not what was registered."""
    from finetune.registry import resolve
    from finetune.registry.entries import entries
    from shards.errors import MatloomError

    rows: list[dict[str, Any]] = []
    for one in [uri] if uri is not None else [entry.uri for entry in entries()]:
        try:
            resolve(one)
            rows.append({"uri": one, "ok": True, "why": ""})
        except MatloomError as error:
            rows.append({"uri": one, "ok": False, "why": str(error)})
    show(rows, as_json, _verdict)
    raise typer.Exit(0 if all(row["ok"] for row in rows) else 4)


def _verdict(row: dict[str, Any]) -> str:
    why = printable(" ".join(row["why"].split()), most=1000)
    return f"{'ok     ' if row['ok'] else 'REFUSED'}  {printable(row['uri'])}  {why}".rstrip()


def _tell(name: str, record: Promotion, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"name": name, **asdict(record)}, indent=1))
    else:
        typer.echo(printable(f"{record.alias} of {name}: {record.previous or 'none'} -> {record.version}"))


def _row(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "uri": entry.uri}


def _line(row: dict[str, Any]) -> str:
    marks = " ".join(f"@{alias}" for alias in row["aliases"])
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(row["metrics"].items())[:4])
    reads = row["tags"].get("modalities") or row["parameters"].get("modalities", "")
    marks, reads, metrics = map(printable, (marks, reads, metrics))
    return f"{printable(row['uri']):40} {marks:12} {_when(row['created_ms'])}  {reads}  {metrics}".rstrip()


def _when(time_ms: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(time_ms / 1000))
    except (OverflowError, ValueError, OSError):
        # what somebody wrote is no time
        return "????-??-?? ??:??"
