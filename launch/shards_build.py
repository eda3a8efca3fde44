"""``matloom shards build``: any source into shards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shards.build_recipe import BuildRecipe


def shards_build(
    source: Annotated[str, typer.Argument(help="Build recipe (.toml), or KIND:PATH, for example structures:cifs.")],
    out: Annotated[Path, typer.Argument(help="Target folder.")],
    feature: Annotated[
        list[str], typer.Option(help="Feature step of a modality (with KIND:PATH); several may be given.")
    ] = [],  # noqa: B006  typer copies it
    like: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Take the feature steps of a model, to use it on the data (with KIND:PATH)."),
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe.")] = [],  # noqa: B006
    workers: Annotated[int, typer.Option(min=0, help="Local processes; 0 = one a core.")] = 0,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Compute on the workers of a Dask scheduler.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and count the records.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build a data set. The same command goes on with a build that was killed."""
    recipe = _recipe(source, feature, set_, like)
    if dry_run:
        records = sum(1 for _ in recipe.opened().items())
        typer.echo(json.dumps({"recipe": recipe.model_dump(mode="json"), "records": records}, indent=1))
        return
    from launch.progress import build_with_progress
    from shards.summary import grouped_reasons

    began = time.perf_counter()
    manifest, state = build_with_progress(recipe, out, workers=workers, scheduler=scheduler)
    seconds = time.perf_counter() - began
    fresh = state.done - state.reused if state else 0
    report = {
        "folder": str(out),
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "coverage": manifest.coverage,
        "quarantined": manifest.quarantined,
        "join": _unmatched(recipe),
        "reused": state.reused if state else 0,
        "seconds": round(seconds, 1),
        "records_per_second": round(fresh / seconds, 1),
    }
    if as_json:
        typer.echo(json.dumps(report, indent=1))
        return
    typer.echo(
        f"{out}: {report['samples']} samples in {report['shards']} shards, {report['bytes'] / 1e6:.1f} MB, "  # type: ignore[operator]
        f"{seconds:.1f} s, {report['records_per_second']} records/s, {report['reused']} reused of an earlier try"
    )
    typer.echo("coverage: " + ", ".join(f"{name} {count}" for name, count in manifest.coverage.items()))
    for side, count in (report["join"] or {}).items():  # type: ignore[attr-defined]
        typer.echo(f"join: {count} {side.replace('_', ' ')}")
    for row in grouped_reasons(manifest.quarantined)[:10]:
        typer.echo(f"quarantined {row['count']}: {row['reason']} (first: {row['example']})")


def _recipe(source: str, feature: list[str], set_: list[str], like: str | None) -> BuildRecipe:
    """Return the recipe of a file, or of ``KIND:PATH`` with feature steps by name or those of a model."""
    from shards.build_recipe import load_build_recipe, short_recipe
    from shards.errors import ConfigError

    path = Path(source)
    if not (path.suffix in {".toml", ".json"} and path.is_file()):
        return short_recipe(source, feature, set_, like=None if like is None else _features_of(like))
    if like is not None:
        raise ConfigError("a build recipe names its feature steps itself", where="--like", do="give KIND:PATH")
    return load_build_recipe(path, set_)


def _features_of(uri: str) -> dict[str, dict[str, Any]]:
    """Return the feature tables of a model's modalities."""
    from finetune.loading import Foundation, load

    model = load(uri)
    specs = model.model.specs if isinstance(model, Foundation) else model.specs
    return {name: dict(spec.feature) for name, spec in specs.items()}


def _unmatched(recipe: BuildRecipe) -> dict[str, int] | None:
    """Count the ids that one side of a join has and the other lacks."""
    from shards.sources.join import JoinedSource

    records = recipe.opened()
    if not isinstance(records, JoinedSource):
        return None
    unmatched = records.unmatched()
    return {
        "records_without_row": len(unmatched.without_row),
        "rows_without_record": len(unmatched.without_record),
    }
