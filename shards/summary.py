"""What a data set holds: coverage of the modalities, splits, labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.reader import Dataset


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Summarise a data set.

    Returns
    -------
    dict
        ``name``, ``samples``, ``modalities`` (kind, fields, feature parameters), ``coverage``
        (matrix: samples that have both modalities), ``complete`` (samples that have all),
        ``splits`` (samples and complete samples a part), ``labels``, ``shards``, ``bytes``, ``quarantined``.
    """
    manifest = dataset.manifest
    names = list(dataset.modalities)
    present = presence(dataset)
    both = present.astype(np.int64).T @ present.astype(np.int64)
    complete: np.ndarray = np.all(present, axis=1, keepdims=False)
    return {
        "name": manifest.name,
        "source": manifest.source,
        "samples": len(dataset),
        "complete": int(complete.sum()),
        "modalities": {name: spec.model_dump() for name, spec in dataset.modalities.items()},
        "coverage": {a: {b: int(both[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        "splits": {
            split: {
                part: {
                    "samples": len(dataset.positions(split, part)),
                    "complete": int(complete[dataset.positions(split, part)].sum()),
                }
                for part in content.ids
            }
            for split, content in manifest.splits.items()
        },
        "labels": {name: stats.model_dump() for name, stats in manifest.labels.items()},
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "quarantined": manifest.quarantined,
    }


def presence(dataset: Dataset) -> np.ndarray:
    """Return (N, M) bool: which sample has which of the data set's modalities.

    Array modalities are looked up in the indices; texts are read from the samples' metadata.
    """
    texts = [name for name, spec in dataset.modalities.items() if spec.kind == "text"]
    present = {name: dataset.presence(name) for name in dataset.modalities if name not in texts}
    if texts:
        held = [sample.modalities for sample in Dataset(dataset.folder, texts)]
        present |= {name: np.array([name in modalities for modalities in held], dtype=bool) for name in texts}
    columns = [present[name] for name in dataset.modalities]
    return np.stack(columns, axis=1) if columns else np.zeros((len(dataset), 0), dtype=bool)
