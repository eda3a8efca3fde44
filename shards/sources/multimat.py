"""Data in the layout of MultiMat (Moro et al., Newton 2025, 100016): tensors of materials by mp-id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from shards.errors import DataError
from shards.formats.files import stamp
from shards.formats.tensors import load_npz, load_pt, mapping, to_array
from shards.sources.base import RHO_V, SOURCES, Item, RawDos, Record, Source

TEXT_VECTOR = "text_matbert"
GRAPH_PREFIX = "crystal_"
# the file with existence flags for all materials counts before the one of the materials that have the modality
DOS_FILES = ("dos_allmpids.pt", "dos.pt")
TEXT_FILES = ("mp_matbert_text_embeds_allmpids.pt", "mp_matbert_text_embeds.pt")
DENSITY_FOLDERS = ("charge_density_allmpids", "charge_density")
LABEL_FILES = {
    "band_gap_ev": "bandgap.pt",
    "formation_energy_ev_per_atom": "eform.pt",
    "is_metal": "is_metal.pt",
}


@SOURCES.register("multimat")
class MultimatSource(Source):
    """MultiMat's data folder, or its example data as one ``.npz``.

    The folder holds dictionaries of mp-ids that `torch.save` wrote: ``dos_allmpids.pt`` and
    ``mp_matbert_text_embeds_allmpids.pt`` (id to ``{"data": tensor, "exists": 0 or 1}``), or
    ``dos.pt`` and ``mp_matbert_text_embeds.pt`` (id to tensor); ``charge_density_allmpids/`` with
    ``material_ids.pt`` (id to 0 or 1) and ``tensors/<id>.pt``, or ``charge_density/`` (a list of ids);
    ``crystal_potnet.pt`` (id to a graph of PyTorch Geometric). The ``.npz`` has rows of ``ids``, ``dos``,
    ``dos_exists``, ``charge_density``, ``cd_exists`` and ``text_matbert``.

    The layout has neither cells nor positions, also not in its graphs: structures are joined by id from
    a table or built from another source. What follows from that:

    - The density of states is that of one spin channel of a cell of unknown size. It is a `RawDos` with
      ``absolute`` false; the dos feature takes it with ``scale = "area"``.
    - The charge density is a density times a volume that is not told. It is ``arrays``'
      ``charge_density_rho_v``; the charge_density feature takes it with ``scale = "mean"``.
    - MatBERT vectors are ``arrays["text_matbert"]`` for the vector feature.

    Where a flag says that a modality does not exist it is absent, whatever stands there. A row of zeros
    is never data: without a flag it is absent, and where a flag says that it exists the record is
    quarantined.

    Attributes
    ----------
    path : Path
        The folder or the ``.npz``.
    labels : tuple of str
        Labels from the files of scalars: ``band_gap_ev``, ``formation_energy_ev_per_atom``, ``is_metal``.
    graphs : bool
        Carry the tensors of the graphs in ``crystal_potnet.pt`` as ``arrays["crystal_x"]``,
        ``arrays["crystal_edge_index"]``, ... for feature steps of your own.
    """

    kind: Literal["multimat"] = "multimat"
    path: Path
    labels: tuple[Literal["band_gap_ev", "formation_energy_ev_per_atom", "is_metal"], ...] = ()
    graphs: bool = False

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that records may have."""
        return tuple(self.labels)

    def items(self) -> Iterable[Item]:
        """List all materials of all files, sorted by id."""
        opened = self._open()
        return [Item(id=id, ref=id, stamp=opened.stamp(id)) for id in sorted(opened.ids)]

    def read(self, item: Item) -> Record:
        """Read one material."""
        opened, where = self._open(), f"{self.path}: {item.id}"
        dos = opened.value("dos", item.id)
        density = opened.value("charge_density", item.id)
        text = opened.value("text", item.id)
        arrays = {} if density is None else {RHO_V: _density(density, where)}
        if text is not None:
            if text.ndim != 1:
                raise DataError(f"the text vector has shape {text.shape}", where=where)
            arrays[TEXT_VECTOR] = text
        if self.graphs:
            arrays |= opened.graph(item.id)
        return Record(
            id=item.id,
            dos=None if dos is None else _dos(dos, where),
            arrays=arrays,
            labels=opened.scalars(item.id),
        )

    def _open(self) -> Opened:
        if self.path.suffix == ".npz":
            if self.labels or self.graphs:
                raise DataError("the .npz has no labels and no graphs", where=self.path, do="leave the options out")
            return _open_npz(self.path, _changed(self.path))
        if not self.path.is_dir():
            raise DataError("there is no such folder", where=self.path, do="check the path")
        return _open_folder(self.path, self.labels, self.graphs, _changed(self.path))


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality of all materials.

    Attributes
    ----------
    exists : dict of str to (bool or None)
        Materials that the files list: what their flag says, or None without a flag.
    load : callable
        Returns the array of a material.
    """

    exists: Mapping[str, bool | None]
    load: Callable[[str], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An opened data folder or ``.npz``."""

    where: Path
    version: str
    ids: frozenset[str]
    modalities: Mapping[str, Modality]
    label_tables: Mapping[str, Mapping[str, Any]]
    graph_table: Mapping[str, Any] | None = None
    tensors: Path | None = None

    def stamp(self, id: str) -> str:
        """Return what changes when the files do that a material is read from."""
        own = stamp(self.tensors, f"{id}.pt") if self.tensors is not None else ""
        return f"{self.version} {own}"

    def value(self, name: str, id: str) -> np.ndarray | None:
        """Return a modality of a material, or None where it is absent."""
        modality = self.modalities.get(name)
        if modality is None or id not in modality.exists:
            return None
        flag = modality.exists[id]
        if flag is False:
            return None
        array = modality.load(id)
        # a density of states has its energies even where it has no states
        if (array[1:] if name == "dos" and array.ndim == 2 else array).any():
            return array
        if flag is None:
            return None
        raise DataError(
            f"the {name} of '{id}' is flagged as existing and holds zeros only",
            where=self.where,
            why="a placeholder",
            do="set its flag to 0",
        )

    def scalars(self, id: str) -> dict[str, float]:
        """Return the labels of a material; unknown ones are absent."""
        found = {}
        for name, table in self.label_tables.items():
            value, flag = _entry(table[id]) if id in table else (None, False)
            if flag is not False and value is not None:
                number = np.asarray(to_array(value, where=self.where) if hasattr(value, "dtype") else value)
                if number.size != 1 or number.dtype.kind not in "biuf":
                    raise DataError(f"the label '{name}' of '{id}' is no number", where=self.where)
                if np.isfinite(number.item()):
                    found[name] = float(number.item())
        return found

    def graph(self, id: str) -> dict[str, np.ndarray]:
        """Return the tensors of a material's graph."""
        import torch

        graph = (self.graph_table or {}).get(id)
        if graph is None:
            return {}
        if not hasattr(graph, "to_dict"):
            raise DataError(f"the crystal of '{id}' is no graph", where=self.where, why=type(graph).__name__)
        tensors = {name: value for name, value in graph.to_dict().items() if isinstance(value, torch.Tensor)}
        return {f"{GRAPH_PREFIX}{name}": to_array(value, where=self.where) for name, value in tensors.items()}


def _changed(path: Path) -> str:
    """Return size and time of a file, or of all files of a folder that are not one material's."""
    files = [path] if path.is_file() else sorted([*path.glob("*.pt"), *path.glob("*/material_ids.pt")])
    stamps = " ".join(f"{file.name} {stamp(file.parent, file.name)}" for file in files)
    return xxhash.xxh3_64_hexdigest(stamps.encode())


@lru_cache(maxsize=2)
def _open_folder(path: Path, labels: tuple[str, ...], graphs: bool, version: str) -> Opened:
    modalities = {}
    for name, files in (("dos", DOS_FILES), ("text", TEXT_FILES)):
        file = next((path / file for file in files if (path / file).is_file()), None)
        if file is not None:
            modalities[name] = _table(file)
    folder = next((path / name for name in DENSITY_FOLDERS if (path / name / "material_ids.pt").is_file()), None)
    if folder is not None:
        modalities["charge_density"] = _densities(folder)
    missing = [LABEL_FILES[name] for name in labels if not (path / LABEL_FILES[name]).is_file()]
    if graphs and not (path / "crystal_potnet.pt").is_file():
        missing.append("crystal_potnet.pt")
    if missing:
        raise DataError(f"the folder has no {', '.join(missing)}", where=path, do="leave the option out")
    crystals = None
    if graphs:
        crystals = mapping(load_pt(path / "crystal_potnet.pt", graphs=True), where=path / "crystal_potnet.pt")
    if not modalities and crystals is None:
        raise DataError(
            "the folder holds nothing of MultiMat's layout",
            where=path,
            do=f"give the folder that holds {DOS_FILES[0]}, or the .npz itself",
        )
    ids = frozenset(id for modality in modalities.values() for id in modality.exists)
    return Opened(
        where=path,
        version=version,
        ids=ids | frozenset(crystals or ()),
        modalities=modalities,
        label_tables={
            name: mapping(load_pt(path / LABEL_FILES[name]), where=path / LABEL_FILES[name]) for name in labels
        },
        graph_table=crystals,
        tensors=None if folder is None else folder / "tensors",
    )


def _table(file: Path) -> Modality:
    """Open a dictionary of tensors, with or without flags."""
    table = mapping(load_pt(file), where=file)
    entries = {id: _entry(value) for id, value in table.items()}
    return Modality(
        exists={id: flag for id, (_, flag) in entries.items()},
        load=lambda id: to_array(entries[id][0], where=f"{file}: {id}"),
    )


def _densities(folder: Path) -> Modality:
    """Open a folder of charge densities, one file a material."""
    listed = load_pt(folder / "material_ids.pt")
    if isinstance(listed, (list, tuple)):
        listed = dict.fromkeys(listed)
    listed = mapping(listed, where=folder / "material_ids.pt")

    def load(id: str) -> np.ndarray:
        if not re.fullmatch(r"[\w-]+", id, re.ASCII):
            raise DataError(f"the id {id[:100]!r} cannot name a file", where=folder)
        return to_array(load_pt(folder / "tensors" / f"{id}.pt"), where=folder / "tensors" / f"{id}.pt")

    return Modality(
        exists={id: None if flag is None else _flag(flag, folder) for id, flag in listed.items()}, load=load
    )


def _entry(value: Any) -> tuple[Any, bool | None]:
    """Split an entry into its data and its flag; one without a flag is its data."""
    if isinstance(value, Mapping):
        if set(value) != {"data", "exists"}:
            raise DataError(f"an entry has the keys {sorted(map(str, value))[:5]}, not data and exists")
        return value["data"], _flag(value["exists"])
    return value, None


def _flag(value: Any, where: object = None) -> bool:
    """Return an existence flag: a truth value, or 0 or 1 as a number or a tensor of one."""
    number = value.item() if hasattr(value, "item") and getattr(value, "numel", lambda: 1)() == 1 else value
    if not isinstance(number, (bool, int, float)) or number not in (0, 1):
        raise DataError(f"an existence flag is {str(value)[:60]}, not 0 or 1", where=where)
    return bool(number)


@lru_cache(maxsize=2)
def _open_npz(path: Path, version: str) -> Opened:
    arrays = load_npz(path)
    ids = arrays.get("ids", np.empty(0))
    if ids.dtype.kind != "U" or ids.ndim != 1 or len(set(ids.tolist())) != len(ids):
        raise DataError("the .npz has no 'ids', or one of them twice", where=path)
    rows = {id: row for row, id in enumerate(ids.tolist())}
    modalities = {}
    for name, key, flags in (
        ("dos", "dos", "dos_exists"),
        ("charge_density", "charge_density", "cd_exists"),
        ("text", TEXT_VECTOR, ""),
    ):
        if key not in arrays:
            continue
        shapes = {k: arrays[k].shape for k in (key, flags) if k in arrays}
        if any(len(shape) < 1 or shape[0] != len(ids) for shape in shapes.values()) or (flags and flags not in arrays):
            raise DataError(f"'{key}' and '{flags}' do not have a row for each id", where=path, why=str(shapes))
        known = [None] * len(ids) if not flags else [_flag(flag, path) for flag in arrays[flags].tolist()]
        modalities[name] = Modality(exists=dict(zip(rows, known, strict=True)), load=_row(arrays[key], rows))
    return Opened(where=path, version=version, ids=frozenset(rows), modalities=modalities, label_tables={})


def _row(array: np.ndarray, rows: Mapping[str, int]) -> Callable[[str], np.ndarray]:
    return lambda id: array[rows[id]]


def _dos(array: np.ndarray, where: str) -> RawDos:
    """Return the density of states of a (2, n) array: energies from the Fermi energy, and one spin channel."""
    if array.ndim != 2 or array.shape[0] != 2:
        raise DataError(f"the density of states has shape {array.shape}, not (2, n)", where=where)
    return RawDos(energy_ev=array[0], states_per_ev=array[1], absolute=False)


def _density(array: np.ndarray, where: str) -> np.ndarray:
    """Return a (n, n, n) or (1, n, n, n) array as (n, n, n)."""
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise DataError(f"the charge density has shape {array.shape}, not (n, n, n)", where=where)
    return array
