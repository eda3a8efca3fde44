"""A screening as a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from finetune.discover.screen import Discovery
from shards.errors import ConfigError


def write_table(path: Path, found: Discovery) -> None:
    """Write the rows as CSV, or everything as JSON, by the name of the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(found.as_dict(), indent=1, allow_nan=False))
        elif path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(name for row in found.rows for name in row)))
                writer.writeheader()
                writer.writerows(found.rows)
        else:
            raise ConfigError("a table is .csv or .json", where=path)
    except OSError as error:
        raise ConfigError("the table cannot be written", where=path, why=error.strerror) from None
