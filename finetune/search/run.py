"""One search from beginning to end: the index of a data set, opened or built, and a query of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.loading import Foundation
from finetune.search.index import Faiss, Hit, Index
from finetune.search.query import embed_query
from finetune.search.where import Where
from shards.errors import CheckpointError
from shards.locate import locate
from shards.reader import Dataset
from shards.schema import Sample
from shards.sealed import SEAL


def open_index(foundation: Foundation, dataset: Dataset, among: str, folder: Path | None = None) -> Index:
    """Return the index of a data set: the saved one, or a new one, which is saved where a folder is given.

    Raises
    ------
    CheckpointError
        Where the saved one is damaged, of another model, data set or modality.
    """
    if folder is None or not (folder / SEAL).exists():
        index = Index.build(foundation, dataset, among)
        if folder is not None:
            index.save(folder)
        return index
    index = Index.load(folder, foundation)
    for what, mine, wanted in (("data set", index.data, dataset.sha256), ("modality", index.modality, among)):
        if mine != wanted:
            raise CheckpointError(
                f"the index is of another {what}", where=folder, why=f"{mine}, not {wanted}", do="name another folder"
            )
    return index


def search(
    foundation: Foundation,
    query: Any,
    *,
    data: str,
    among: str = "crystal",
    k: int = 10,
    by: Sequence[str] = (),
    exclude_self: bool = False,
    exclude_group: bool = False,
    exclude_duplicates: bool = False,
    where: Where | None = None,
    index: Path | None = None,
    faiss: Faiss = "auto",
) -> list[Hit]:
    """Find the materials of a data set that are nearest to whatever the model can embed.

    Parameters
    ----------
    foundation : Foundation
        Embeds query and candidates.
    query : object
        See `embed_query`.
    data : str
        Data set, as in a recipe.
    among : str
        Modality by which the candidates are embedded.
    k : int
        Number of hits.
    by : sequence of str
        Modalities by which the query is embedded; see `embed_query`.
    exclude_self, exclude_group, exclude_duplicates, where
        See `Index.places`; the first two need a `Sample` as the query.
    index : Path, optional
        Folder of the index: opened, or built and kept.
    faiss : str
        See `Index`.
    """
    vector = embed_query(foundation, query, by)
    opened = replace(open_index(foundation, Dataset(locate(data)), among, index), faiss=faiss)
    return opened.nearest_of(
        vector[None],
        k,
        samples=[query] if isinstance(query, Sample) else None,
        exclude_self=exclude_self,
        exclude_group=exclude_group,
        exclude_duplicates=exclude_duplicates,
        where=where,
    )[0]
