"""The vocabulary of the project: modality specs, samples and the manifest of a data set.

A modality has *fields*; a field has a dtype, a unit and a shape. An axis of a shape is either a
number, or the name of a *ragged axis* (``"atoms"``, ``"edges"``) whose length differs from sample
to sample and which several fields may share. A field whose integers point into a ragged axis says
so by ``index_of``, so that collation can shift them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from shards.errors import DataError

META = "meta"
MODALITY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
Kind = Literal["graph", "spectrum", "grid", "text", "image", "table", "sequence", "vector"]
Arrays = Mapping[str, np.ndarray]
Value = Arrays | str


class Strict(BaseModel):
    """Base of every model that is read from a file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldSpec(Strict):
    """One array of a modality.

    Attributes
    ----------
    dtype : str
        numpy dtype name as stored, for example ``float16``.
    shape : tuple of int or str
        Axis lengths; a string names a ragged axis. At most one ragged axis a field.
    unit : str
        Physical unit, empty where there is none.
    index_of : str, optional
        Name of the ragged axis that the integers of this field point into.
    """

    dtype: str
    shape: tuple[int | str, ...]
    unit: str = ""
    index_of: str | None = None

    @property
    def ragged_axis(self) -> int | None:
        """Position of the ragged axis in ``shape``, or None."""
        return next((i for i, axis in enumerate(self.shape) if isinstance(axis, str)), None)


class ModalitySpec(Strict):
    """What a modality is made of and how it was computed.

    Attributes
    ----------
    name : str
        The modality's name in samples, batches and recipes.
    kind : str
        The family of data, which says which encoders can read it.
    fields : dict of str to FieldSpec
        Arrays of the modality; empty for ``kind = "text"``, whose value is a string.
    feature : dict
        The feature step (``step``) and its parameters, as written into the manifest.
    """

    name: str
    kind: Kind
    fields: dict[str, FieldSpec] = {}
    feature: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> ModalitySpec:
        """Refuse a name that no member can have, two ragged axes in a field, an index of no axis of this modality."""
        if not MODALITY_NAME.fullmatch(self.name) or self.name == META:
            raise ValueError(f"'{self.name}' cannot name a modality: lower-case letters, digits and _, not '{META}'")
        axes = {axis for spec in self.fields.values() for axis in spec.shape if isinstance(axis, str)}
        for name, spec in self.fields.items():
            if sum(isinstance(axis, str) for axis in spec.shape) > 1:
                raise ValueError(f"field '{name}' has more than one ragged axis")
            if spec.index_of is not None and spec.index_of not in axes:
                raise ValueError(f"field '{name}' is an index of '{spec.index_of}', which is no ragged axis here")
        return self

    def check(self, value: Value, *, where: str = "") -> None:
        """Raise `DataError` unless ``value`` has this modality's fields, dtypes and shapes, all finite."""
        where = where or self.name
        if self.kind == "text":
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"modality '{self.name}' wants a text that is not empty", where=where)
            return
        if isinstance(value, str) or set(value) != set(self.fields):
            found = "a text" if isinstance(value, str) else sorted(value)
            raise DataError(
                f"modality '{self.name}' has fields {found}, its spec says {sorted(self.fields)}", where=where
            )
        sizes: dict[str, int] = {}
        for name, spec in self.fields.items():
            array = value[name]
            if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.shape):
                raise DataError(
                    f"field '{self.name}.{name}' is {array.dtype}{list(array.shape)}, "
                    f"its spec says {spec.dtype}{list(spec.shape)}",
                    where=where,
                )
            for axis, length in zip(spec.shape, array.shape, strict=True):
                wanted = sizes.setdefault(axis, length) if isinstance(axis, str) else axis
                if length != wanted:
                    raise DataError(
                        f"axis '{axis}' of field '{self.name}.{name}' has length {length}, not {wanted}", where=where
                    )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DataError(
                    f"field '{self.name}.{name}' holds NaN or infinity",
                    where=where,
                    do="leave the modality out of the record: a missing modality is absent, never a placeholder",
                )
        for name, spec in self.fields.items():
            array = value[name]
            # an index past its own sample's elements would point into the next sample of a batch
            if spec.index_of and array.size and not 0 <= array.min() <= array.max() < sizes[spec.index_of]:
                raise DataError(
                    f"field '{self.name}.{name}' points outside of its {sizes[spec.index_of]} {spec.index_of}",
                    where=where,
                )

    def difference(self, other: ModalitySpec) -> str | None:
        """Name the first difference to ``other``, or None where the two agree."""
        mine, theirs = self.model_dump(), other.model_dump()
        for key in mine:
            if mine[key] != theirs[key]:
                return f"'{self.name}.{key}' is {theirs[key]!r}, expected {mine[key]!r}"
        return None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One material (or molecule, or specimen) with the modalities that it has.

    Attributes
    ----------
    id : str
        Any string; unique in the data set.
    arrays : dict
        ``arrays[modality][field]`` for the modalities that are present. An absent modality is absent.
    text : dict of str to str
        Values of the text modalities that are present.
    labels : dict of str to float
        Name (with its unit, ``band_gap_ev``) to value; an unknown label is absent.
    tags : dict of str to str
        Descriptive strings (formula, chemical system, prototype) for splits, tables and plots.
    group : str
        Records of one physical sample share it.
    """

    id: str
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    group: str = ""

    @property
    def modalities(self) -> set[str]:
        """Names of the modalities that this sample has."""
        return set(self.arrays) | set(self.text)

    def value(self, modality: str) -> Value | None:
        """Return the modality's arrays or text, or None where it is absent."""
        return self.arrays[modality] if modality in self.arrays else self.text.get(modality)
