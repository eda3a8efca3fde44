"""Building shards with a progress bar."""

from __future__ import annotations

import os
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shards.errors import DataError
from shards.locate import EMBEDDED, build_embedded
from shards.manifest import Manifest


def build_with_progress(source: str, out: Path, workers: int) -> Manifest:
    """Build ``embedded:NAME`` into ``out`` with ``workers`` processes (0 = one a core)."""
    if not source.startswith(EMBEDDED):
        raise DataError(f"there is no source '{source}'", why="known: embedded:NAME")
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("build", total=None)
        return build_embedded(
            source.removeprefix(EMBEDDED),
            out,
            workers=workers or os.cpu_count() or 1,
            progress=lambda done: progress.update(task, completed=done),
        )
