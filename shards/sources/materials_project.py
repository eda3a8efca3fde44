"""Materials of the Materials Project: downloaded into a folder once, then read from there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field

from shards.errors import ConfigError, DataError
from shards.formats.listing import lookup
from shards.formats.structure import parse_structure
from shards.sealed import sha256
from shards.sources.base import SOURCES, Item, Record, Source
from shards.sources.mp_client import ID
from shards.sources.mp_fetch import Plan, State, download
from shards.sources.pymatgen_json import document, parse_chgcar, read_json
from shards.sources.structures import structure_record
from shards.sources.vasp import complete_dos

LABELS = {
    "band_gap_ev": "band_gap",
    "is_metal": "is_metal",
    "formation_energy_ev_per_atom": "formation_energy_per_atom",
    "energy_above_hull_ev_per_atom": "energy_above_hull",
    "bulk_modulus_gpa": "bulk_modulus.vrh",
    "shear_modulus_gpa": "shear_modulus.vrh",
    "density_g_cm3": "density",
    "total_magnetization_mu_b": "total_magnetization",
}
FIELDS = ("formula_pretty", "chemsys", "symmetry", "has_props", "nsites")


@SOURCES.register("materials_project")
class MaterialsProjectSource(Source):
    """Summary documents of the Materials Project, with densities of states and charge densities.

    Listing the items downloads what ``folder`` lacks; reading them never uses the network. The key and
    the address of the API are those of its client: ``MP_API_KEY`` and ``MP_API_ENDPOINT``.

    Attributes
    ----------
    folder : str
        Where the download is kept; it serves one query.
    query : dict
        Arguments of the client's ``materials.summary.search`` (``chemsys``, ``elements``, ``num_sites``,
        ``band_gap``, ``is_stable``, ``material_ids``, ...). Deprecated materials are left out unless it
        says ``deprecated = true``.
    ids_file : str
        A text file with one material id a line: these alone.
    include : tuple of str
        ``structure``, ``dos``, ``charge_density``.
    labels : dict of str to str
        Label to the field of the summary document, with dots into nested ones. Booleans become 0 and 1.
    parsed : str
        The bucket of parsed calculations, or a mirror: any address that fsspec knows.
    max_atoms : int
        Larger structures are quarantined.
    connections, attempts, pause_s : int, int, float
        Objects fetched at a time; attempts for each; seconds before the second attempt, doubled each time.
    """

    kind: Literal["materials_project"] = "materials_project"
    folder: str
    query: dict[str, Any] = {}
    ids_file: str = ""
    include: tuple[Literal["structure", "dos", "charge_density"], ...] = ("structure",)
    labels: dict[str, str] = LABELS
    parsed: str = "s3://materialsproject-parsed"
    max_atoms: int = Field(1000, ge=1)
    connections: int = Field(8, ge=1, le=64)
    attempts: int = Field(8, ge=1)
    pause_s: float = Field(1.0, ge=0.0)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that records may have."""
        return tuple(self.labels)

    def items(self) -> Iterable[Item]:
        """Download what is not there yet, and list the materials in the order of the download."""
        objects = tuple(name for name in ("dos", "charge_density") if name in self.include)
        state = download(self._plan(objects))
        return [_item(state, objects, *entry) for entry in state.documents()]

    def read(self, item: Item) -> Record:
        """Read one material from the folder."""
        folder, ref = Path(self.folder), item.ref
        summary = _summary(folder / ref["page"], ref["offset"], ref["size"], ref["digest"])
        dos, density = None, None
        if "dos" in ref:
            where = _checked(folder, ref["dos"])
            table = document(read_json(where))
            dos = complete_dos(table, zero="band_edge", atoms=summary.get("nsites"), where=where)
        if "charge_density" in ref:
            where = _checked(folder, ref["charge_density"])
            density = parse_chgcar(document(read_json(where)), where=where)
        structure = None
        if summary.get("structure"):
            structure = parse_structure(json.dumps(summary["structure"]), max_atoms=self.max_atoms, where=item.id)
        return Record(
            id=item.id,
            structure=structure,
            dos=dos,
            charge_density=density,
            labels=_labels(summary, self.labels, item.id),
            tags=(structure_record(structure, item.id).tags if structure else {}) | _tags(summary),
        )

    def _plan(self, objects: tuple[str, ...]) -> Plan:
        query = dict(self.query)
        ids = _ids(query.pop("material_ids", ()), self.ids_file)
        fields = {*FIELDS, *(path.split(".")[0] for path in self.labels.values())}
        fields |= {"structure"} if "structure" in self.include else set()
        return Plan(
            folder=Path(self.folder),
            query=query,
            material_ids=ids,
            fields=tuple(sorted(fields)),
            objects=objects,
            parsed=self.parsed,
            connections=self.connections,
            attempts=self.attempts,
            pause_s=self.pause_s,
        )


def _ids(given: Any, file: str) -> tuple[str, ...]:
    """Return the materials that are asked for by id, each once, in order."""
    ids = list(given) if isinstance(given, list | tuple) else [given]
    if file:
        try:
            lines = Path(file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the file of material ids cannot be read", where=file, why=str(error)) from None
        ids += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not ids:
            raise ConfigError("the file of material ids is empty", where=file)
    wrong = next((value for value in ids if not isinstance(value, str) or not ID.fullmatch(value)), None)
    if wrong is not None:
        raise ConfigError(f"'{str(wrong)[:80]}' is no material id", where=file or "query.material_ids", do="mp-149")
    return tuple(dict.fromkeys(ids))


def _item(state: State, objects: Iterable[str], page: Mapping[str, Any], entry: list[Any]) -> Item:
    material, offset, size, digest, _ = entry
    ref = {"page": page["name"], "offset": offset, "size": size, "digest": digest}
    for modality in objects:
        found = state.objects.get((modality, material))
        if found is not None:
            ref[modality] = {"path": found["path"], "sha256": found["sha256"]}
    return Item(id=material, ref=ref, stamp=xxhash.xxh3_64_hexdigest(json.dumps(ref, sort_keys=True).encode()))


def _checked(folder: Path, entry: Mapping[str, str]) -> Path:
    """Return the path of an object whose bytes are those that were downloaded."""
    path = folder / entry["path"]
    if not path.is_file() or sha256(path) != entry["sha256"]:
        raise DataError(
            "a downloaded object is damaged",
            where=path,
            why="its sha256 is another one",
            do="remove it and build again",
        )
    return path


@lru_cache(maxsize=1)
def _page_bytes(path: Path, stamp: int) -> bytes:
    return path.read_bytes()


def _summary(page: Path, offset: int, size: int, digest: str) -> dict[str, Any]:
    """Return one summary document."""
    try:
        line = _page_bytes(page, page.stat().st_mtime_ns)[offset : offset + size]
    except OSError:
        line = b""
    if xxhash.xxh3_128_hexdigest(line) != digest:
        raise DataError(
            "a page of summary documents is damaged", where=page, do="remove the folder and download it again"
        )
    return json.loads(line)


def _labels(summary: Mapping[str, Any], paths: Mapping[str, str], where: str) -> dict[str, float]:
    """Return the labels that the document knows."""
    labels = {}
    for label, path in paths.items():
        value = lookup(summary, path)
        if value is None:
            continue
        try:
            if not isinstance(value, int | float):
                raise TypeError
            labels[label] = float(value)
        except (TypeError, OverflowError):
            raise DataError(f"the field '{path}' is no number: {str(value)[:60]}", where=where) from None
    return labels


def _tags(summary: Mapping[str, Any]) -> dict[str, str]:
    symmetry = summary.get("symmetry") or {}
    tags = {
        "formula": summary.get("formula_pretty"),
        "chemical_system": summary.get("chemsys"),
        "spacegroup": symmetry.get("symbol"),
        "crystal_system": symmetry.get("crystal_system"),
    }
    return {name: re.sub(r"\s+", " ", str(value)) for name, value in tags.items() if value}
