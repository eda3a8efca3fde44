"""What a recipe calls a target: a number, or several numbers of one name - a tensor, a spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan, nan
from typing import Any

import numpy as np

from shards.errors import ConfigError, DataError, suggest
from shards.labels import component, parse_component
from shards.reader import Dataset
from shards.schema import Sample

Index = tuple[int, ...]
# from the shape of a label to those of its components that are predicted, in the order of a head's targets
Components = Callable[[Index], Sequence[Index]]
# by how much components that are one by symmetry may differ, as a share of the largest of all
ASYMMETRY = 0.05


@dataclass(frozen=True)
class Target:
    """A target and the columns that it makes.

    Attributes
    ----------
    name : str
        As the recipe has it.
    indices : tuple of tuple of int
        Components of a label, or of a modality's array; empty: the label is one number.
    modality : bool
        Whether it is a modality of the data set: a spectrum that is predicted.
    """

    name: str
    indices: tuple[Index, ...] = ()
    modality: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, ``elastic_gpa[0,1]``."""
        return tuple(component(self.name, index) for index in self.indices) or (self.name,)

    @cached_property
    def mirrors(self) -> dict[Index, Index]:
        """Components that are one with another by symmetry and are not predicted, by that other."""
        return mirrors_of(self.indices)

    def values(self, sample: Sample) -> list[float]:
        """Return the columns of a sample, NaN where unknown."""
        if not self.indices:
            return [sample.labels.get(self.name, nan)]
        if self.modality:
            arrays = sample.arrays.get(self.name)
            if arrays is None:
                return [nan] * len(self.indices)
            (array,) = arrays.values()
            return [self._one(lambda index: float(array[index]), index, sample) for index in self.indices]
        labels = sample.labels
        return [
            self._one(lambda index: labels.get(component(self.name, index), nan), index, sample)
            for index in self.indices
        ]

    def _one(self, get: Callable[[Index], float], index: Index, sample: Sample) -> float:
        """Return a component; where its mirror is not predicted, the mean of both."""
        here, mirror = get(index), self.mirrors.get(index)
        if mirror is None:
            return here
        there = get(mirror)
        if isnan(here) or isnan(there):
            return there if isnan(here) else here
        scale = max(abs(get(i)) for i in self.indices if not isnan(get(i)))
        if abs(here - there) > ASYMMETRY * scale:
            raise DataError(
                f"'{self.name}' is not symmetric: {list(index)} is {here:g}, {list(mirror)} is {there:g}",
                where=sample.id,
                do="correct it, or use the head 'regression', which predicts every component",
            )
        return (here + there) / 2


def find_target(name: str, dataset: Dataset, components: Components) -> Target:
    """Find what a recipe calls a target: a label, a label of several components, or a modality of one fixed shape.

    Parameters
    ----------
    name : str
        Of a label or a modality.
    dataset : Dataset
        With its labels and modalities.
    components : callable
        See `finetune.heads.base.Head.parts_of`.
    """
    labels = dataset.manifest.labels
    if name in labels:
        return Target(name)
    parsed = [parse_component(label) for label in labels]
    indices = [index for base, index in parsed if base == name and index]
    if indices:
        if len({len(index) for index in indices}) > 1:
            raise DataError(f"the components of '{name}' have unlike numbers of axes", where=dataset.location)
        return Target(name, tuple(components(tuple(1 + int(i) for i in np.max(indices, axis=0)))))
    if name in dataset.modalities:
        return Target(name, tuple(components(_shape(name, dataset))), modality=True)
    raise ConfigError(
        f"the data set has no label '{name}'",
        where="target",
        why=suggest(name, sorted({base for base, _ in parsed} | set(dataset.modalities))),
    )


def _shape(name: str, dataset: Dataset) -> Index:
    """Return the shape of the only array of a modality."""
    fields = list(dataset.modalities[name].fields.values())
    if len(fields) != 1 or fields[0].ragged_axis is not None:
        raise ConfigError(
            f"the modality '{name}' is no target",
            where="target",
            why="a target has one array, of one shape for all samples",
            do="name a label, or a spectrum",
        )
    return tuple(int(size) for size in fields[0].shape)


def grouped(columns: Sequence[str]) -> dict[str, list[int]]:
    """Return which columns belong to each target, by its name."""
    found: dict[str, list[int]] = {}
    for number, column in enumerate(columns):
        found.setdefault(parse_component(column)[0], []).append(number)
    return found


def as_array(columns: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Return the columns (N, T) of one target as (N, ...) in its shape; a symmetric one is made whole.

    Parameters
    ----------
    columns : sequence of str
        Names of the T components, in any order.
    values : ndarray
        (N, T).
    """
    indices = [parse_component(column)[1] for column in columns]
    if indices == [()]:
        return values[:, 0]
    array = np.full((len(values), *(np.max(indices, axis=0) + 1)), np.nan, values.dtype)
    mirrors = mirrors_of(indices)
    for index, column in zip(indices, values.T, strict=True):
        for place in {index, mirrors.get(index, index)}:
            key: tuple[Any, ...] = (slice(None), *place)
            array[key] = column
    return array


def mirrors_of(indices: Sequence[Index]) -> dict[Index, Index]:
    """Return the components of a square array that are listed on one side of its diagonal alone, with their mirrors."""
    square = len(set(map(max, zip(*indices, strict=True)))) == 1
    listed = set(indices)
    return {index: index[::-1] for index in indices if square and index[::-1] not in listed}
