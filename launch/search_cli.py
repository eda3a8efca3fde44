"""`matloom search` and `matloom discover`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.options import DATA, Data, Json, Uri, show

Among = Annotated[str, typer.Option(help="Modality of the candidates.")]
Where_ = Annotated[
    list[str], typer.Option("--where", metavar="LABEL=LOW..HIGH", help="Candidates whose label lies in a range.")
]
Elements = Annotated[list[str], typer.Option("--element", metavar="SYMBOL", help="An element they must have.")]
Without = Annotated[list[str], typer.Option("--without", metavar="SYMBOL", help="An element they must not have.")]


def search(
    uri: Uri,
    query: Annotated[
        list[Path] | None,
        typer.Argument(help="A structure file, a CSV of a density of states, a picture; several are one material."),
    ] = None,
    text: Annotated[str, typer.Option(help="Description of the material, alone or beside files.")] = "",
    id_: Annotated[str, typer.Option("--id", metavar="ID", help="A material of the data set as the query.")] = "",
    by: Annotated[list[str], typer.Option(metavar="MODALITY", help="Embed the query by it; may be repeated.")] = [],  # noqa: B006
    data: Data = DATA,
    among: Among = "crystal",
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    where: Where_ = [],  # noqa: B006
    element: Elements = [],  # noqa: B006
    without: Without = [],  # noqa: B006
    exclude_self: Annotated[bool, typer.Option("--exclude-self", help="With --id: not the query itself.")] = False,
    exclude_group: Annotated[bool, typer.Option("--exclude-group", help="With --id: nothing of its group.")] = False,
    exclude_duplicates: Annotated[
        bool, typer.Option("--exclude-duplicates", help="Nothing that has the query's own vector.")
    ] = False,
    index: Annotated[Path | None, typer.Option(help="Folder of the index: opened, or built and kept.")] = None,
    faiss: Annotated[Literal["never", "auto", "always"], typer.Option(help="Approximate search.")] = "auto",
    as_json: Json = False,
) -> None:
    """Find the materials of a data set that are nearest to a CIF, a DOS, a text, or several of these together."""
    from finetune.loading import load_foundation
    from finetune.search.run import search as run_search

    foundation = load_foundation(uri)
    hits = run_search(
        foundation,
        _query(foundation, query or [], text, id_, data),
        data=data,
        among=among,
        k=k,
        by=by,
        exclude_self=exclude_self,
        exclude_group=exclude_group,
        exclude_duplicates=exclude_duplicates,
        where=_where(where, element, without),
        index=index,
        faiss=faiss,
    )
    rows = [{"id": h.id, "similarity": h.similarity, **h.tags, "labels": h.labels} for h in hits]

    def line(row: dict[str, Any]) -> str:
        gap = row["labels"].get("band_gap_ev")
        shown = "" if gap is None else f"  gap {gap:.2f} eV"
        return f"{row['similarity']:.3f}  {row['id']:24} {row.get('formula', ''):10} {row.get('prototype', '')}{shown}"

    show(rows, as_json, line)


def discover(
    candidates: Annotated[str, typer.Argument(help="Shards, embedded:NAME, or a folder or file of structures.")],
    goal: Annotated[
        list[str], typer.Option("--goal", metavar="GOAL", help="LABEL=LOW..HIGH, LABEL=max or LABEL=min; repeatable.")
    ] = [],  # noqa: B006
    predictor: Annotated[list[str], typer.Option(metavar="URI", help="A fine-tuned model for the goals.")] = [],  # noqa: B006
    like: Annotated[list[Path], typer.Option(metavar="FILE", help="Be alike: a DOS, a structure.")] = [],  # noqa: B006
    text: Annotated[str, typer.Option(help="Be alike: a description.")] = "",
    foundation: Annotated[str, typer.Option(metavar="URI", help="Pretrained model, for likeness and novelty.")] = "",
    among: Among = "crystal",
    known: Annotated[str, typer.Option(metavar="DATA", help="Known materials: the nearest is named.")] = "",
    part: Annotated[str, typer.Option(metavar="SPLIT:PART", help="Part of the known materials.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="Number of candidates that are shown.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Table, .csv or .json.")] = None,
    as_json: Json = False,
) -> None:
    """Screen candidates for property ranges, extremes and likeness; several goals give a Pareto front."""
    from finetune.discover import discover as run_discover
    from finetune.discover import known_index
    from finetune.discover.report import write_table
    from finetune.loading import PropertyModel, load, load_foundation
    from shards.errors import ConfigError

    models = []
    for uri in predictor:
        model = load(uri)
        if not isinstance(model, PropertyModel):
            raise ConfigError(f"'{uri}' predicts no property", do="matloom finetune; or --foundation for likeness")
        models.append(model)
    space = load_foundation(foundation) if foundation else None
    if space is None and (like or text or known):
        raise ConfigError("likeness and novelty need a pretrained model", do="--foundation models:/NAME@champion")
    found = run_discover(
        candidates,
        goal,
        predictors=models,
        foundation=space,
        like=_query(space, like, text, "", "") if like or text else None,
        among=among,
        known=known_index(space, known, among, part) if known and space else None,
        k=k,
    )
    if out is not None:
        write_table(out, found)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1, allow_nan=False))
        return
    show(found.rows, False, lambda row: "  ".join(f"{name} {_short(value)}" for name, value in row.items()))
    typer.echo(f"{found.screened} screened, {len(found.refused)} refused" + (f"; table: {out}" if out else ""))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _query(foundation: Any, files: list[Path], text: str, id_: str, data: str) -> Any:
    """Return what is asked with: a file as it is, several parts as one sample, or a sample of the data set."""
    from finetune.search.query import merged_sample
    from shards.errors import ConfigError
    from shards.locate import locate
    from shards.reader import Dataset

    parts: list[Any] = [*files, *([{"text": text}] if text else [])]
    if bool(parts) == bool(id_):
        raise ConfigError("one query is needed", do="give files, --text, or --id of a material of the data set")
    if id_:
        dataset = Dataset(locate(data))
        known = [name for name in foundation.modalities if name in dataset.modalities]
        dataset = dataset.select(known)
        return dataset[dataset.position(id_)]
    if len(parts) == 1:
        return parts[0]
    sample = merged_sample(foundation, parts)
    return {**sample.arrays, **sample.text}


def _where(labels: list[str], elements: list[str], without: list[str]) -> Any:
    from finetune.search.where import Where, parse_ranges

    if not (labels or elements or without):
        return None
    return Where(elements=frozenset(elements), without=frozenset(without), labels=parse_ranges(labels))
