"""Tables of a user: labels, process columns, structures, texts, vectors and pictures by rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from shards.errors import ConfigError, DataError, suggest
from shards.formats.files import inside, stamp
from shards.formats.structure import MAX_ATOMS, parse_structure, read_structure
from shards.molecules import molecule_tags
from shards.sources.base import SOURCES, Item, Record, Source
from shards.sources.images import ImageFiles
from shards.sources.rows import MAX_CELL, Cells, Rows, is_missing, number, open_rows, text
from shards.sources.spectra import read_spectrum
from shards.sources.structures import structure_record
from shards.units import Scale, header_unit, parse_unit, scale, suffix_unit

T = TypeVar("T")
TRUTH = {"true": 1.0, "false": 0.0}
# Without a unit, a column is numeric from this share of numbers on, and categorical up to the rest of it.
CLEAR = 0.9
MAX_CATEGORIES = 1000


@SOURCES.register("table")
class TableSource(Source):
    """A CSV, TSV (plain, ``.gz``, ``.bz2``, ``.xz``) or Parquet file with a record a row.

    A cell is missing where it is empty, NaN, ``-``, ``NA``, ``N/A``, ``None``, ``null``; what it gives is absent then.
    Files that a table names are looked for in the table's folder.

    Attributes
    ----------
    path : Path
        The table.
    id : str, optional
        Column of the ids; a row without one is called ``row-N``, counted from 1 below the header. Ids are unique, but
        where pictures are listed by a column a sample may have a row for each of them.
    structure, structure_path : str, optional
        Column with the text of a CIF, a POSCAR or pymatgen JSON; or with the names of such files.
    smiles, text, group : str, optional
        Columns of molecules, of descriptions, and of what records of one physical sample share.
    labels, columns : dict of str to str
        Name to column: what is to be predicted, and what is known of the process. A name ends with its unit
        (``band_gap_ev``, ``voltage_kv``); a header that states another one is an error.
    units : dict of str to str
        Name to the unit of its column, where the header states none or the numbers are to be converted into the
        name's unit.
    categorical, numeric : tuple of str
        Names of ``columns`` that hold categories, or numbers. By default a column is numeric where its name has a unit
        or nine tenths of its cells are numbers, and categorical where at most one tenth are; others must be declared.
    tags : dict of str to str
        Name to column of descriptive strings; formula and chemical system of a structure are added.
    arrays : dict of str to (str or tuple of str)
        Name to the numeric columns of a vector (names, or one pattern such as ``emb_*``), or to one column that holds
        lists (in Parquet, or as JSON text).
    spectra : dict of str to str
        Name to the column of names of text files with two columns.
    images : ImageFiles, optional
        Where the pictures lie.
    delimiter, decimal : str
        What separates the cells of a text file (by its name: comma or tab), and the decimal sign.
    max_atoms : int
        Larger structures are refused.
    """

    kind: Literal["table"] = "table"
    path: Path
    id: str | None = None
    structure: str | None = None
    structure_path: str | None = None
    smiles: str | None = None
    text: str | None = None
    group: str | None = None
    labels: dict[str, str] = {}
    columns: dict[str, str] = {}
    units: dict[str, str] = {}
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    arrays: dict[str, str | tuple[str, ...]] = {}
    spectra: dict[str, str] = {}
    images: ImageFiles | None = None
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    max_atoms: int = Field(MAX_ATOMS, gt=0)

    @model_validator(mode="after")
    def _roles(self) -> TableSource:
        """Refuse roles that exclude each other, names that are not there, and labels that are also inputs."""
        if self.structure and self.structure_path:
            raise ValueError("give 'structure' or 'structure_path', not both")
        for first, second in (("labels", "columns"), ("arrays", "spectra")):
            twice = sorted(set(getattr(self, first)) & set(getattr(self, second)))
            if twice:
                raise ValueError(f"{twice} are in {first} and in {second}")
        inputs = {*self.columns.values(), *self.tags.values(), self.text, self.smiles, self.structure}
        leaking = inputs.intersection(self.labels.values())
        if leaking:
            listed = sorted(map(str, leaking))
            raise ValueError(f"the columns {listed} are labels and inputs too: what is predicted would be known")
        for option, names in (("categorical", self.columns), ("numeric", self.columns)):
            _declared(option, getattr(self, option), names)
        _declared("units", self.units, {**self.labels, **self.columns})
        if set(self.categorical) & set(self.numeric):
            raise ValueError(f"{sorted(set(self.categorical) & set(self.numeric))} are categorical and numeric")
        return self

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that records may have."""
        return tuple(self.labels)

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names that a text template can take from a record, beside the facts of its structure."""
        return (*self.tags, *self.columns)

    def process_columns(self) -> dict[str, Any]:
        """Return the parameters of a ``table`` feature step that holds all process columns.

        Returns
        -------
        dict
            ``columns``: names of the numeric ones, in the recipe's order; ``categorical``: name to the sorted
            categories that the whole column has. No statistic of the numbers is among them.
        """
        plan = self._plan()
        categorical = {}
        for name, column in plan.categories.items():
            known = {cell for cell in plan.rows.column(column) if not is_missing(cell)}
            categorical[name] = sorted({str(cell).strip() for cell in known})
            if len(categorical[name]) > MAX_CATEGORIES:
                raise ConfigError(
                    f"column '{column}' has {len(categorical[name])} categories, more than {MAX_CATEGORIES}",
                    where=self.path,
                    do="leave it out of columns, or name its categories in the feature step",
                )
        return {"columns": list(plan.numbers), "categorical": categorical}

    def items(self) -> Iterable[Item]:
        """List the rows, or the samples that rows share, in the table's order.

        Raises
        ------
        DataError
            Where the file cannot be read, ids occur twice, or a picture belongs to several samples.
        ConfigError
            Where the recipe names a column that is not there, or units contradict each other.
        """
        plan = self._plan()
        rows_of: dict[str, list[int]] = {}
        ids = plan.rows.column(self.id) if self.id else [None] * plan.rows.count
        for row, cell in enumerate(ids):
            rows_of.setdefault(text(cell, plan.rows.where(row, self.id)) or f"row-{row + 1}", []).append(row)
        if self.images is None or self.images.column is None:
            _refuse_duplicates(rows_of, self.path)
        stamps = plan.rows.stamps(plan.used)
        files = self._file_stamps(plan, rows_of)
        # which columns are numeric depends on all rows, and what a record becomes depends on that
        kinds = ",".join(plan.numbers)
        return [
            Item(id=id, ref=rows, stamp="|".join([kinds, *(stamps[row] for row in rows), *files.get(id, ())]))
            for id, rows in rows_of.items()
        ]

    def read(self, item: Item) -> Record:
        """Read one record."""
        plan = self._plan()
        cells = Cells(plan.rows, item.ref, plan.used)
        base = self._described(item.id, cells)
        columns = {name: self._number(cells, *of) for name, of in plan.numbers.items()}
        arrays = {name: self._vector(cells, of) for name, of in plan.arrays.items()}
        return Record(
            id=item.id,
            structure=base.structure,
            text=cells.text(self.text),
            smiles=base.smiles,
            images=self._pictures(item.id, cells),
            columns=_known({**columns, **{name: cells.text(of) for name, of in plan.categories.items()}}),
            arrays=_known({**arrays, **{name: self._spectrum(cells, of) for name, of in self.spectra.items()}}),
            labels=_known({name: self._number(cells, *of) for name, of in plan.labels.items()}),
            tags={**base.tags, **_known({name: cells.text(of) for name, of in self.tags.items()})},
            group=cells.text(self.group) or "",
        )

    def _plan(self) -> Plan:
        rows = open_rows(self.path, delimiter=self.delimiter)
        return _plan(self.model_dump_json(), rows)

    def _described(self, id: str, cells: Cells) -> Record:
        """Return a record of the sample's structure and molecule, and the tags that follow from them."""
        smiles = cells.text(self.smiles)
        tags = molecule_tags(smiles) if smiles else {}
        described, name = cells.text(self.structure), cells.text(self.structure_path)
        if described is not None and self.structure is not None:
            structure = parse_structure(described, max_atoms=self.max_atoms, where=cells.where(self.structure))
        elif name is not None:
            structure = read_structure(inside(self.path.parent, name), max_atoms=self.max_atoms)
        else:
            return Record(id=id, smiles=smiles, tags=tags)
        record = structure_record(structure, id)
        return replace(record, smiles=smiles, tags=tags | record.tags)

    def _number(self, cells: Cells, column: str, unit: Scale) -> float | None:
        cell = cells.cell(column)
        if cell is None:
            return None
        value = number(cell, self.decimal)
        if value is None:
            value = TRUTH.get(str(cell).strip().lower())
        if value is None:
            raise DataError(
                f"'{str(cell)[:60]}' is no finite number", where=cells.where(column), do="correct the cell, or empty it"
            )
        return unit(value)

    def _vector(self, cells: Cells, columns: tuple[str, ...]) -> np.ndarray | None:
        values = [cells.cell(column) for column in columns]
        if len(columns) == 1 and (isinstance(values[0], list) or str(values[0]).lstrip().startswith("[")):
            values = _list(values[0], cells.where(columns[0]))
        if all(is_missing(value) for value in values):
            return None
        numbers = [number(value, self.decimal) for value in values]
        if None in numbers:
            column = columns[numbers.index(None) if len(columns) > 1 else 0]
            raise DataError("the vector holds what is no finite number", where=cells.where(column))
        return np.array(numbers, dtype=np.float64)

    def _spectrum(self, cells: Cells, column: str) -> np.ndarray | None:
        name = cells.text(column)
        return None if name is None else read_spectrum(inside(self.path.parent, name))

    def _pictures(self, id: str, cells: Cells) -> tuple[np.ndarray, ...]:
        if self.images is None:
            return ()
        listed = cells.all(self.images.column) if self.images.column else ()
        return self.images.read(self.images.names(id, listed, self.path.parent), self.path.parent)

    def _file_stamps(self, plan: Plan, rows_of: Mapping[str, list[int]]) -> dict[str, list[str]]:
        """Return size and time of the files that each sample names; refuse a picture of unrelated samples."""
        stamps: dict[str, list[str]] = {id: [] for id in rows_of}
        for column in (self.structure_path, *self.spectra.values()):
            for id, names in _texts(plan.rows, column, rows_of).items():
                stamps[id] += [stamp(self.path.parent, name) for name in names]
        if self.images is None:
            return stamps
        listed, groups = (_texts(plan.rows, column, rows_of) for column in (self.images.column, self.group))
        owners: dict[str, str] = {}
        for id in rows_of:
            for name in self.images.names(id, listed.get(id, ()), self.path.parent):
                owner = owners.setdefault(name, id)
                if owner != id and (not groups.get(id) or set(groups[id]) != set(groups[owner])):
                    raise DataError(
                        f"the picture '{name}' belongs to '{owner}' and to '{id}'",
                        where=self.path,
                        do="correct the table or the pattern of images, or give both samples the same group",
                    )
                stamps[id].append(stamp(self.path.parent / self.images.folder, name))
        return stamps


def _texts(rows: Rows, column: str | None, rows_of: Mapping[str, list[int]]) -> dict[str, list[str]]:
    """Return the known cells of a column by sample; none without a column."""
    if column is None:
        return {}
    cells = rows.column(column)
    return {id: [str(cells[row]).strip() for row in own if not is_missing(cells[row])] for id, own in rows_of.items()}


def _declared(option: str, names: Iterable[str], known: Mapping[str, str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{option} names '{name}': {suggest(name, known)}")


def _known(values: Mapping[str, T | None]) -> dict[str, T]:
    return {name: value for name, value in values.items() if value is not None}


def _list(cell: Any, where: str) -> list[Any]:
    """Return the numbers of a cell that holds a list, as Parquet or as JSON text."""
    if isinstance(cell, list):
        return cell
    try:
        values = json.loads(cell) if len(cell) <= MAX_CELL else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not values:
        raise DataError("the cell is no list of numbers", where=where)
    return values


def _refuse_duplicates(rows_of: Mapping[str, list[int]], path: Path) -> None:
    twice = [(id, rows) for id, rows in rows_of.items() if len(rows) > 1]
    if twice:
        listed = "; ".join(f"'{id}' in rows {', '.join(str(row + 1) for row in rows[:5])}" for id, rows in twice[:10])
        raise DataError(
            f"{len(twice)} ids of the table occur more than once",
            where=path,
            why=listed + ("; ..." if len(twice) > 10 else ""),
            do="leave one row an id, or list the pictures of a sample by a column: images = { column = ... }",
        )


@dataclass(frozen=True)
class Plan:
    """Which columns of a table give what.

    Attributes
    ----------
    rows : Rows
        The table.
    labels, numbers : dict
        Name to column and scale.
    categories : dict of str to str
        Name to column.
    arrays : dict of str to tuple of str
        Name to columns.
    used : tuple of str
        All columns that records are made of.
    """

    rows: Rows
    labels: dict[str, tuple[str, Scale]]
    numbers: dict[str, tuple[str, Scale]]
    categories: dict[str, str]
    arrays: dict[str, tuple[str, ...]]
    used: tuple[str, ...]


@lru_cache(maxsize=4)
def _plan(config: str, rows: Rows) -> Plan:
    """Compare a recipe with a table; the same in every process, since it depends on these two alone."""
    source = TableSource.model_validate_json(config)
    arrays = {name: _vector_columns(name, columns, rows) for name, columns in source.arrays.items()}
    leaking = sorted({column for columns in arrays.values() for column in columns} & set(source.labels.values()))
    if leaking:
        raise ConfigError(f"the columns {leaking} are labels and part of a vector too", where=rows.path)
    single = (source.structure, source.structure_path, source.smiles, source.text, source.group)
    named = [*single, *source.labels.values(), *source.columns.values(), *source.tags.values()]
    named += [*source.spectra.values(), source.images.column if source.images else None]
    used = dict.fromkeys(column for column in [*named, *(c for group in arrays.values() for c in group)] if column)
    rows.check([*used, *([source.id] if source.id else [])])
    scales = {
        name: (column, scale(name, column, source.units.get(name), where=rows.path))
        for name, column in {**source.labels, **source.columns}.items()
    }
    numeric = {name for name in source.columns if _is_numeric(source, name, rows)}
    return Plan(
        rows=rows,
        labels={name: scales[name] for name in source.labels},
        numbers={name: scales[name] for name in source.columns if name in numeric},
        categories={name: column for name, column in source.columns.items() if name not in numeric},
        arrays=arrays,
        used=tuple(used),
    )


def _vector_columns(name: str, columns: str | tuple[str, ...], rows: Rows) -> tuple[str, ...]:
    if not isinstance(columns, str) or columns in rows.header:
        return (columns,) if isinstance(columns, str) else columns
    found = tuple(column for column in rows.header if fnmatchcase(column, columns))
    if not found:
        raise ConfigError(
            f"no column of the table matches '{columns}'",
            where=rows.path,
            why=f"arrays.{name}: {suggest(columns, rows.header)}",
        )
    return found


def _is_numeric(source: TableSource, name: str, rows: Rows) -> bool:
    """Tell whether a process column holds numbers, by its declaration or by all its cells."""
    if name in source.numeric or name in source.categorical:
        return name in source.numeric
    column = source.columns[name]
    cells = [cell for cell in rows.column(column) if not is_missing(cell)]
    share = sum(number(cell, source.decimal) is not None for cell in cells) / len(cells) if cells else 1.0
    has_unit = bool(suffix_unit(name) or name in source.units or parse_unit(header_unit(column)))
    if share >= (0.5 if has_unit else CLEAR):
        return True
    if has_unit or share > 1.0 - CLEAR:
        raise ConfigError(
            f"column '{column}' holds {share:.0%} numbers and otherwise text",
            where=rows.path,
            do=f'declare what \'{name}\' is: categorical = ["{name}"], or numeric = ["{name}"]',
        )
    return False
