"""Building shards with a progress bar."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shards import build
from shards.build_recipe import BuildRecipe, run_build
from shards.manifest import Manifest


def build_with_progress(
    recipe: BuildRecipe, out: Path, *, workers: int = 0, scheduler: str | None = None
) -> tuple[Manifest, build.Progress | None]:
    """Build what a recipe says with ``workers`` processes (0 = one a core), or on a Dask cluster.

    Returns
    -------
    Manifest, Progress or None
        What was built, and the last state of the build.
    """
    last: build.Progress | None = None
    columns = (
        TextColumn("shards"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[quarantined]} quarantined"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("build", total=None, quarantined=0)

        def show(state: build.Progress) -> None:
            nonlocal last
            last = state
            bars.update(task, completed=state.done, total=state.total, quarantined=state.quarantined)

        manifest = run_build(
            recipe,
            out,
            workers=workers or len(os.sched_getaffinity(0)),
            scheduler=scheduler,
            progress=show,
        )
    return manifest, last
