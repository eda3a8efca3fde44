"""A saved index: a sealed folder of ``vectors.safetensors``, ``samples.parquet`` and ``index.json``."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from shards.errors import CheckpointError
from shards.schema import Sample
from shards.sealed import sealing, verify

if TYPE_CHECKING:
    from finetune.loading import Foundation
    from finetune.search.index import Index

VECTORS, SAMPLES, ABOUT = "vectors.safetensors", "samples.parquet", "index.json"
FORMAT = "matloom-index-1"


def save_index(index: Index, folder: Path) -> None:
    """Write a sealed folder; an earlier one is replaced once this one is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = index.samples
    columns: dict[str, Any] = {
        "id": pa.array([sample.id for sample in samples], pa.string()),
        "group": pa.array([sample.group for sample in samples], pa.string()),
    }
    for name in sorted({name for sample in samples for name in sample.tags}):
        columns[f"tag:{name}"] = pa.array([sample.tags.get(name) for sample in samples], pa.string())
    for name in sorted({name for sample in samples for name in sample.labels}):
        columns[f"label:{name}"] = pa.array([sample.labels.get(name) for sample in samples], pa.float64())
    about = {"format": FORMAT, "modality": index.modality, "model": index.model, "data": index.data}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sealing(folder) as stage:
        vectors = np.ascontiguousarray(index.vectors, dtype=np.float32)
        safetensors.numpy.save_file({"vectors": vectors}, stage / VECTORS)
        pq.write_table(pa.table(columns), stage / SAMPLES)
        (stage / ABOUT).write_text(json.dumps(about, indent=1))


def load_index(folder: Path, foundation: Foundation) -> Index:
    """Verify a saved index, and map its vectors into memory.

    Raises
    ------
    CheckpointError
        Where it is damaged, or was made by another model than ``foundation``.
    """
    import pyarrow.parquet as pq

    from finetune.search.index import Index

    verify(folder, error=CheckpointError)
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, not {FORMAT}")
        # PyTorch maps the file; numpy's reader would copy it
        with safe_open(folder / VECTORS, framework="pt") as file:
            vectors = file.get_tensor("vectors").numpy()
        samples = _samples(pq.read_table(folder / SAMPLES))
        if len(samples) != len(vectors):
            raise ValueError(f"{len(samples)} samples, {len(vectors)} vectors")
        index = Index(vectors, samples, about["modality"], about["model"], about["data"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError("this is no index of matloom", where=folder, why=str(error)) from None
    seal = foundation.seal
    if index.model != seal:
        raise CheckpointError(
            "the index is of another model",
            where=folder,
            why=f"it was made by the model of seal {index.model[:12] or 'unknown'}, this one has {seal[:12]}",
            do="build it again: its vectors mean nothing to this model",
        )
    return index


def _samples(table: Any) -> list[Sample]:
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    tags = {name.removeprefix("tag:"): column for name, column in columns.items() if name.startswith("tag:")}
    labels = {name.removeprefix("label:"): column for name, column in columns.items() if name.startswith("label:")}
    return [
        Sample(
            id=id,
            group=columns["group"][row],
            tags={name: column[row] for name, column in tags.items() if column[row] is not None},
            labels={n: c[row] for n, c in labels.items() if c[row] is not None and not isnan(c[row])},
        )
        for row, id in enumerate(columns["id"])
    ]
