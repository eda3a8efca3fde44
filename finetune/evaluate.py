"""Cross-modal retrieval of a registered model on a part of a data set."""

from __future__ import annotations

import torch

from finetune.data import check_schema
from finetune.loading import Foundation
from pretrain.data import as_evaluated
from pretrain.evaluate import Row, embed_all, retrieval
from shards.errors import DataError
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.stream import BatchStream


def retrieval_table(
    foundation: Foundation,
    dataset: Dataset,
    *,
    split: str = "chemical_system",
    part: str = "test",
    complete_only: bool = True,
) -> list[Row]:
    """Measure retrieval for every ordered pair of the model's modalities; see `pretrain.evaluate.retrieval`.

    Raises
    ------
    DataError
        Where the part has fewer than two samples to retrieve among.
    """
    check_schema(foundation.model.specs, dataset, foundation.modalities)
    restricted = dataset.select(foundation.modalities)
    stream = BatchStream(
        restricted,
        restricted.positions(split, part),
        batch_size=64,
        order=Sequential(),
        augmenter=as_evaluated(foundation.export.recipe, restricted.modalities),
    )
    with torch.no_grad():
        rows = retrieval(*embed_all(foundation.model, stream), complete_only=complete_only)
    if not rows:
        raise DataError(f"part '{part}' of split '{split}' has fewer than 2 complete samples", where=dataset.location)
    return rows
