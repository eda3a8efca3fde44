"""What a fold's held-out rows have in common with its training rows: equal rows, near copies, equal materials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from finetune.estimators.scikit import imputer
from finetune.folds import Fold
from shards.codecs import digest
from shards.leakage import KINDS, LeakageReport

# nearer than this share of the distance between two rows at random is a near copy
NEAR = 0.1
PAIRS = 2000


def fold_leakage(modalities: Mapping[str, Any], folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """Compare the parts of each fold, modality by modality.

    Parameters
    ----------
    modalities : mapping of str to ndarray or sequence
        Name to N rows: vectors (N, F), of which distances are measured too, or anything else, which is compared by
        its bytes or its text.
    folds : sequence of Fold
        What to look at.

    Returns
    -------
    list of dict
        A row for each fold and modality. ``equal``: the number of held-out rows that are training rows too.
        ``nearest``: the median distance of a held-out row to its nearest training row, in units of the median distance
        of a held-out to a training row at random (features standardised by the training rows). ``near``: the share of
        held-out rows of which that is below 0.1. The last two are NaN for what is no vector.
    """
    digests = {name: row_digests(rows) for name, rows in modalities.items()}
    table = []
    for fold in folds:
        for name, rows in modalities.items():
            equal = in_both(digests[name], fold)
            share = _nearest(rows, fold) if isinstance(rows, np.ndarray) and rows.ndim == 2 else np.array([np.nan])
            near = float((share < NEAR).mean()) if np.isfinite(share).all() else np.nan
            table.append(
                {
                    "fold": fold.name,
                    "modality": name,
                    "rows": len(fold.test),
                    "equal": int(equal.sum()),
                    "nearest": float(np.median(share)),
                    "near": near,
                }
            )
    return table


def material_leakage(report: LeakageReport, ids: Sequence[str], folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """Count what is alike in a data set, by `shards.leakage.find_leakage`, and in both parts of a fold.

    Parameters
    ----------
    report : LeakageReport
        Sets of samples of equal structure, group, id, text or bytes of a modality.
    ids : sequence of str
        Sample id of each of the N rows that the folds number.
    folds : sequence of Fold
        What to look at.

    Returns
    -------
    list of dict
        A row for each fold and kind: ``rows``, the held-out rows that are alike to a training row.
    """
    names = np.array(ids, dtype=object)
    table = []
    for fold in folds:
        train, test = set(names[fold.train]), names[fold.test]
        for kind in KINDS:
            sets = [set(alike) for alike in report.alike[kind]]
            crossing = set().union(*(alike for alike in sets if alike & train))
            table.append({"fold": fold.name, "kind": KINDS[kind], "rows": sum(i in crossing for i in test)})
    return table


def in_both(digests: Sequence[bytes], fold: Fold) -> np.ndarray:
    """Say of each held-out row whether a training row is equal to it, (n,) bool."""
    fitted = {digests[row] for row in fold.train}
    return np.array([digests[row] in fitted for row in fold.test], dtype=bool)


def row_digests(rows: Any) -> list[bytes]:
    """Return N digests: rows are equal where theirs are. A dict of N rows each is compared by all of its values."""
    if isinstance(rows, Mapping):
        columns = [row_digests(values) for values in rows.values()]
        return [digest(b"".join(parts)) for parts in zip(*columns, strict=True)]
    return [_digest(row) for row in (rows.detach().cpu().numpy() if isinstance(rows, torch.Tensor) else rows)]


def _digest(value: Any) -> bytes:
    if isinstance(value, Mapping):
        return digest(b"".join(_digest(part) for item in sorted(value.items()) for part in item))
    if isinstance(value, np.ndarray | np.number) and value.dtype.kind in "biuf":
        # 0.0 makes one zero of two
        return digest(np.ascontiguousarray(value + 0.0).tobytes())
    return digest(repr(value).encode())


def _nearest(rows: np.ndarray, fold: Fold) -> np.ndarray:
    """Return for each held-out row the distance to its nearest training row, in units of a typical distance."""
    fill, scaler = imputer(), StandardScaler()
    train = scaler.fit_transform(fill.fit_transform(rows[fold.train]))
    test = scaler.transform(fill.transform(rows[fold.test]))
    nearest = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(test)[0][:, 0]
    rng = np.random.default_rng(0)
    pairs = rng.integers(len(test), size=PAIRS), rng.integers(len(train), size=PAIRS)
    typical = np.median(np.linalg.norm(test[pairs[0]] - train[pairs[1]], axis=1))
    return nearest / max(typical, np.finfo(float).tiny)
