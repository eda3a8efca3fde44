"""Standard deviations over a part of a data set: what noise is measured by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shards.augment.values import known_entries
from shards.orders.base import Samples
from shards.schema import Arrays, ModalitySpec


def standard_deviations(
    dataset: Samples, positions: np.ndarray, modality: str, *, limit: int = 20_000
) -> dict[str, np.ndarray]:
    """Measure how far each entry of a modality varies between the samples of a part.

    Parameters
    ----------
    dataset : Dataset or Mixture
        Nothing but this modality is read of it.
    positions : ndarray
        (N,) samples of the part; give the training part, and nothing of validation or test gets in.
    modality : str
        Its name.
    limit : int
        Above so many samples, that many are drawn from the whole part, always the same ones.

    Returns
    -------
    dict of str to ndarray
        float64, for every field of floats; see `deviations`.
    """
    ordered = np.sort(np.asarray(positions, dtype=np.int64))
    if len(ordered) > limit:
        ordered = np.sort(np.random.default_rng(0).choice(ordered, limit, replace=False))
    alone = dataset.select([modality])
    values = (alone[int(position)].arrays.get(modality) for position in ordered)
    return deviations(dataset.modalities[modality], (value for value in values if value is not None))


def deviations(spec: ModalitySpec, values: Iterable[Arrays]) -> dict[str, np.ndarray]:
    """Return the standard deviation (divisor n) of each entry of each float field over the values, in one pass.

    Parameters
    ----------
    spec : ModalitySpec
        Says which fields are floats and which axes are ragged.
    values : iterable of arrays
        Values that satisfy ``spec``. Entries that their field ``known`` marks as unknown do not count.

    Returns
    -------
    dict of str to ndarray
        float64, of the field's shape; along a ragged axis, whose elements all count alike, of length 1.
        0 for entries that never vary or are never known.
    """
    names = [name for name, field in spec.fields.items() if np.dtype(field.dtype).kind == "f"]
    shapes = {name: [1 if isinstance(axis, str) else axis for axis in spec.fields[name].shape] for name in names}
    moments = {name: [np.zeros(shapes[name]) for _ in range(3)] for name in names}
    for value in values:
        for name in names:
            known = known_entries(value, name)
            array = value[name].astype(np.float64)
            part = _moments(array, np.ones(array.shape) if known is None else known, spec.fields[name].ragged_axis)
            moments[name] = _merged(*moments[name], *part)
    return {name: np.sqrt(square / np.maximum(count, 1)) for name, (count, _, square) in moments.items()}


def _moments(array: np.ndarray, weight: np.ndarray, axis: int | None) -> list[np.ndarray]:
    """Return count, mean and summed squared deviation along the ragged axis, or of the array as one observation."""
    count = np.asarray(weight, dtype=np.float64)
    if axis is None:
        return [count, array * count, np.zeros_like(array)]
    total = count.sum(axis, keepdims=True)
    mean = (array * count).sum(axis, keepdims=True) / np.maximum(total, 1)
    return [total, mean, (count * (array - mean) ** 2).sum(axis, keepdims=True)]


def _merged(
    count: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    more: np.ndarray,
    more_mean: np.ndarray,
    more_square: np.ndarray,
) -> list[np.ndarray]:
    """Merge two sets of moments: Chan, Golub and LeVeque (1983), the pairwise form of Welford's update."""
    total = np.maximum(count + more, 1)
    delta = np.where(more > 0, more_mean - mean, 0.0)
    return [count + more, mean + delta * more / total, square + more_square + delta**2 * count * more / total]
