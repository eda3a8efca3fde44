"""From what a user has of a material to a sample with the modalities of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.chunks import to_sample
from shards.errors import DataError
from shards.features import feature
from shards.formats.anything import PARTS, is_pair, to_record
from shards.reader import Dataset
from shards.schema import ModalitySpec, Sample, Value
from shards.sources.base import Record


@dataclass(frozen=True)
class Material:
    """One material before any feature step has run.

    Attributes
    ----------
    record : Record
        What feature steps read.
    values : dict of str to Value
        Modalities that are given as a model reads them; no step runs for these.
    """

    record: Record
    values: dict[str, Value] = field(default_factory=dict)


def read_material(material: Any, specs: Mapping[str, ModalitySpec], *, id: str = "query") -> Sample | Material:
    """Read what a user has of one material; see `shards.formats.anything.to_record` for what may be given.

    A mapping may also hold a modality of the model under its name, as the model reads it: the arrays of its fields, or
    the array of its only field.
    """
    if isinstance(material, Sample | Material):
        return material
    if not isinstance(material, Mapping):
        return Material(to_record(material, id=id))
    values = {
        name: value
        for name, spec in specs.items()
        if name in material and (value := _as_read(spec, material[name])) is not None
    }
    rest = {key: value for key, value in material.items() if key not in values}
    alone = bool(values) and not rest.keys() - {"id"}
    return Material(Record(id=str(material.get("id", id))) if alone else to_record(rest, id=id), values)


def to_known_sample(material: Any, specs: Mapping[str, ModalitySpec], *, id: str = "query") -> Sample:
    """Turn what a user has into a sample with as many of the modalities as it can give.

    Feature steps are those of the model's training data, from its schema.

    Parameters
    ----------
    material : object
        See `read_material`.
    specs : mapping of str to ModalitySpec
        The modalities that are wanted: no other step runs.
    id : str
        The sample's id, where the material has none.

    Raises
    ------
    DataError
        For what is no material, or what a feature step refuses.
    """
    read = read_material(material, specs, id=id)
    if isinstance(read, Sample):
        return read
    steps = {name: feature(spec.feature) for name, spec in specs.items() if name not in read.values}
    sample = to_sample(read.record, steps)
    for name in specs.keys() & read.values:
        value = read.values[name]
        if isinstance(value, str):
            sample.text[name] = value
        else:
            sample.arrays[name] = dict(value)
    return sample


def _as_read(spec: ModalitySpec, value: Any) -> Value | None:
    """Return a modality's value where it is given as the model reads it, None where it is for a feature step."""
    fields = spec.fields
    if fields and isinstance(value, Mapping) and value.keys() == fields.keys():
        arrays = {name: np.asarray(array, dtype=fields[name].dtype) for name, array in value.items()}
    elif spec.name in PARTS:
        return None
    elif spec.kind == "text" and isinstance(value, str):
        return value
    elif len(fields) == 1 and not isinstance(value, Mapping | str):
        ((name, only),) = fields.items()
        try:
            arrays = {name: np.asarray(value, dtype=only.dtype)}
        except (TypeError, ValueError) as error:
            raise DataError(f"the modality '{spec.name}' is no array of numbers", why=str(error)) from None
    else:
        raise DataError(
            f"the modality '{spec.name}' cannot be read",
            why=f"it has the fields {sorted(fields)}",
            do="give an array each",
        )
    spec.check(arrays)
    return arrays


def several(materials: Any) -> list[Any] | None:
    """Return the materials where several are given, None where it is one.

    Several are a list, a tuple, an iterator, a `Dataset` or the rows of a pandas ``DataFrame``. A list of two columns
    of numbers is one density of states, and a pymatgen structure, a sequence of sites, one material.
    """
    if isinstance(materials, list | tuple):
        return None if is_pair(materials) else list(materials)
    if hasattr(materials, "iterrows"):
        return [row for _, row in materials.iterrows()]
    return list(materials) if isinstance(materials, Iterator | Dataset) else None
