"""Calculations by VASP: folders of its output files, or loose files named after their material."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.formats.chgcar import MAX_POINTS, read_chgcar
from shards.formats.files import files_below, read_text, refusal, stamp
from shards.formats.packed import codec
from shards.formats.structure import MAX_ATOMS, MAX_BYTES, parse_structure
from shards.formats.vasprun import Vasprun, read_vasprun, refuse_negative
from shards.sources.base import SOURCES, Item, RawDos, Record, Source
from shards.sources.pymatgen_json import number_array, parse_dos
from shards.sources.structures import structure_record

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_JSON_BYTES = 256_000_000
PLAIN_KINDS = ("CHGCAR", "CONTCAR", "POSCAR")
READ = "CHGCAR, vasprun.xml, CONTCAR, POSCAR and dos.json"
DOS_STEMS = {"", "dos", "complete_dos"}
LABELS = Literal["band_gap_ev", "energy_ev_per_atom", "is_metal"]


@SOURCES.register("vasp")
class VaspSource(Source):
    """Folders of CHGCAR, vasprun.xml, CONTCAR, POSCAR and pymatgen's ``CompleteDos`` JSON.

    Any of the files may be packed (``.gz``, ``.bz2``, ``.xz``). Each folder below ``path`` that holds
    some is one calculation, and its path from there is the id. Files that lie in ``path`` itself are
    loose: they are grouped by what is left of their name without the packing and the words that say its
    kind, and that is the id (``CHGCAR.mp-1.gz``, ``vasprun.mp-1.xml``, ``mp-1.POSCAR`` and ``mp-1.json``
    are four files of ``mp-1``). Loose files with no name left are the folder's own calculation. JSON
    counts in a calculation's folder where it is called ``dos`` or ``complete_dos``.

    A record has what its files have. The structure is that of CONTCAR, else of vasprun.xml, of the
    CHGCAR, the JSON and last of POSCAR, which in a relaxation is where it began. Files of one record
    that disagree on the atoms quarantine it.

    Attributes
    ----------
    path : Path
        The folder.
    parts : tuple of str
        What records have of all this; files that are not needed for it are left alone.
    zero : str
        What becomes 0 eV in the density of states. ``fermi``: the Fermi energy of the file, which for an
        insulator may stand anywhere in its gap. ``band_edge``: the highest occupied level where there
        is a gap, as in the embedded set and the Materials Project source.
    labels : tuple of str
        Labels from vasprun.xml: ``band_gap_ev`` (from the eigenvalues on the file's k-points),
        ``energy_ev_per_atom`` (of the last step, smearing extrapolated away) and ``is_metal`` (0 or 1).
    max_grid_points, max_atoms : int
        Larger grids of charge densities, and larger structures, are refused.
    """

    kind: Literal["vasp"] = "vasp"
    path: Path
    parts: tuple[Literal["structure", "charge_density", "dos"], ...] = ("structure", "charge_density", "dos")
    zero: Literal["fermi", "band_edge"] = "fermi"
    labels: tuple[LABELS, ...] = ()
    max_grid_points: int = Field(MAX_POINTS, gt=0)
    max_atoms: int = Field(MAX_ATOMS, gt=0)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that records may have."""
        return tuple(self.labels)

    def items(self) -> Iterable[Item]:
        """List the calculations, sorted by id."""
        if not self.path.is_dir():
            raise DataError("there is no such folder", where=self.path, do="check the path")
        groups: dict[str, list[str]] = {}
        for name in files_below(self.path):
            inside, _, bare = name.rpartition("/")
            known = classify(bare)
            if known is None or (inside and known[0] == "dos" and known[1] not in DOS_STEMS):
                continue
            groups.setdefault(inside or known[1] or self.path.resolve().name, []).append(name)
        if not groups:
            raise DataError(
                "the folder holds no output of VASP", where=self.path, do=f"check the path: {READ} are read"
            )
        for id, names in groups.items():
            if len({Path(name).parent for name in names}) > 1:
                raise DataError(f"'{id}' is the id of loose files and of a folder", where=self.path, do="rename one")
        return [
            Item(id=id, ref=names, stamp=" ".join(stamp(self.path, name) for name in names))
            for id, names in sorted(groups.items())
        ]

    def read(self, item: Item) -> Record:
        """Read one calculation."""
        files = self._files(item)
        run = self._vasprun(files)
        structures: dict[str, Structure | None] = {}
        density = None
        for kind in ("CONTCAR", "POSCAR"):
            if kind in files and "structure" in self.parts:
                text = read_text(files[kind], MAX_BYTES)
                structures[kind] = parse_structure(_commented(text), max_atoms=self.max_atoms, where=str(files[kind]))
        if run is not None:
            structures["vasprun"] = run.structure
        if "CHGCAR" in files and self._wants("charge_density", structures):
            structures["CHGCAR"], density = read_chgcar(
                files["CHGCAR"], max_points=self.max_grid_points, max_atoms=self.max_atoms
            )
        dos = self._counted(run) if run is not None else None
        if dos is None and "dos" in files and self._wants("dos", structures):
            dos, structures["dos"] = read_complete_dos(files["dos"], zero=self.zero, max_atoms=self.max_atoms)
        record = Record(id=item.id)
        structure = _agreed(structures, item.id)
        if structure is not None:
            record = structure_record(structure, item.id)
        return dataclasses.replace(
            record,
            structure=record.structure if "structure" in self.parts else None,
            dos=dos if "dos" in self.parts else None,
            charge_density=density if "charge_density" in self.parts else None,
            labels=self._labels(run),
        )

    def _files(self, item: Item) -> dict[str, Path]:
        """Return the file of each kind: the one with the bare name where a folder has several."""
        found: dict[str, dict[str, Path]] = {}
        for name in item.ref:
            known = classify(Path(name).name)
            if known is not None:
                found.setdefault(known[0], {})[Path(name).name] = self.path / name
        files = {}
        for kind, paths in found.items():
            bare = [path for name, path in paths.items() if not classify(name)[1]]  # type: ignore[index]
            chosen = bare if len(bare) == 1 else list(paths.values())
            if len(chosen) > 1:
                raise DataError(
                    f"there are {len(chosen)} files of one kind: {', '.join(sorted(paths))}",
                    where=self.path / Path(item.ref[0]).parent,
                    do="keep the one that counts, or give each its own folder",
                )
            files[kind] = chosen[0]
            why = refusal(files[kind], self.path)
            if why:
                raise DataError("the file is not read", where=files[kind], why=why, do="put a copy in its place")
        return files

    def _wants(self, part: str, structures: Mapping[str, Structure | None]) -> bool:
        """Tell whether a file is read: for its own part, or for a structure that no other file has."""
        return part in self.parts or ("structure" in self.parts and not any(structures.values()))

    def _vasprun(self, files: Mapping[str, Path]) -> Vasprun | None:
        """Read vasprun.xml where anything is wanted of it."""
        if "vasprun" not in files or not (self.labels or {"structure", "dos"} & set(self.parts)):
            return None
        return read_vasprun(files["vasprun"], max_atoms=self.max_atoms)

    def _counted(self, run: Vasprun) -> RawDos | None:
        """Return the density of states with its zero."""
        if run.dos is None or self.zero == "fermi" or not run.band_gap_ev or run.vbm_ev is None:
            return run.dos
        return dataclasses.replace(run.dos, zero_ev=run.vbm_ev)

    def _labels(self, run: Vasprun | None) -> dict[str, float]:
        if run is None:
            return {}
        gap, energy = run.band_gap_ev, run.energy_ev
        known = {
            "band_gap_ev": gap,
            "energy_ev_per_atom": energy / len(run.structure) if energy is not None and run.structure else None,
            "is_metal": None if gap is None else float(gap == 0.0),
        }
        return {name: value for name, value in known.items() if name in self.labels and value is not None}


def classify(name: str) -> tuple[str, str] | None:
    """Return the kind of a file and what its name says besides, or None for a file of no known kind.

    Returns
    -------
    kind : str
        ``CHGCAR``, ``CONTCAR``, ``POSCAR``, ``vasprun`` or ``dos``.
    stem : str
        The name without packing and kind; empty for VASP's own names.
    """
    words = name.removesuffix(codec(name)).split(".")
    if words[-1] == "json":
        return "dos", ".".join(words[:-1])
    if "vasprun" in words and "xml" in words:
        words.remove("vasprun")
        words.remove("xml")
        return "vasprun", ".".join(words)
    kind = next((kind for kind in PLAIN_KINDS if kind in words), None)
    if kind is None:
        return None
    words.remove(kind)
    if words and words[-1] == "vasp":
        words = words[:-1]
    return kind, ".".join(words)


def read_complete_dos(
    path: Path, *, zero: str = "fermi", max_atoms: int = MAX_ATOMS
) -> tuple[RawDos, Structure | None]:
    """Read pymatgen's ``CompleteDos`` of a calculation by VASP, field by field.

    Parameters
    ----------
    path : Path
        The JSON file, which may be packed.
    zero : str
        ``fermi`` or ``band_edge``, as in `VaspSource`; the gap is that of the density of states.
    max_atoms : int
        Larger structures are refused.

    Returns
    -------
    dos : RawDos
        Both spins; each number stands in the middle of the step that it belongs to (see
        `shards.sources.vasprun`).
    structure : Structure or None
        As in the file.
    """
    try:
        table = json.loads(read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the file is no valid JSON", where=path, why=repr(error)[:200]) from None
    dos = complete_dos(table, zero=zero, atoms=None, where=path)
    return dos, _structure_of(table, path, max_atoms)


def complete_dos(table: Any, *, zero: str, atoms: int | None, where: object) -> RawDos:
    """Return the density of states of a ``Dos`` or ``CompleteDos`` dictionary of a calculation by VASP.

    Parameters
    ----------
    table : mapping
        As in `shards.sources.pymatgen_json.parse_dos`.
    zero : str
        ``fermi`` or ``band_edge``, as in `VaspSource`; the gap is that of the density of states.
    atoms : int, optional
        Atoms of the cell, where the table has no structure.
    where : object
        Named in errors.
    """
    dos = parse_dos(table, atoms=atoms, where=where)
    refuse_negative([number_array(channel) for channel in table["densities"].values()], where)
    fermi = float(table["efermi"])
    half = float(np.median(np.diff(dos.energy_ev))) / 2 if len(dos.energy_ev) > 1 else 0.0
    # without a gap the zero is the Fermi energy already, which belongs to no step
    edge = fermi if dos.zero_ev == fermi else dos.zero_ev - half
    return dataclasses.replace(dos, energy_ev=dos.energy_ev - half, zero_ev=fermi if zero == "fermi" else edge)


def _structure_of(table: Mapping[str, Any], path: Path, max_atoms: int) -> Structure | None:
    if not table.get("structure"):
        return None
    return parse_structure(json.dumps(table["structure"]), max_atoms=max_atoms, where=str(path))


def _commented(text: str) -> str:
    """Return a POSCAR with a comment that cannot be taken for another format."""
    return "\n".join(["structure", *text.splitlines()[1:]]) + "\n"


def _agreed(structures: Mapping[str, Structure | None], id: str) -> Structure | None:
    """Return the structure that counts, or raise `DataError` where two differ in their atoms."""
    found = {kind: structure for kind, structure in structures.items() if structure is not None}
    formulas = {kind: structure.composition.formula for kind, structure in found.items()}
    if len(set(formulas.values())) > 1:
        raise DataError(
            f"the files hold different cells: {', '.join(f'{kind} {text}' for kind, text in formulas.items())}",
            where=id,
            why="files of several calculations lie together",
        )
    order = ("CONTCAR", "vasprun", "CHGCAR", "dos", "POSCAR")
    return next((found[kind] for kind in order if kind in found), None)
