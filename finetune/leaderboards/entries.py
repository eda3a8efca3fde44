"""What every leaderboard wants: one finite prediction for each id of its test set, and no other."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.data import check_schema
from finetune.loading import PropertyModel
from shards.errors import DataError
from shards.reader import Dataset

Values = Mapping[str, float]
SHOWN = 3


def predict_ids(model: PropertyModel, dataset: Dataset, ids: Sequence[str]) -> dict[str, float]:
    """Predict the (first) target for samples by id."""
    check_schema(dict(model.specs), dataset, model.specs)
    chosen = dataset.select(list(model.specs))
    values = model.estimate([chosen[chosen.position(sample_id)] for sample_id in ids]).value[:, 0]
    return dict(zip(ids, values.tolist(), strict=True))


def labels_of(dataset: Dataset, label: str, ids: Sequence[str]) -> dict[str, float]:
    """Return a label by id, or raise `DataError` for a sample that lacks it."""
    bare = dataset.select([])
    found = {sample_id: bare[bare.position(sample_id)].labels.get(label) for sample_id in ids}
    lacking = [sample_id for sample_id, value in found.items() if value is None]
    if lacking:
        raise DataError(f"{len(lacking)} samples have no label '{label}'", where=lacking[0])
    return {sample_id: value for sample_id, value in found.items() if value is not None}


def check_entries(predictions: Values, ids: Sequence[str], *, where: Path) -> None:
    """Raise `DataError` unless there is one finite prediction for each id, and no other."""
    lacking, extra = set(ids) - set(predictions), set(predictions) - set(ids)
    for problem, found in (("are not in the file", lacking), ("of the file are not in the test set", extra)):
        if found:
            named = ", ".join(sorted(found)[:SHOWN])
            raise DataError(f"{len(found)} ids {problem}: {named}", where=where, do="predict exactly the test set")
    bad = [name for name, value in predictions.items() if not math.isfinite(value)]
    if bad:
        raise DataError(f"the prediction for '{bad[0]}' is not finite", where=where)


def mean_absolute_error(predictions: Values, targets: Values) -> float:
    """Return the mean absolute error over the ids of ``predictions``."""
    return math.fsum(abs(value - targets[name]) for name, value in predictions.items()) / len(predictions)


def write_gzip(path: Path, text: str) -> None:
    """Write a text compressed; the same text gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
