"""The manifest of a data set: schema, shards, coverage, label statistics and splits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from shards.errors import DataError, suggest
from shards.schema import ModalitySpec, Strict

MANIFEST = "manifest.json"
FORMAT = "matloom-shards-2"
# a file of the data set's own folder: no path leads out of it
FILE_NAME = r"^\w[\w.-]*$"
SHA256 = r"^[0-9a-f]{64}$"


class ShardEntry(Strict):
    """One shard: tar file, index file, their sha256 and what they hold."""

    file: str = Field(pattern=FILE_NAME)
    sha256: str = Field(pattern=SHA256)
    bytes: int = Field(ge=0)
    index: str = Field(pattern=FILE_NAME)
    index_sha256: str = Field(pattern=SHA256)
    samples: int = Field(ge=0)


class LabelStats(Strict):
    """Statistics of one label over the samples that have it."""

    count: int
    mean: float
    std: float
    min: float
    max: float


class Split(Strict):
    """A division of the data set into named parts.

    Attributes
    ----------
    by : str
        What it goes by, as in `shards.splits.SplitPlan`.
    seed : int
        Seed of the division.
    parameters : dict
        The other parameters of its plan.
    ids : dict of str to list of str
        Part (``train``, ``val``, ``test``) to sample ids.
    """

    by: str
    seed: int
    parameters: dict[str, Any] = {}
    ids: dict[str, list[str]]


class OverlayOf(Strict):
    """The data set that an overlay adds modalities to: its name, and its `Manifest.content_sha256`."""

    name: str
    sha256: str


class Manifest(Strict):
    """Everything about a data set but the samples themselves.

    An overlay holds further modalities of some samples of another data set, under the same ids.
    """

    format: str = FORMAT
    name: str
    modalities: dict[str, ModalitySpec]
    shards: list[ShardEntry]
    samples: int
    coverage: dict[str, int]
    labels: dict[str, LabelStats]
    splits: dict[str, Split] = {}
    quarantined: dict[str, str] = {}
    libraries: dict[str, str] = {}
    source: dict[str, Any] = {}
    overlay_of: OverlayOf | None = None

    @property
    def content_sha256(self) -> str:
        """Identity of the samples, whatever splits stand beside them: a hash of the hashes of all shards."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.shards).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """Return a split by name, or raise `DataError` with a suggestion."""
        if name not in self.splits:
            raise DataError(f"data set '{self.name}' has no split '{name}'", why=suggest(name, self.splits))
        return self.splits[name]


def read_manifest(folder: Path) -> Manifest:
    """Read a data set's manifest, or raise `DataError` saying what is wrong with it."""
    return parse_manifest(manifest_bytes(folder), where=folder / MANIFEST)


def manifest_bytes(folder: Path) -> bytes:
    """Return a data set's manifest as it stands in the file, or raise `DataError` where there is none."""
    try:
        return (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            "this is no data set", where=folder, why=f"it has no {MANIFEST}", do="matloom shards build SOURCE FOLDER"
        ) from None


def parse_manifest(data: bytes, *, where: object) -> Manifest:
    """Return the manifest in ``data``, or raise `DataError` saying what is wrong with it."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            "the manifest is damaged or of another version",
            where=where,
            why=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from None
    if manifest.format != FORMAT:
        raise DataError("the manifest is of another version", where=where, why=f"{manifest.format}, not {FORMAT}")
    return manifest
