"""JARVIS-Leaderboard: a contribution from predictions, and the split of a benchmark into a data set.

A contribution is a folder with ``<Category>-<Sub>-<property>-<dataset>-<part>-<metric>.csv.zip`` (columns ``id`` and
``prediction``) and ``metadata.json``; a benchmark is ``<dataset>_<property>.json.zip``, ids with values by part
(https://pages.nist.gov/jarvis_leaderboard/guide/; Choudhary et al., npj Comput. Mater. 10, 93 (2024)).
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from finetune.leaderboards.entries import Values, check_entries, mean_absolute_error
from shards.errors import ConfigError, DataError
from shards.manifest import Split
from shards.resplit import publish_split

METADATA = "metadata.json"
PARTS = ("train", "val", "test")
# what the leaderboard's own compilation and its check of contributions want
REQUIRED = (
    "model_name",
    "project_url",
    "team_name",
    "date_submitted",
    "author_email",
    "git_url",
    "time_taken_seconds",
    "software_used",
    "hardware_used",
)
Say = Callable[[str], None]
SUB = {"SinglePropertyPrediction": "mae"}


@dataclass(frozen=True)
class Task:
    """The parts of a contribution's name, ``AI-SinglePropertyPrediction-formation_energy_peratom-dft_3d-test-mae``."""

    category: str
    sub: str
    quantity: str
    dataset: str
    part: str
    metric: str

    @classmethod
    def parse(cls, name: str) -> Task:
        """Read a name, with or without ``.csv.zip``, or raise `ConfigError`."""
        parts = name.removesuffix(".csv.zip").split("-")
        if len(parts) != 6 or not all(parts):
            raise ConfigError(
                f"'{name}' names no contribution", do="AI-SinglePropertyPrediction-PROPERTY-DATASET-test-mae"
            )
        task = cls(*parts)
        if SUB.get(task.sub) != task.metric:
            raise ConfigError(f"'{task.sub}' by '{task.metric}' is not written here", why=f"known: {SUB}")
        return task

    def __str__(self) -> str:
        return "-".join(vars(self).values())

    @property
    def benchmark(self) -> str:
        """File name of its benchmark, without ``.zip``."""
        return f"{self.dataset}_{self.quantity}.json"


def read_benchmark(path: Path, task: Task, report: Say = lambda line: None) -> dict[str, dict[str, float]]:
    """Return the values by id of each part (``train``, ``val``, ``test``) of a benchmark, of which no two share an id.

    Some of the leaderboard's own benchmarks have an id in two parts (``dft_3d_formation_energy_peratom``: two of the
    test ids are among the training ids): the part that is predicted keeps it, then ``test``, ``val``, ``train``.

    Parameters
    ----------
    path, task : Path, Task
        ``<dataset>_<property>.json.zip``, and what is predicted.
    report : callable
        Gets a line for each part of which ids are left out.

    Raises
    ------
    DataError
        Where the file is not that of the task.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tables = json.loads(archive.read(task.benchmark))
        parts = {
            part: {str(name): float(value) for name, value in tables[part].items()} for part in PARTS if part in tables
        }
    except (OSError, KeyError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            "this is no benchmark of the task", where=path, why=repr(error), do=f"give {task.benchmark}.zip"
        ) from None
    if not parts.get(task.part):
        raise DataError(f"the benchmark has no part '{task.part}'", where=path)
    kept: dict[str, dict[str, float]] = {}
    for part in dict.fromkeys((task.part, *reversed(PARTS))):
        if part not in parts:
            continue
        taken = {name for values in kept.values() for name in values}
        kept[part] = {name: value for name, value in parts[part].items() if name not in taken}
        if lost := len(parts[part]) - len(kept[part]):
            report(f"{lost} ids of part '{part}' of the benchmark stand in another part too: left out of '{part}'")
    return {part: kept[part] for part in parts}


def import_split(folder: Path, name: str, benchmark: Mapping[str, Values], task: Task) -> Split:
    """Add the division of a benchmark to a built data set whose sample ids are those of the leaderboard.

    Samples that the benchmark does not know become the part ``unassigned``; empty parts are left out.
    """

    def split(dataset: Any) -> Split:
        lacking = sorted({i for values in benchmark.values() for i in values} - set(dataset.ids))
        if lacking:
            raise DataError(f"{len(lacking)} ids of the benchmark are not in the data set", where=lacking[0])
        ids = {part: sorted(values) for part, values in benchmark.items() if values}
        rest = set(dataset.ids).difference(*ids.values())
        ids |= {"unassigned": sorted(rest)} if rest else {}
        return Split(by="jarvis_leaderboard", seed=0, parameters={"task": str(task)}, ids=ids)

    return publish_split(folder, name, split)


def write_contribution(folder: Path, task: Task, predictions: Values, metadata: Mapping[str, Any]) -> Path:
    """Write the zipped CSV and ``metadata.json``; the date of today where the metadata give none.

    Returns
    -------
    Path
        The zipped CSV.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "prediction"])
    # repr gives back the same float
    writer.writerows([name, repr(value)] for name, value in predictions.items())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}.csv.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        # a fixed time, so that the same predictions give the same bytes
        archive.writestr(zipfile.ZipInfo(f"{task}.csv"), table.getvalue(), zipfile.ZIP_DEFLATED)
    complete = {"date_submitted": date.today().strftime("%m-%d-%Y"), **metadata}
    (folder / METADATA).write_text(json.dumps(complete, indent=4) + "\n")
    return path


def validate_contribution(folder: Path, task: Task, benchmark: Mapping[str, Values]) -> float:
    """Read a contribution back as the leaderboard does and return its mean absolute error.

    Raises
    ------
    DataError
        Where the ids are not exactly those of the part, or metadata are missing.
    """
    path = folder / f"{task}.csv.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = archive.namelist()
            rows = list(csv.DictReader(io.StringIO(archive.read(member).decode())))
        predictions = {row["id"]: float(row["prediction"]) for row in rows}
        metadata = json.loads((folder / METADATA).read_text())
        missing = [key for key in REQUIRED if not metadata.get(key)]
        if "@" not in str(metadata.get("author_email", "@")):
            missing.append("an address in author_email")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError("this is no contribution", where=path, why=repr(error)) from None
    if missing:
        raise DataError(f"the metadata lack {missing}", where=folder / METADATA, do="give them by --metadata FILE.toml")
    if len(predictions) < len(rows):
        raise DataError("an id stands in two rows", where=path)
    targets = benchmark[task.part]
    check_entries(predictions, list(targets), where=path)
    return mean_absolute_error(predictions, targets)
