"""Units of headers and names: what agrees, what is converted, what is refused."""

from __future__ import annotations

import math

import pytest

from shards.errors import ConfigError
from shards.units import SYMBOLS, Unit, header_unit, parse_unit, scale, suffix_unit


@pytest.mark.parametrize(
    ("header", "unit"),
    [
        ("Voltage (kV)", "kV"),
        ("T [°C]", "°C"),
        ("Conductivity (W/(m K))", "W/(m K)"),
        ("Energy / eV", "eV"),
        ("Na / K", "K"),
        ("solvent / polymer", ""),
        ("heat", ""),
        ("(kV)", ""),
    ],
)
def test_headers_give_their_unit(header: str, unit: str) -> None:
    assert header_unit(header) == unit


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("voltage_kv", "Voltage (kV)"),
        ("band_gap_ev", "gap"),
        ("gap_ev_per_atom", "E (eV/atom)"),
        ("density_g_per_cm3", "ρ (g/cm³)"),
        ("density_g_per_cm3", "ρ (g/mL)"),
        ("resistivity_ohm_cm", "ρ (Ω·cm)"),
        ("nickel_at_pct", "Ni (at.%)"),
        ("shift_per_cm", "shift [cm^-1]"),
        ("k_w_per_m_k", "k (W m^-1 K^-1)"),
        ("lattice_a_nm", "a (nm)"),
        ("spacing_a", "d (Å)"),
        ("conductivity_s_per_cm", "σ (S/cm)"),
        ("polymer_wt_pct", "PVA (wt%)"),
        ("humidity_pct", "RH (%)"),
        ("viscosity_mpas", "η (mPa·s)"),
        ("alpha_fraction", "phase_a"),
        ("n", "n"),
        ("batch", "Batch (first half)"),
    ],
)
def test_units_that_agree_leave_numbers_alone(name: str, header: str) -> None:
    assert scale(name, header)(12.5) == 12.5


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("voltage_v", "Voltage (kV)"),
        ("temperature_k", "T (°C)"),
        ("temperature_c", "temperature_k"),
        ("energy_ev_per_atom", "energy_ev_per_cell"),
        ("energy_ev", "E (eV/atom)"),
        ("polymer_fraction", "PVA (wt%)"),
        ("spacing_a", "d (nm)"),
    ],
)
def test_units_that_contradict_each_other_are_refused(name: str, header: str) -> None:
    with pytest.raises(ConfigError, match=f"its name '{name}' says") as caught:
        scale(name, header)
    assert f"units = {{ {name} = " in str(caught.value)


def test_a_unit_must_be_in_the_name_and_known() -> None:
    with pytest.raises(ConfigError, match="such as 'voltage_kv'"):
        scale("voltage", "Voltage (kV)")
    with pytest.raises(ConfigError, match="'set' is no unit that is known"):
        scale("voltage_kv", "Voltage (set)")
    with pytest.raises(ConfigError, match="'mPa' is no unit"):
        scale("modulus_mpa", "E (mPa)")
    assert scale("voltage_kv", "Voltage (set)", "kV")(3.0) == 3.0


@pytest.mark.parametrize(
    ("name", "stated", "value", "expected"),
    [
        ("gap_ev", "meV", 250.0, 0.25),
        ("gap_ev", "Ha", 1.0, 27.211386),
        ("gap_ev", "Ry", 2.0, 27.211386),
        ("voltage_v", "kV", 1.5, 1500.0),
        ("temperature_k", "°C", 25.0, 298.15),
        ("temperature_c", "K", 0.0, -273.15),
        ("pressure_gpa", "kbar", 10.0, 1.0),
        ("pressure_gpa", "MPa", 500.0, 0.5),
        ("length_a", "nm", 1.0, 10.0),
        ("length_um", "nm", 250.0, 0.25),
        ("time_s", "min", 2.0, 120.0),
        ("time_h", "min", 90.0, 1.5),
        ("polymer_mass_fraction", "wt%", 12.0, 0.12),
        ("density_g_per_cm3", "kg/m^3", 1000.0, 1.0),
        ("energy_kcal_per_mol", "kJ/mol", 4.184, 1.0),
        ("angle_deg", "rad", math.pi, 180.0),
        ("rate_ml_per_h", "uL/min", 10.0, 0.6),
        ("shift_per_cm", "1/nm", 1.0, 1e7),
    ],
)
def test_stated_units_are_converted(name: str, stated: str, value: float, expected: float) -> None:
    assert scale(name, "x", stated)(value) == pytest.approx(expected, rel=1e-7)


def test_what_is_stated_must_fit_the_header_and_the_name() -> None:
    with pytest.raises(ConfigError, match="is said to be in nm"):
        scale("voltage_kv", "Voltage (kV)", "nm")
    with pytest.raises(ConfigError, match="'nm' is no kV"):
        scale("voltage_kv", "Voltage", "nm")
    with pytest.raises(ConfigError, match="'foo' is no unit"):
        scale("voltage_kv", "Voltage", "foo")
    with pytest.raises(ConfigError, match="such as 'voltage_kv'"):
        scale("voltage", "Voltage", "kV")


@pytest.mark.parametrize("text", ["", "foo", "eV/foo", "/", "per", "kV^99", "(", "%%", "m^", "1"])
def test_unknown_units_are_none(text: str) -> None:
    assert parse_unit(text) == []


@pytest.mark.parametrize("name", ["n", "ev", "per", "a_per", "a_per_per_b", "a__b", "", "_", "solvent"])
def test_names_without_a_unit(name: str) -> None:
    assert suffix_unit(name) == []


@pytest.mark.parametrize("unit", [unit for units in SYMBOLS.values() for unit in units], ids=lambda unit: unit.symbol)
def test_a_suffix_that_is_suggested_is_understood(unit: Unit) -> None:
    """Another unit may share the suffix (``a``), but the one that was meant is among them."""
    with pytest.raises(ConfigError, match="has a unit") as caught:
        scale("value", f"value ({unit.symbol})")
    suggested = str(caught.value).rpartition("such as '")[2].rstrip("'")
    assert (unit.dimension, unit.factor) in [(found.dimension, found.factor) for found in suffix_unit(suggested)]
