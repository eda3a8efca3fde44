"""Composition descriptors: what a formula alone says, the classical baseline of materials properties."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from shards.compositions import composition
from shards.errors import ConfigError, DataError, suggest
from shards.reader import Dataset

if TYPE_CHECKING:
    from matminer.featurizers.composition import ElementProperty

FORMULA, MAGPIE = "formula", "magpie"


def magpie(formulas: Sequence[str]) -> np.ndarray:
    """Return the Magpie descriptors of formulas (Ward et al., npj Comput. Mater. 2, 16028 (2016)), by matminer.

    Parameters
    ----------
    formulas : sequence of str
        N formulas; fractional amounts are fine.

    Returns
    -------
    ndarray
        (N, 132) float64: least, greatest, range, mean, mean deviation and mode over the composition of 22
        properties of the elements, as named by `magpie_names`. NaN where the table lacks an element: estimators fill
        it by the rows that they are fitted to, where matminer would fill it by a mean over the periodic table.
    """
    rows = [_magpie(formula) for formula in formulas]
    return np.array(rows, np.float64).reshape(len(rows), len(magpie_names()))


def magpie_names() -> list[str]:
    """Return the names of the descriptors, ``MagpieData mean Electronegativity``."""
    return _featurizer().feature_labels()


def magpie_of(dataset: Dataset, positions: Iterable[int]) -> np.ndarray:
    """Return the Magpie descriptors (N, 132) of samples, from their tag ``formula``.

    Raises
    ------
    DataError
        Where a sample has no such tag, or one that is no formula.
    """
    bare, formulas = dataset.select([]), []
    for position in positions:
        sample = bare[int(position)]
        if FORMULA not in sample.tags:
            raise DataError(f"the sample has no tag '{FORMULA}'", where=sample.id, why="the descriptors are made of it")
        formulas.append(sample.tags[FORMULA])
    return magpie(formulas)


def descriptors_of(dataset: Dataset, positions: Iterable[int], name: str) -> np.ndarray:
    """Return what a classical estimator looks at.

    Parameters
    ----------
    dataset : Dataset
        N samples of it are described.
    positions : iterable of int
        Which.
    name : str
        ``magpie`` (`magpie_of`), or a modality whose values have one shape (a fingerprint, a vector, a spectrum).

    Returns
    -------
    ndarray
        (N, F) float64; of a sample that lacks the modality NaN.
    """
    if name == MAGPIE:
        return magpie_of(dataset, positions)
    if name not in dataset.modalities:
        raise ConfigError(
            f"there are no descriptors '{name}'",
            where="rows.*.descriptors",
            why=suggest(name, [MAGPIE, *dataset.modalities]),
        )
    spec = dataset.modalities[name]
    ragged = [field for field, its in spec.fields.items() if its.ragged_axis is not None]
    if ragged or not spec.fields:
        raise ConfigError(
            f"modality '{name}' of kind '{spec.kind}' cannot be descriptors",
            where="rows.*.descriptors",
            why="its values differ in shape from sample to sample",
        )
    width = sum(math.prod(int(size) for size in its.shape) for its in spec.fields.values())
    alone, rows = dataset.select([name]), []
    for position in positions:
        arrays = alone[int(position)].arrays.get(name)
        parts = [np.asarray(arrays[field], np.float64).ravel() for field in spec.fields] if arrays else None
        rows.append(np.concatenate(parts) if parts else np.full(width, np.nan))
    return np.stack(rows)


@lru_cache(maxsize=1 << 16)
def _magpie(formula: str) -> tuple[float, ...]:
    # matminer warns of every element that its table lacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(float(value) for value in _featurizer().featurize(composition(formula)))


@lru_cache(maxsize=1)
def _featurizer() -> ElementProperty:
    try:
        from matminer.featurizers.composition import ElementProperty
    except ImportError:
        raise ConfigError("Magpie descriptors need matminer", do="pip install 'matloom[baselines]'") from None
    return ElementProperty.from_preset("magpie", impute_nan=False)
