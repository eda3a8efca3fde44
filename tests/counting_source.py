"""A source that writes down every read, and misbehaves where it is told to."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from shards.errors import ConfigError, DataError
from shards.sources.base import Item, Record, Source


class CountingSource(Source):
    """``count`` records; every read appends a line to ``log``."""

    kind: Literal["counting"] = "counting"
    count: int
    log: Path
    bad: tuple[int, ...] = ()
    crash: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()
    hang_at: int = -1
    fail_at: int = -1
    twin: bool = False

    def model_dump(self, **options: object) -> dict[str, object]:
        """What the data depend on: not how a try of the build misbehaves."""
        return {"kind": self.kind, "count": self.count}

    def items(self) -> Iterable[Item]:
        """List the records; one that has changed bears another stamp."""
        for i in range(self.count):
            yield Item(id=f"item-{0 if self.twin else i}", ref=i, stamp="new" if i in self.changed else "")

    def read(self, item: Item) -> Record:
        """Return the record after writing down that it was asked for."""
        with self.log.open("a") as file:
            file.write(f"{item.id}\n")
        if item.ref == self.hang_at:
            time.sleep(600)
        if item.ref == self.fail_at:
            raise ConfigError("a library is missing on purpose")
        if item.ref in self.bad:
            raise DataError("broken on purpose", where=item.id)
        if item.ref in self.crash:
            1 / 0  # noqa: B018
        text = f"text {item.ref}" if item.ref % 3 else None
        return Record(
            id=item.id, text=text, labels={"gap_ev": float(item.ref)}, tags={"chemical_system": f"X{item.ref}"}
        )
