"""Process columns of a table as two vectors: numbers, and categories."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from shards.errors import ConfigError, DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record, Source

LARGEST = float(np.finfo(np.float32).max)


@FEATURES.register("table")
class TableFeature(Feature):
    """Columns of the record -> numbers as they are, and categories by number.

    Nothing is scaled: means and deviations are learned later, from the training part alone. Without ``columns`` and
    ``categorical`` the step takes the names of all columns, and of all categories, from the source before the build;
    no value of a number is among what it takes.

    Attributes
    ----------
    columns : tuple of str
        Numeric columns, in the order of the vector.
    categorical : dict of str to tuple of str
        Categorical columns, in the order of the vector, each with its categories; the first of them is 1, and 0 is an
        unknown one or none.
    """

    kind: ClassVar[Kind] = "table"
    step: Literal["table"] = "table"
    columns: tuple[str, ...] = ()
    categorical: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _each_once(self) -> TableFeature:
        for what, names in (("columns", [*self.columns, *self.categorical]), *self.categorical.items()):
            if len(set(names)) != len(names):
                raise ValueError(f"a name is given twice in {what}: {list(names)}")
        return self

    def fitted(self, source: Source) -> Feature:
        """Return the step with its columns, taken from the source where it names none."""
        return self if self.columns or self.categorical else TableFeature(**infer_table(source))

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of a table; it has no field for a kind of column that there is none of."""
        if not self.columns and not self.categorical:
            raise ConfigError(
                f"the modality '{name}' has no columns",
                why="a 'table' step names them, or takes them from a source that has process columns",
                do=f"give modalities.{name} columns = [...] or categorical = {{...}}",
            )
        fields = {}
        if self.columns:
            fields["numeric"] = FieldSpec(dtype="float32", shape=(len(self.columns),))
            fields["known"] = FieldSpec(dtype="uint8", shape=(len(self.columns),))
        if self.categorical:
            fields["categories"] = FieldSpec(dtype="int32", shape=(len(self.categorical),))
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump(mode="json"))

    def __call__(self, record: Record) -> Value | None:
        """Return the record's row, or None where it has none of the columns.

        Returns
        -------
        dict
            ``numeric`` (n,) float32, 0 where ``known`` (n,) uint8 is 0; ``categories`` (m,) int32.

        Raises
        ------
        DataError
            Where a column holds a category and should hold a number, or the other way round.
        """
        if not record.columns.keys() & {*self.columns, *self.categorical}:
            return None
        value = {}
        if self.columns:
            known = [name in record.columns for name in self.columns]
            value["numeric"] = np.array([self._number(record, name) for name in self.columns], dtype=np.float32)
            value["known"] = np.array(known, dtype=np.uint8)
        if self.categorical:
            value["categories"] = np.array([self._category(record, name) for name in self.categorical], dtype=np.int32)
        return value

    def _number(self, record: Record, name: str) -> float:
        value = record.columns.get(name, 0.0)
        if isinstance(value, str) or not abs(value) <= LARGEST:
            raise DataError(f"column '{name}' is {value!r}, no number", where=record.id, do="correct the table")
        return value

    def _category(self, record: Record, name: str) -> int:
        value = record.columns.get(name, "")
        if not isinstance(value, str):
            raise DataError(
                f"column '{name}' is the number {value:g}, no category",
                where=record.id,
                do=f'declare it in the source: categorical = ["{name}"]',
            )
        categories = self.categorical[name]
        return categories.index(value) + 1 if value in categories else 0


def infer_table(source: Source) -> dict[str, Any]:
    """Return the parameters of a `TableFeature` that holds all process columns of a source.

    Parameters
    ----------
    source : Source
        One that says what its process columns are (``process_columns()``: ``table``, or ``join``).

    Raises
    ------
    ConfigError
        Where the source has no process columns.
    """
    found = source.process_columns() if hasattr(source, "process_columns") else {}
    if not any(found.values()):
        raise ConfigError(
            f"the source '{source.kind}' has no process columns",
            do='name them in the table: columns = { voltage_kv = "Voltage (kV)" }',
        )
    return {"step": "table", **found}
