"""`matloom predict` and `matloom embed`: of some files on the screen, of any number of materials into a folder."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Json, Uri, show

if TYPE_CHECKING:
    from finetune.predicted import Predicted
    from finetune.streaming import Streamed

Materials = Annotated[
    list[str],
    typer.Argument(
        help="Files (CIF, POSCAR, JSON, picture, CSV of a density of states) or SMILES.", show_default=False
    ),
]
Stream = Annotated[
    str | None, typer.Option("--data", help="Instead: shards, embedded:NAME, a folder or archive of structures.")
]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Materials that go through the network together.")]
PartSize = Annotated[int, typer.Option(min=1, help="Materials a Parquet part, with --out.")]
Workers = Annotated[int, typer.Option(min=1, help="Local processes, with --out.")]
Scheduler = Annotated[str | None, typer.Option(help="Address of a Dask scheduler, with --out.")]


def predict(
    uri: Uri,
    materials: Materials = [],  # noqa: B006  typer copies it
    data: Stream = None,
    out: Annotated[Path | None, typer.Option(help="Folder for Parquet parts; needed with --data.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Instead: CSV with id_a, id_b, ids of --data, or files or SMILES; for a model of pairs."),
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
    as_csv: Csv = False,
    batch_size: BatchSize = 64,
    part_size: PartSize = 4096,
    workers: Workers = 1,
    scheduler: Scheduler = None,
) -> None:
    """Predict properties of materials, each with its unit and, where the model knows it, its uncertainty."""
    if pairs is None:
        _check(materials, data, out, as_csv, resume)
    from finetune.loading import PropertyModel, load
    from shards.errors import ConfigError

    model = load(uri)
    if not isinstance(model, PropertyModel):
        raise ConfigError(
            f"'{uri}' is a pretrained model without a head", do="matloom finetune, then predict with its result"
        )
    if pairs is not None:
        _refuse_beside_pairs(materials, out, resume)
        from finetune.pair_model import predict_table

        named, of_pairs = predict_table(model, pairs, data, batch_size=batch_size)
        _show([{"id_a": a, "id_b": b} for a, b in named], of_pairs, as_json, as_csv)
        return
    if out is not None:
        from finetune.streaming import predict_stream

        options = {"batch_size": batch_size, "part_size": part_size, "workers": workers, "scheduler": scheduler}
        done = predict_stream(model, data or materials, out, resume=resume, report=_progress, **options)
        _done(out, done, as_json)
        return
    predictions = model.predict(list(materials), batch_size=batch_size)
    _show([{"file": material} for material in materials], predictions, as_json, as_csv)


def embed(
    uri: Uri,
    materials: Materials = [],  # noqa: B006  typer copies it
    data: Stream = None,
    out: Annotated[
        Path | None, typer.Option(help="embeddings.npy by default, one row a material; with --data a folder.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="By which modality (default: the first that there is).")] = None,
    resume: Resume = False,
    as_json: Json = False,
    as_csv: Csv = False,
    batch_size: BatchSize = 64,
    part_size: PartSize = 4096,
    workers: Workers = 1,
    scheduler: Scheduler = None,
) -> None:
    """Write the unit embedding vectors of materials."""
    _check(materials, data, out, as_csv, resume)
    from finetune.loading import load_foundation

    model = load_foundation(uri)
    if data is not None or (out is not None and out.suffix != ".npy"):
        from finetune.streaming import embed_stream

        assert out is not None
        options = {"batch_size": batch_size, "part_size": part_size, "workers": workers, "scheduler": scheduler}
        done = embed_stream(
            model, data or materials, out, modality=modality, resume=resume, report=_progress, **options
        )
        _done(out, done, as_json)
        return
    vectors = model.embed(list(materials), modality, batch_size=batch_size)
    if as_json or as_csv:
        rows = [{"file": name, "vector": vector.tolist()} for name, vector in zip(materials, vectors, strict=True)]
        if as_json:
            show(rows, True, str)
        else:
            _print_csv([{"file": r["file"], **{f"v{i}": x for i, x in enumerate(r["vector"])}} for r in rows])
        return
    _save(out or Path("embeddings.npy"), vectors)


def _check(materials: list[str], data: str | None, out: Path | None, as_csv: bool, resume: bool) -> None:
    """Refuse options that contradict each other."""
    from shards.errors import ConfigError

    if bool(materials) == (data is not None):
        raise ConfigError("give materials, or a data set by --data", do="matloom predict URI some.cif")
    if data is not None and out is None:
        raise ConfigError("a data set needs a folder for its results", do="--out FOLDER")
    if out is not None and as_csv:
        raise ConfigError("--csv prints, --out writes Parquet", do="give one of them")
    if resume and out is None:
        raise ConfigError("there is nothing to go on with", do="--out FOLDER --resume")


def _refuse_beside_pairs(materials: list[str], out: Path | None, resume: bool) -> None:
    from shards.errors import ConfigError

    if materials or out is not None or resume:
        raise ConfigError("--pairs names what is predicted, and prints it", do="matloom predict URI --pairs F --csv")


def _show(named: list[dict[str, str]], predictions: Any, as_json: bool, as_csv: bool) -> None:
    """Print what was predicted of named materials, or pairs."""
    found = [
        (names, one)
        for names, of_it in zip(named, predictions, strict=True)
        for one in (of_it.values() if isinstance(of_it, dict) else [of_it])
    ]
    rows = [_row(names, one) for names, one in found]
    if as_csv:
        _print_csv(rows)
    elif as_json:
        show(rows, True, str)
    else:
        for row, (names, one) in zip(rows, found, strict=True):
            typer.echo(f"{' + '.join(names.values())}: {row['property']} = {one}")


def _row(names: dict[str, str], found: Predicted) -> dict[str, Any]:
    from finetune.units import describe

    known = found.as_dict()
    known.pop("name")
    return {**names, "property": describe(found.name)[0], "target": found.name, **known, "unit": found.unit}


def _print_csv(rows: list[dict[str, Any]]) -> None:
    flat = [{k: v for key, value in row.items() for k, v in _flat(key, value)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    table = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    table.writeheader()
    table.writerows(flat)


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{key}_{name}", share) for name, share in value.items()]
    if key == "classes":
        return [(key, " ".join(map(str, value)))]
    if isinstance(value, tuple):
        return [(f"{key}_{number}", part) for number, part in enumerate(value)]
    return [(key, value)]


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _done(out: Path, done: Streamed, as_json: bool) -> None:
    """Say once, by the first of several ranks, what there is."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        typer.echo(json.dumps(asdict(done)))
        return
    aside = f", {done.quarantined} put aside: {out}/_quarantined.csv" if done.quarantined else ""
    typer.echo(f"{out}: {done.rows} rows in {done.parts} parts, {done.computed} of them computed now{aside}")


def _save(out: Path, vectors: Any) -> None:
    import numpy as np

    from shards.errors import ConfigError

    try:
        with out.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError("the result cannot be written", where=out, why=error.strerror) from None
    typer.echo(f"{out}: {vectors.shape[0]} x {vectors.shape[1]}")
