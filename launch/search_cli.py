"""`matloom search` and `matloom discover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.options import DATA, Data, Json, Uri, show


def search(
    uri: Uri,
    query: Annotated[Path, typer.Argument(help="A structure file, or a CSV of a density of states.")],
    data: Data = DATA,
    among: Annotated[str, typer.Option(help="Modality of the candidates.")] = "crystal",
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    as_json: Json = False,
) -> None:
    """Find the materials of a data set that are nearest to a CIF or to a DOS."""
    from finetune.loading import load_foundation
    from finetune.search import search as run_search

    hits = run_search(load_foundation(uri), query, data=data, among=among, k=k)
    rows = [{"id": h.id, "similarity": h.similarity, **h.tags, "labels": h.labels} for h in hits]

    def line(row: dict[str, Any]) -> str:
        gap = row["labels"].get("band_gap_ev")
        shown = "" if gap is None else f"  gap {gap:.2f} eV"
        return f"{row['similarity']:.3f}  {row['id']:24} {row.get('formula', ''):10} {row.get('prototype', '')}{shown}"

    show(rows, as_json, line)
