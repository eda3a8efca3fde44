"""A table joined to the records of any source by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import SerializeAsAny, field_validator

from shards.errors import DataError
from shards.sources.base import SOURCES, Item, Record, Source
from shards.sources.table import TableSource


@dataclass(frozen=True)
class Unmatched:
    """Ids that one side of a join has and the other lacks.

    Attributes
    ----------
    without_row : tuple of str
        Records of the source that the table does not know; they are read without it.
    without_record : tuple of str
        Ids of the table that the source does not know; they give no record.
    """

    without_row: tuple[str, ...]
    without_record: tuple[str, ...]


@SOURCES.register("join")
class JoinedSource(Source):
    """The records of a source, with what a table knows of them by the same id.

    Labels, columns, tags, arrays and pictures are added to the record's own; of two values with one name, the table's
    counts, and so do its structure, text, molecule and group: the recipe names them column by column.

    Attributes
    ----------
    source : Source
        Where the records come from.
    table : TableSource
        What is joined; its ids are the source's.
    complete : bool
        Refuse a join in which either side lacks an id of the other.
    """

    kind: Literal["join"] = "join"
    source: SerializeAsAny[Source]
    table: TableSource
    complete: bool = False

    @field_validator("source", mode="before")
    @classmethod
    def _opened(cls, value: Any) -> Any:
        return SOURCES.options(value) if isinstance(value, Mapping) else value

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that the source, where it knows them, and the table may give."""
        return (*getattr(self.source, "label_names", ()), *self.table.label_names)

    def process_columns(self) -> dict[str, Any]:
        """Return the parameters of a ``table`` feature step; see `TableSource.process_columns`."""
        own: dict[str, Any] = {"columns": [], "categorical": {}}
        if hasattr(self.source, "process_columns"):
            own = self.source.process_columns()
        added = self.table.process_columns()
        replaced = {*added["columns"], *added["categorical"]}
        kept = {name: values for name, values in own["categorical"].items() if name not in replaced}
        return {
            "columns": [*(name for name in own["columns"] if name not in replaced), *added["columns"]],
            "categorical": {**kept, **added["categorical"]},
        }

    def unmatched(self) -> Unmatched:
        """Compare the ids of both sides."""
        records, rows = [item.id for item in self.source.items()], [item.id for item in self.table.items()]
        in_source, in_table = set(records), set(rows)
        return Unmatched(
            tuple(id for id in records if id not in in_table), tuple(id for id in rows if id not in in_source)
        )

    def items(self) -> Iterable[Item]:
        """List the source's records, in its order.

        Raises
        ------
        DataError
            Where no id is on both sides, or ``complete`` is asked for and is not so.
        """
        items, rows = list(self.source.items()), {item.id: item for item in self.table.items()}
        matched = sum(item.id in rows for item in items)
        if items and (not matched or (self.complete and not len(items) == matched == len(rows))):
            raise DataError(
                f"{matched} of {len(items)} records and {len(rows)} rows have the same id",
                where=self.table.path,
                why=f"ids are such as '{items[0].id}' in the source and '{next(iter(rows), '')}' in the table",
                do="check the table's 'id' column",
            )
        return [_both(item, rows.get(item.id)) for item in items]

    def read(self, item: Item) -> Record:
        """Read one record and what the table knows of it."""
        (own, own_stamp), row = item.ref
        record = self.source.read(Item(id=item.id, ref=own, stamp=own_stamp))
        if row is None:
            return record
        added = self.table.read(Item(id=item.id, ref=row[0], stamp=row[1]))
        given: dict[str, Any] = {
            name: {**getattr(record, name), **getattr(added, name)} for name in ("columns", "arrays", "labels", "tags")
        }
        for name in ("structure", "text", "smiles", "group", "images"):
            value = getattr(added, name)
            if value is not None and not (isinstance(value, (str, tuple)) and not value):
                given[name] = value
        return replace(record, **given)


def _both(item: Item, row: Item | None) -> Item:
    stamp = f"{item.stamp}+{row.stamp}" if row else item.stamp
    # a source may hold a record's stamp against its file when it reads it
    return Item(id=item.id, ref=[[item.ref, item.stamp], [row.ref, row.stamp] if row else None], stamp=stamp)
