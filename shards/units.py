"""Units in the headers of tables and in the names of columns, and the conversions between them.

A header writes a unit with its symbol (``Voltage (kV)``, ``Energy [eV/atom]``, ``shift / cm^-1``), a name writes it as
a suffix (``voltage_kv``, ``energy_ev_per_atom``, ``shift_per_cm``). The table is small and explicit: a unit that it
lacks is unknown, never guessed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass

from shards.errors import ConfigError

Dimension = tuple[tuple[str, int], ...]

# What is measured -> symbol -> how many of the line's first unit it is (CODATA 2018).
TABLE: dict[str, dict[str, float]] = {
    "energy": {"eV": 1, "meV": 1e-3, "Ha": 27.211386245988, "Ry": 13.605693122994, "J": 6.241509074460763e18,
               "kJ": 6.241509074460763e21, "cal": 2.6114473967543830e19, "kcal": 2.6114473967543830e22},
    "length": {"A": 1, "pm": 1e-2, "nm": 10, "um": 1e4, "mm": 1e7, "cm": 1e8, "m": 1e10, "bohr": 0.529177210903},
    "pressure": {"GPa": 1, "MPa": 1e-3, "kPa": 1e-6, "Pa": 1e-9, "kbar": 0.1, "bar": 1e-4, "atm": 1.01325e-4,
                 "mbar": 1e-7, "Torr": 1.01325e-4 / 760},
    "temperature": {"K": 1, "C": 1},
    "time": {"s": 1, "fs": 1e-15, "ps": 1e-12, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "min": 60, "h": 3600, "day": 86400},
    "voltage": {"V": 1, "kV": 1e3, "mV": 1e-3},
    "current": {"A": 1, "mA": 1e-3, "uA": 1e-6},
    "charge": {"e": 1, "Ah": 2.2469432668058744e22, "mAh": 2.2469432668058744e19},
    "mass": {"g": 1, "kg": 1e3, "mg": 1e-3, "ug": 1e-6},
    "amount": {"mol": 1, "mmol": 1e-3},
    "volume": {"mL": 1e24, "L": 1e27, "uL": 1e21},
    "concentration": {"M": 1, "mM": 1e-3},
    "fraction": {"fraction": 1, "%": 1e-2, "ppm": 1e-6},
    "mass fraction": {"mass fraction": 1, "wt%": 1e-2},
    "atomic fraction": {"atomic fraction": 1, "at%": 1e-2},
    "mole fraction": {"mole fraction": 1, "mol%": 1e-2},
    "volume fraction": {"volume fraction": 1, "vol%": 1e-2},
    "angle": {"deg": 1, "rad": 180 / math.pi},
    "frequency": {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9, "THz": 1e12, "rpm": 1 / 60},
    "force": {"N": 1, "mN": 1e-3, "uN": 1e-6},
    "power": {"W": 1, "mW": 1e-3, "kW": 1e3},
    "conductance": {"S": 1, "mS": 1e-3, "uS": 1e-6},
    "resistance": {"Ohm": 1, "kOhm": 1e3},
    "resistivity": {"Ohm cm": 1e8, "Ohm m": 1e10},
    "magnetic field": {"T": 1, "mT": 1e-3},
    "magnetic moment": {"uB": 1},
    "viscosity": {"mPas": 1, "Pas": 1e3, "cP": 1},
    "atoms": {"atom": 1},
    "cells": {"cell": 1},
    "formula units": {"fu": 1},
}  # fmt: skip
# What a line measures where products of other lines measure it too.
COMPOSED: dict[str, Dimension] = {"volume": (("length", 3),), "resistivity": (("length", 1), ("resistance", 1))}
KELVIN_AT_ZERO = {"K": 0.0, "C": 273.15}
SUFFIXES = {"%": "pct", "M": "molar", "mM": "mmolar"}
ALIASES = {
    "degC": "C", "oC": "C", "hartree": "Ha", "hour": "h", "hours": "h", "hr": "h", "sec": "s", "minutes": "min",
    "days": "day", "mass%": "wt%", "w%": "wt%", "wt.%": "wt%",
    "at.%": "at%", "mol.%": "mol%", "vol.%": "vol%", "degrees": "deg", "atoms": "atom", "f.u.": "fu", "ml": "mL",
    "ul": "uL", "l": "L", "Angstrom": "A", "angstrom": "A", "ang": "A", "mPa s": "mPas", "mPa*s": "mPas",
    "Pa s": "Pas", "Pa*s": "Pas", "Ohm*cm": "Ohm cm", "Ohm*m": "Ohm m",
    "%RH": "%", "% RH": "%", "RH%": "%", "ohm": "Ohm",
}  # fmt: skip
WRITTEN = str.maketrans({"µ": "u", "μ": "u", "Å": "A", "\u212b": "A", "Ω": "Ohm", "℃": "C", "·": "*", "⋅": "*",
                         "−": "-", "⁻": "-", "¹": "1", "²": "2", "³": "3", "⁴": "4"})  # fmt: skip
FACTOR = re.compile(r"(.*?[^\d^+-])(?:\^?([+-]?\d+))?")
BRACKETS = re.compile(r".*\S\s*(?:\(([^()]*(?:\([^()]*\)[^()]*)*)\)|\[([^\[\]]+)\])\s*")
SLASH = re.compile(r".*\S\s+/\s+(\S.*)")


@dataclass(frozen=True)
class Unit:
    """A unit, as it was written.

    Attributes
    ----------
    symbol : str
        As in the table, or composed of such.
    dimension : tuple of (str, int)
        What it measures, with powers.
    factor, offset : float
        ``value * factor + offset`` is the value in the first units of the table.
    """

    symbol: str
    dimension: Dimension
    factor: float
    offset: float = 0.0


def convert(value: float, source: Unit, target: Unit) -> float:
    """Return ``value``, given in ``source``, in ``target``, which measures the same."""
    assert source.dimension == target.dimension, (source, target)
    return (value * source.factor + source.offset - target.offset) / target.factor


def _by_symbol() -> dict[str, list[Unit]]:
    units: dict[str, list[Unit]] = {}
    for measured, line in TABLE.items():
        dimension = COMPOSED.get(measured, ((measured, 1),))
        for symbol, factor in line.items():
            offset = KELVIN_AT_ZERO.get(symbol, 0.0) if measured == "temperature" else 0.0
            units.setdefault(symbol, []).append(Unit(symbol, dimension, factor, offset))
    return units


def _by_suffix() -> dict[str, list[Unit]]:
    units: dict[str, list[Unit]] = {}
    for symbol, found in _by_symbol().items():
        suffix = SUFFIXES.get(symbol, symbol.lower().replace("%", "_pct").replace(" ", "_"))
        units.setdefault(suffix, []).extend(found)
    return units


SYMBOLS, NAMES = _by_symbol(), _by_suffix()


def parse_unit(text: str) -> list[Unit]:
    """Return the units that a symbol can mean (``A`` is Angstrom or ampere), none for an unknown one.

    Parameters
    ----------
    text : str
        ``kV``, ``eV/atom``, ``g/cm^3``, ``cm-1``, ``W/(m K)``; Greek letters, degree signs and superscripts are read.
    """
    text = text.translate(WRITTEN).replace("°C", "C").replace("°", "deg").strip()
    whole = SYMBOLS.get(ALIASES.get(text, text))
    if whole:
        return whole
    above, *below = re.split(r"/(?![^(]*\))", text)
    factors = [(part, 1) for part in _parts(above) if part != "1"]
    factors += [(part, -1) for group in below for part in _parts(group.strip().removeprefix("(").removesuffix(")"))]
    return _product(factors, SYMBOLS)


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[\s*]+", text.strip()) if part]


def suffix_unit(name: str) -> list[Unit]:
    """Return the units that the suffix of a name can mean, none where it has no unit.

    Parameters
    ----------
    name : str
        ``band_gap_ev``, ``energy_ev_per_atom``, ``density_g_per_cm3``, ``humidity_pct``. The longest suffix that is a
        unit counts; a name that is nothing but a unit (``n``) has none.
    """
    words = name.lower().split("_")
    for start in range(1, len(words)):
        found = _suffix(words[start:])
        if found:
            return found
    return []


def _suffix(words: list[str]) -> list[Unit]:
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "per":
            groups.append([])
        else:
            groups[-1].append(word)
    above, *below = groups
    if not all(below):
        return []
    factors = [("_".join(above), 1)] if above else []
    return _product([*factors, *((word, -1) for group in below for word in group)], NAMES)


def _product(factors: list[tuple[str, int]], known: dict[str, list[Unit]]) -> list[Unit]:
    """Multiply units that are written with powers; none where one of them is unknown."""
    options, powers = [], []
    for text, sign in factors:
        match = FACTOR.fullmatch(text)
        if match is None:
            return []
        symbol = match[1]
        options.append(known.get(ALIASES.get(symbol, symbol) if known is SYMBOLS else symbol, []))
        powers.append(sign * int(match[2] or 1))
    if not factors or any(abs(power) > 9 for power in powers):
        return []
    return [_compose(choice, powers) for choice in itertools.product(*options)]


def _compose(units: tuple[Unit, ...], powers: list[int]) -> Unit:
    if powers == [1]:
        return units[0]
    dimension: Counter[str] = Counter()
    factor = 1.0
    for unit, power in zip(units, powers, strict=True):
        factor *= unit.factor**power
        for measured, own in unit.dimension:
            dimension[measured] += own * power
    symbol = " ".join(
        f"{unit.symbol}^{power}" if power != 1 else unit.symbol for unit, power in zip(units, powers, strict=True)
    )
    return Unit(symbol, tuple(sorted((key, power) for key, power in dimension.items() if power)), factor)


def header_unit(header: str) -> str:
    """Return the text that a header gives as its unit (``Voltage (kV)`` -> ``kV``), empty without one.

    Brackets at the end hold a unit, whether known or not; what follows `` / `` is one only if it is known.
    """
    match = BRACKETS.fullmatch(header)
    if match:
        return (match[1] or match[2] or "").strip()
    match = SLASH.fullmatch(header)
    return match[1].strip() if match and parse_unit(match[1]) else ""


@dataclass(frozen=True)
class Scale:
    """How the numbers of a column become those of a target: unchanged, or from one unit to another."""

    source: Unit | None = None
    target: Unit | None = None

    def __call__(self, value: float) -> float:
        """Return the value in the target's unit."""
        return value if self.source is None or self.target is None else convert(value, self.source, self.target)


def scale(name: str, header: str, stated: str | None = None, *, where: object = None) -> Scale:
    """Compare the unit of a column with that of the name which its numbers get.

    Parameters
    ----------
    name : str
        Target name; its suffix is its unit.
    header : str
        The column's header, with or without a unit.
    stated : str, optional
        The column's unit as the recipe states it, which is also the permission to convert it.
    where : object
        For messages.

    Raises
    ------
    ConfigError
        Where the units contradict each other, a stated unit is unknown, or a header's unit is missing in the name.
    """
    target, written = suffix_unit(name), header_unit(header)
    if stated is not None:
        return _stated(name, header, stated, target, where)
    if not written:
        # the lone letters a, k, c, h, m, s at the end of a header are more often part of its name
        own = suffix_unit(header) if len(header.rpartition("_")[2]) > 1 or _same_kind(header, target) else []
        if own and target and not _agree(own, target):
            raise _contradiction(name, header, own[0].symbol, target[0].symbol, where)
        return Scale()
    found = parse_unit(written)
    if not target:
        if found:
            raise ConfigError(
                f"column '{header}' has a unit and its name '{name}' has none",
                where=where,
                do=f"name it with its unit, such as '{name}_{_as_suffix(found[0])}'",
            )
        return Scale()
    if not found:
        raise ConfigError(
            f"column '{header}' is to be '{name}', and '{written}' is no unit that is known",
            where=where,
            do=f'state the column\'s unit: units = {{ {name} = "{target[0].symbol}" }}',
        )
    if not _agree(found, target):
        raise _contradiction(name, header, written, target[0].symbol, where)
    return Scale()


def _stated(name: str, header: str, stated: str, target: list[Unit], where: object) -> Scale:
    source = parse_unit(stated)
    if not source:
        raise ConfigError(f"'{stated}' is no unit that is known", where=where, why=f"units.{name}")
    in_header = parse_unit(header_unit(header))
    if in_header and not _agree(in_header, source):
        raise ConfigError(f"column '{header}' is said to be in {stated} by units.{name}", where=where)
    pairs = [(s, t) for s in source for t in target if s.dimension == t.dimension]
    if not pairs:
        wanted = f"is no {target[0].symbol}" if target else "is not in the name"
        raise ConfigError(
            f"units.{name}: '{stated}' {wanted}",
            where=where,
            do=f"give the name the unit of its numbers, such as '{name}_{_as_suffix(source[0])}'",
        )
    return Scale() if _agree(source, target) else Scale(*pairs[0])


def _agree(first: list[Unit], second: list[Unit]) -> bool:
    """Tell whether one of the first can be one of the second."""
    return any(
        a.dimension == b.dimension and a.offset == b.offset and math.isclose(a.factor, b.factor, rel_tol=1e-9)
        for a in first
        for b in second
    )


def _same_kind(header: str, target: list[Unit]) -> bool:
    return bool({unit.dimension for unit in suffix_unit(header)} & {unit.dimension for unit in target})


def _contradiction(name: str, header: str, found: str, wanted: str, where: object) -> ConfigError:
    return ConfigError(
        f"column '{header}' is in {found}, and its name '{name}' says {wanted}",
        where=where,
        do=f'correct the name, or state the column\'s unit to have it converted: units = {{ {name} = "{found}" }}',
    )


def _as_suffix(unit: Unit) -> str:
    """Write a unit as the suffix of a name."""
    above = [part for part in unit.symbol.split(" ") if "^-" not in part]
    below = [part.replace("^-1", "").replace("^-", "") for part in unit.symbol.split(" ") if "^-" in part]
    words = ["_".join(above), *(["per", *below] if below else [])]
    return "_".join(SUFFIXES.get(w, w.lower().replace("%", "_pct").replace("^", "")) for w in words if w)
