"""A download from the Materials Project into a folder: resumable, checked, with a list of what there is not.

The folder holds ``documents/`` (summary documents, one JSON line each), ``dos/`` and ``chgcars/``
(objects of the public bucket, as they are there), ``ledger.jsonl`` (what is done) and, once all is
done, ``missing.csv``. Only what the ledger names counts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from shards.errors import ConfigError, DataError
from shards.sources.ledger import Ledger
from shards.sources.mp_bucket import FOLDERS, Bucket
from shards.sources.mp_client import MaterialsApi, checked_id
from shards.sources.mp_table import DosTable

FORMAT = "matloom-mp-1"
LEDGER, MISSING = "ledger.jsonl", "missing.csv"
PAGE = 250
MAX_FAILURES = 10
SPLIT_QUERIES = ("crystal_system", "spacegroup_number", "spacegroup_symbol")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to download.

    Attributes
    ----------
    folder : Path
        Target.
    query : mapping
        Arguments of the client's summary search.
    material_ids : tuple of str
        These materials alone, where there are any.
    fields : tuple of str
        Fields of the summary documents.
    objects : tuple of str
        ``dos``, ``charge_density`` or both.
    parsed : str
        Base of the public bucket of parsed calculations, any address that fsspec knows.
    connections, attempts, pause_s : int, int, float
        Objects fetched at a time; attempts for each question and object; seconds before the second.
    """

    folder: Path
    query: Mapping[str, Any]
    material_ids: tuple[str, ...]
    fields: tuple[str, ...]
    objects: tuple[str, ...]
    parsed: str
    connections: int
    attempts: int
    pause_s: float

    @property
    def question(self) -> dict[str, Any]:
        """What the folder's documents answer; another question needs another folder."""
        return json.loads(
            json.dumps(
                {
                    "format": FORMAT,
                    "query": self.query,
                    "material_ids": self.material_ids,
                    "fields": sorted(self.fields),
                }
            )
        )


@dataclass
class State:
    """What a ledger says is done.

    Attributes
    ----------
    question, db_version : dict, str
        What was asked, and of which version of the database.
    pages : list of dict
        ``name``, ``documents`` (id, offset, size, digest, has_props) and ``last``.
    tasks : dict
        (modality, material) to the calculations that may have its object.
    objects : dict
        (modality, material) to ``path``, ``size``, ``sha256``.
    missing : dict
        (modality, material) to the reason.
    """

    question: dict[str, Any] | None = None
    db_version: str = ""
    pages: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Mapping[str, Any]]) -> State:
        """Replay a ledger."""
        state = cls()
        for entry in entries:
            state.take(entry)
        return state

    def take(self, entry: Mapping[str, Any]) -> None:
        """Count one entry."""
        kind = entry["kind"]
        if kind == "question":
            # also begins a listing anew, when the database changed under the one before: what that lacked is asked anew
            self.question, self.db_version = entry["question"], entry["db_version"]
            self.pages, self.tasks, self.missing = [], {}, {}
        elif kind == "page":
            self.pages.append(dict(entry))
        elif kind == "tasks":
            self.tasks.update({(entry["modality"], material): tasks for material, tasks in entry["tasks"].items()})
        elif kind == "object":
            self.objects[entry["modality"], entry["material"]] = dict(entry)
        elif kind == "missing":
            self.missing[entry["modality"], entry["material"]] = entry["reason"]

    @property
    def listed(self) -> bool:
        """Whether every page of documents is there."""
        return bool(self.pages) and self.pages[-1]["last"]

    def documents(self) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """Yield every document's page and entry, in order."""
        for page in self.pages:
            for document in page["documents"]:
                yield page, document

    def open(self, folder: Path, modalities: Iterable[str]) -> list[tuple[str, str]]:
        """Return what is neither there nor known to be missing: (modality, material)."""
        wanted = ((modality, document[0]) for _, document in self.documents() for modality in modalities)
        return [key for key in wanted if key not in self.missing and not _there(folder, self.objects.get(key))]


def _there(folder: Path, entry: Mapping[str, Any] | None) -> bool:
    if entry is None:
        return False
    try:
        return os.stat(folder / entry["path"]).st_size == entry["size"]
    except OSError:
        return False


def report(text: str) -> None:
    """Write a line of progress to standard error."""
    print(f"materials_project: {text}", file=sys.stderr, flush=True)


def download(plan: Plan, progress: Callable[[str], None] = report) -> State:
    """Bring the folder up to the plan, fetching only what it lacks, and return what it holds.

    A complete folder is not asked about over the network. Processes that come at once wait for each other.

    Raises
    ------
    ConfigError
        Where the folder answers another question, or the API refuses this one.
    DataError
        Where something cannot be fetched after all attempts; what was fetched stays.
    """
    from filelock import FileLock

    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"), Ledger(plan.folder / LEDGER) as ledger:
        state = State.of(ledger.entries)
        if state.question is not None and state.question != plan.question:
            raise ConfigError(
                "the folder holds the answer to another query",
                where=plan.folder / LEDGER,
                why=f"asked then: {json.dumps(state.question)[:300]}",
                do="name another folder",
            )
        job = _Job(plan, ledger, state, progress)
        try:
            job.list_documents()
            job.fetch_objects()
        finally:
            job.close()
        _write_missing(plan.folder / MISSING, state)
    return state


class _Job:
    """One run of a download."""

    def __init__(self, plan: Plan, ledger: Ledger, state: State, progress: Callable[[str], None]) -> None:
        self.plan, self.ledger, self.state, self.progress = plan, ledger, state, progress
        self._api: MaterialsApi | None = None

    @property
    def api(self) -> MaterialsApi:
        """The API, asked for only where a question is open."""
        if self._api is None:
            self._api = MaterialsApi(attempts=self.plan.attempts, pause_s=self.plan.pause_s)
        return self._api

    def close(self) -> None:
        """Close the connections to the API, where there are any."""
        if self._api is not None:
            self._api.close()

    def done(self, entry: dict[str, Any]) -> None:
        """Write an entry to disk and count it."""
        self.ledger.add(entry)
        self.state.take(entry)

    def list_documents(self) -> None:
        """Fetch the pages of summary documents that are not there."""
        if self.state.listed:
            return
        if self.state.question is None or self.state.db_version != self.api.db_version:
            self.done({"kind": "question", "question": self.plan.question, "db_version": self.api.db_version})
        seen = {document[0] for _, document in self.state.documents()}
        while not self.state.listed:
            number = len(self.state.pages)
            documents, last = self._page(number)
            ids = [checked_id(document["material_id"]) for document in documents]
            if len(set(ids)) != len(ids) or not seen.isdisjoint(ids):
                raise DataError(
                    "a material was listed twice",
                    where=f"page {number + 1} of the summary documents",
                    why="the database changed while its pages were read",
                    do="remove the folder and download it again",
                )
            seen.update(ids)
            for material in self.plan.material_ids[number * PAGE : (number + 1) * PAGE]:
                if material not in seen:
                    self._missing("summary", material, "no document of this id: unknown or deprecated")
            self._keep(number, dict(zip(ids, documents, strict=True)), last)
            self.progress(f"{len(seen)} documents")

    def _page(self, number: int) -> tuple[list[dict], bool]:
        """Return a page of documents, and whether it is the last."""
        plan = self.plan
        if plan.material_ids:
            batch = list(plan.material_ids[number * PAGE : (number + 1) * PAGE])
            documents = self.api.summaries({**plan.query, "material_ids": batch}, plan.fields, page=1, size=PAGE)
            return documents, (number + 1) * PAGE >= len(plan.material_ids)
        documents = self.api.summaries(plan.query, plan.fields, page=number + 1, size=PAGE)
        # the client asks once for each value of a list of space groups, so such a page may be short or long
        parts = any(isinstance(plan.query.get(key), list) for key in SPLIT_QUERIES)
        return documents, not documents or (len(documents) < PAGE and not parts)

    def _keep(self, number: int, documents: Mapping[str, dict], last: bool) -> None:
        """Write a page of documents."""
        lines = [json.dumps(document, separators=(",", ":")).encode() + b"\n" for document in documents.values()]
        entries, offset = [], 0
        for material, line in zip(documents, lines, strict=True):
            if "structure" in self.plan.fields and not documents[material].get("structure"):
                self._missing("structure", material, "none in its summary")
            props = documents[material].get("has_props") or {}
            lacks = [modality for modality in FOLDERS if props.get(modality) is False]
            entries.append([material, offset, len(line), xxhash.xxh3_128_hexdigest(line), lacks])
            offset += len(line)
        name = f"documents/{number:06d}.jsonl"
        _write(self.plan.folder / name, b"".join(lines))
        self.done({"kind": "page", "name": name, "documents": entries, "last": last})

    def fetch_objects(self) -> None:
        """Find out which calculations have the objects, and fetch them."""
        for modality in self.plan.objects:
            open_keys = self.state.open(self.plan.folder, [modality])
            lacks = {document[0] for _, document in self.state.documents() if modality in document[4]}
            for _, material in open_keys:
                if material in lacks:
                    self._missing(modality, material, "not calculated: has_props of its summary says so")
            unknown = [material for key, material in open_keys if material not in lacks]
            unknown = [material for material in unknown if (modality, material) not in self.state.tasks]
            for start in range(0, len(unknown), PAGE):
                self._find_tasks(modality, unknown[start : start + PAGE])
            if modality == "dos":
                self._ask_table()
            self._fetch(modality, self.state.open(self.plan.folder, [modality]))

    def _find_tasks(self, modality: str, materials: list[str]) -> None:
        found = self.api.dos_tasks(materials) if modality == "dos" else self.api.static_tasks(materials)
        tasks = {material: found.get(material, []) for material in materials}
        self.done({"kind": "tasks", "modality": modality, "tasks": tasks})

    def _ask_table(self) -> None:
        """Take the densities of states that the bucket keeps in a table; the others are looked for as objects."""
        keys = self.state.open(self.plan.folder, ["dos"])
        if not keys:
            return
        table = DosTable(self.plan.parsed, attempts=self.plan.attempts, pause_s=self.plan.pause_s)
        for start in range(0, len(keys), PAGE):
            batch = [material for _, material in keys[start : start + PAGE]]
            rows = table.rows({material: self.state.tasks.get(("dos", material), []) for material in batch})
            for material in batch:
                if material in rows:
                    data, path = rows[material], f"{FOLDERS['dos']}/{material}.table.json.gz"
                    _write(self.plan.folder / path, data)
                    entry = {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                    self.done({"kind": "object", "modality": "dos", "material": material, **entry})
            if rows:
                self.progress(f"dos: {min(start + PAGE, len(keys))} of {len(keys)} looked up in the table")

    def _missing(self, modality: str, material: str, reason: str) -> None:
        self.done({"kind": "missing", "modality": modality, "material": material, "reason": reason})

    def _fetch(self, modality: str, keys: list[tuple[str, str]]) -> None:
        """Fetch objects, several at a time; failures are collected, and end the download when there are many."""
        if not keys:
            return
        bucket = Bucket(self.plan.parsed, self.plan.folder, attempts=self.plan.attempts, pause_s=self.plan.pause_s)
        failures: list[DataError] = []
        finished, size, told = 0, 0, time.monotonic()
        waiting, running = iter(keys), {}
        with ThreadPoolExecutor(self.plan.connections) as pool:
            while True:
                for _, material in waiting:
                    tasks = self.state.tasks.get((modality, material), [])
                    running[pool.submit(bucket.fetch, modality, material, tasks)] = material
                    if len(running) >= 2 * self.plan.connections:
                        break
                if not running or len(failures) >= MAX_FAILURES:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    size += self._finish(modality, running.pop(future), future, failures)
                    finished += 1
                if time.monotonic() - told > 5 or finished == len(keys):
                    told = time.monotonic()
                    self.progress(f"{modality}: {finished} of {len(keys)}, {size / 1e6:.1f} MB")
            for future in running:
                future.cancel()
        if failures:
            raise DataError(
                f"{len(failures)} objects could not be fetched, for example: {failures[0].what}",
                where=failures[0].where,
                why=failures[0].why,
                do="run the same command again: it goes on where it stopped",
            )

    def _finish(self, modality: str, material: str, future: Future, failures: list[DataError]) -> int:
        """Count what became of an object, and return its size."""
        try:
            entry = future.result()
        except DataError as error:
            failures.append(error)
            return 0
        if isinstance(entry, str):
            self._missing(modality, material, entry)
            return 0
        self.done({"kind": "object", "modality": modality, "material": material, **entry})
        return entry["size"]


def _write(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(path.name + ".partial")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write_missing(path: Path, state: State) -> None:
    """Write the list of what is missing, with the reasons."""
    rows = sorted((material, modality, reason) for (modality, material), reason in state.missing.items())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("material_id", "modality", "reason"))
    writer.writerows(rows)
    _write(path, table.getvalue().encode())
