"""``matloom launch estimate``: what a recipe would take on a cluster, before there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Json, Set

if TYPE_CHECKING:
    from launch.estimates.cluster import Cluster
    from launch.estimates.work import Work

GPUS = "1,2,4,8,16,32,64,128,256,512,1024,2048,4096"
MATERIALS = "1e5,1e6,1e7,1e8,1e9"
# beyond what there is of either
MOST = 1e12


def estimate(
    source: Annotated[Path, typer.Argument(help="Recipe (TOML), or the JSON that was measured of one.")],
    set_: Set = [],  # noqa: B006  typer copies it
    cluster: Annotated[
        str, typer.Option(help="TOML file, or one that comes along: dgx-h100, hgx-a100, ethernet-100g.")
    ] = "dgx-h100",
    deepspeed_config: Annotated[
        str | None, typer.Option("--deepspeed-config", help="File or profile whose settings are measured.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure again what was measured before.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps to measure.")] = 20,
    store: Annotated[
        Path | None, typer.Option(help="Where to keep what was measured (default: NAME.measured.json).")
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of accelerators.")] = GPUS,
    materials: Annotated[str, typer.Option(help="Numbers of training samples.")] = MATERIALS,
    epochs: Annotated[int, typer.Option(min=0, help="0: those of the recipe.")] = 0,
    stage: Annotated[int | None, typer.Option(min=0, max=3, help="Of ZeRO, other than the measured one.")] = None,
    as_json: Json = False,
) -> None:
    """Estimate rate, efficiency, memory, reading, checkpoints and time on 1 to 4,096 accelerators."""
    from launch.estimates.cluster import load_cluster
    from launch.estimates.table import scaling_rows, training_rows

    place = load_cluster(cluster)
    counts, samples = numbers(gpus, "--gpus"), numbers(materials, "--materials")
    work = _measured(source, set_, deepspeed_config, anew=measure, steps=steps, store=store)
    if stage is not None:
        work = work.model_copy(update={"stage": stage})
    there = work.on(place.accelerator.name, place.accelerator.peak * place.accelerator.achieved)
    rows = scaling_rows(there, place, counts)
    times = training_rows(there, place, counts, samples, epochs=epochs or work.epochs)
    if as_json:
        told = {"cluster": place.model_dump(), "work": there.model_dump(), "scaling": rows, "training": times}
        typer.echo(json.dumps(told, indent=1))
        return
    _print(work, there, place, rows, times, epochs or work.epochs)


def numbers(text: str, where: str) -> list[int]:
    """Return whole numbers above 0, written with commas, such as ``1,8,1e6``."""
    from shards.errors import ConfigError

    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    # a NaN is in no range
    if not found or not all(1 <= number <= MOST and number.is_integer() for number in found):
        raise ConfigError(f"'{text}' are no whole numbers from 1 to {MOST:g}", where=where, do=f"{where} 1,8,64")
    return sorted({int(number) for number in found})


def _measured(
    source: Path, set_: Sequence[str], settings: str | None, *, anew: bool, steps: int, store: Path | None
) -> Work:
    """Return what was measured of a recipe, or measure it now and keep it."""
    from launch.calibrate import calibrate
    from launch.estimates.work import read_work
    from launch.profiles import deepspeed_settings
    from pretrain.config import load_recipe
    from pretrain.settings import read_settings
    from shards.errors import ConfigError

    if source.suffix == ".json":
        if set_ or settings or anew:
            raise ConfigError(
                "what was measured stays as it is", where=source, do="name the recipe to measure it otherwise"
            )
        return read_work(source)
    recipe = load_recipe(source, set_)
    keys = read_settings(deepspeed_settings(settings)) if settings else {}
    store = store or Path(f"{recipe.name}.measured.json")
    if store.exists() and not anew:
        raise ConfigError(
            "this was measured before, maybe of another version of the recipe",
            where=store,
            do=f"matloom launch estimate {store}, or --measure to measure it anew",
        )
    if not store.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {store.parent}", where="--store", do="make it, or choose another file")
    typer.echo(f"measuring {steps} optimizer steps of {recipe.name}", err=True)
    work = calibrate(recipe, keys, world=1, steps=steps)
    store.write_text(work.model_dump_json(indent=1))
    typer.echo(f"kept in {store}", err=True)
    return work


def _print(
    work: Work, there: Work, cluster: Cluster, rows: list[dict[str, Any]], times: list[dict[str, Any]], epochs: int
) -> None:
    from launch.tables import console, table
    from pretrain.meters import GIB

    console.print(f"{work.name}, {work.rows} rows a rank, {work.trained:,} parameters learn, ZeRO {work.stage}")
    console.print(
        f"measured on {work.device}: {1e3 * work.spent.total:.1f} ms a step over {work.steps} optimizer steps"
    )
    if there is not work:
        console.print(
            f"on {there.device} at {cluster.accelerator.achieved:.0%} of its peak: {1e3 * there.spent.total:.2f} ms; "
            "at best, until it is measured there: small kernels do not get that far, and data are taken to come in time"
        )
    console.print(cluster.name)
    shown = [
        {
            "GPUs": row["gpus"],
            "batch": row["global batch"],
            "step ms": 1e3 * row["step_s"],
            "samples/s": round(row["samples_per_s"]),
            "eff %": 100 * row["efficiency"],
            "bound by": row["bound"],
            "sent MB": row["sent_bytes"] / 1e6,
            "read GB/s": row["read_bytes_per_s"] / 1e9,
            "of": row["readable_bytes_per_s"] / 1e9,
            "save s": row["checkpoint_s"],
            "save %": 100 * row["checkpoint_share"],
        }
        for row in rows
    ]
    console.print(table("a step, equal rows a rank", shown))
    memory = [
        {"GPUs": row["gpus"], **{f"ZeRO {stage}": size / GIB for stage, size in enumerate(row["memory_by_stage"])}}
        | ({f"of the host, ZeRO {there.stage}": row["host_bytes"] / GIB} if row["host_bytes"] else {})
        for row in rows
    ]
    console.print(table("memory of a rank, GiB", memory))
    cells = {(row["gpus"], row["materials"]): f"{_span(row['hours'])}, {row['gpu_hours']:,.0f}" for row in times}
    samples = sorted({row["materials"] for row in times})
    spent = [
        {"GPUs": str(row["gpus"]), **{f"{many:,}": cells.get((row["gpus"], many), "-") for many in samples}}
        for row in rows
    ]
    console.print(table(f"time and GPU hours of {epochs} epochs, by materials", spent))
    over = [row["gpus"] for row in rows if row["memory_bytes"] > cluster.accelerator.memory]
    if over:
        console.print(f"ZeRO {there.stage} does not fit {cluster.accelerator.name} on {over} GPUs")


def _span(hours: float) -> str:
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"
