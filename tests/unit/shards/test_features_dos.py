"""The density of states: what it does not depend on, that it integrates right, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.features import feature
from shards.formats.vasprun import read_vasprun
from shards.sources.base import RawDos, Record

ENERGY = np.linspace(-15.0, 15.0, 901)
STATES = 2.0 + np.sin(ENERGY) + np.exp(-((ENERGY - 2.0) ** 2))


def dos(
    energy: np.ndarray, states: np.ndarray, *, zero_ev: float = 0.0, atoms: int = 1, **options: object
) -> np.ndarray:
    source = RawDos(energy_ev=energy, states_per_ev=states, zero_ev=zero_ev, atoms=atoms)
    return feature({"step": "dos", **options})(Record(id="BaTiO3 (1.5)", dos=source))["intensity"]  # type: ignore[index]


def test_dos_does_not_change_when_axis_and_zero_move_together() -> None:
    reference = dos(ENERGY, STATES)
    for shift in (-7.3, 4.25, 120.0):
        np.testing.assert_allclose(dos(ENERGY + shift, STATES, zero_ev=shift), reference, atol=1e-6)
    assert np.abs(dos(ENERGY, STATES, zero_ev=1.0) - reference).max() > 0.1


def test_dos_is_per_atom_and_its_zero_is_in_the_middle() -> None:
    np.testing.assert_allclose(dos(ENERGY, STATES, atoms=4), dos(ENERGY, STATES) / 4, rtol=1e-6)
    peak = np.exp(-((ENERGY - 3.7) ** 2) / 0.1)
    assert dos(ENERGY, peak, zero_ev=3.7).argmax() == 300


def test_dos_on_its_own_grid_is_unchanged() -> None:
    grid = np.linspace(-10, 10, 601, dtype=np.float32)
    states = np.random.default_rng(0).uniform(0, 5, 601).astype(np.float32)
    np.testing.assert_allclose(dos(grid, states), states, atol=2e-4)


def test_dos_keeps_its_number_of_states() -> None:
    smooth = np.exp(-(ENERGY**2) / 8)
    grid = np.linspace(-10, 10, 601)
    assert np.trapezoid(dos(ENERGY, smooth), grid) == pytest.approx(np.trapezoid(smooth, ENERGY), rel=1e-3)


def test_dos_is_zero_outside_a_source_that_covers_most_of_the_window() -> None:
    inside = (ENERGY >= -7) & (ENERGY <= 6)
    values = dos(ENERGY[inside], STATES[inside])
    grid = np.linspace(-10, 10, 601)
    assert (values[grid < -7.01] == 0).all() and (values[grid > 6.01] == 0).all()
    assert (values[(grid > -6.9) & (grid < 5.9)] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s: (e[400:600], s[400:600]), "covers"),
        (lambda e, s: (e + 40.0, s), "covers"),
        (lambda e, s: (e, s - 5.0), "negative"),
        (lambda e, s: (e, np.where(e > 3, np.nan, s)), "NaN"),
        (lambda e, s: (e[::-1], s), "do not ascend"),
        (lambda e, s: (e[:-1], s), "equal length"),
        (lambda e, s: (e[:1], s[:1]), "equal length"),
    ],
)
def test_bad_densities_of_states_are_refused(change, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        dos(*change(ENERGY, STATES))
    assert caught.value.where == "BaTiO3 (1.5)" and caught.value.do


def test_small_negative_noise_of_a_dos_is_clipped() -> None:
    values = dos(ENERGY, np.where(np.abs(ENERGY) < 1, -5e-4, 1.0))
    assert values.min() == 0.0


# --- steps and smearing --------------------------------------------------------------------------


def normal(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.exp(-0.5 * (x / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("points", [11, 41, 101, 600, 601, 2400])
@pytest.mark.parametrize("smearing", [0.0, 0.02, 0.2, 0.6])
def test_the_number_of_states_does_not_depend_on_grid_or_smearing(points: int, smearing: float) -> None:
    # three levels, the first narrower than any step of the grids
    states = normal(ENERGY + 4.0, 0.04) + 2 * normal(ENERGY, 0.2) + 3 * normal(ENERGY - 3.0, 0.5)
    values = dos(ENERGY, states, points=points, smearing_ev=smearing).astype(np.float64)
    assert np.trapezoid(values, dx=20.0 / (points - 1)) == pytest.approx(6.0, rel=1e-3)


@pytest.mark.parametrize("smearing", [0.1, 0.5])
def test_smearing_is_a_convolution_with_a_normal_distribution(smearing: float) -> None:
    states = 2 * normal(ENERGY + 1.0, 0.3) + normal(ENERGY - 2.0, 0.2)
    grid = np.linspace(-10, 10, 601)
    expected = 2 * normal(grid + 1.0, np.hypot(0.3, smearing)) + normal(grid - 2.0, np.hypot(0.2, smearing))
    # the source is linear between its points, which cuts its peaks by h^2 / (12 sigma^2)
    np.testing.assert_allclose(dos(ENERGY, states, smearing_ev=smearing), expected, atol=5e-3)


def straight_lines() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.sort(rng.uniform(-12, 12, 150)), rng.uniform(0, 5, 150)


@pytest.mark.parametrize("smearing", [0.7, 1.0, 3.0])
def test_smearing_is_exact_for_straight_lines(smearing: float) -> None:
    energy, states = straight_lines()
    fine, h = np.linspace(-12, 12, 240_001, retstep=True)
    line = np.interp(fine, energy, states, left=0, right=0)
    expected = [(line * normal(fine - x, smearing)).sum() * h for x in np.linspace(-10, 10, 31)]
    np.testing.assert_allclose(dos(energy, states, points=31, smearing_ev=smearing), expected, rtol=1e-4)


def test_a_grid_coarser_than_the_source_holds_means() -> None:
    energy, states = straight_lines()
    fine = np.linspace(-10, 10, 200_001)
    line = np.interp(fine, energy, states)
    step, grid = 20 / 30, np.linspace(-10, 10, 31)
    expected = [line[np.abs(fine - x) <= step / 2].mean() for x in grid]
    np.testing.assert_allclose(dos(energy, states, points=31), expected, rtol=2e-4)
    # the limit of little smearing is none
    little = dos(energy, states, points=31, smearing_ev=0.002)
    np.testing.assert_allclose(little, expected, rtol=2e-3)


def test_the_unsmeared_step_is_the_default_and_stated() -> None:
    spec = feature({"step": "dos", "smearing_ev": 0.1}).spec("dos")
    assert spec.feature["smearing_ev"] == 0.1 and feature({"step": "dos"}).spec("dos").feature["smearing_ev"] == 0.0


def test_a_source_with_the_grids_step_or_a_multiple_is_read_at_the_grids_energies() -> None:
    for points in (101, 201, 601):
        energy = np.linspace(-10.0, 10.0, points)
        states = np.random.default_rng(points).uniform(0, 5, points)
        expected = np.interp(np.linspace(-10, 10, 601), energy, states).astype(np.float32)
        np.testing.assert_array_equal(dos(energy, states), expected)


@pytest.mark.parametrize(("name", "electrons"), [("Al", 3.0), ("LiF", 10.0), ("lifepo4", 607.0)])
@pytest.mark.parametrize("points", [256, 601, 2048])
@pytest.mark.parametrize("smearing", [0.0, 0.05])
def test_real_states_below_the_fermi_energy_are_the_electrons(
    shared_data: Path, name: str, electrons: float, points: int, smearing: float
) -> None:
    source = read_vasprun(shared_data / "pymatgen_dft" / f"vasprun.{name}.xml.gz").dos
    assert source is not None
    table = {"step": "dos", "start": -50.0, "stop": 40.0, "points": points, "smearing_ev": smearing}
    made = feature({**table, "min_coverage": 0.3})
    values = made(Record(id=name, dos=source))["intensity"].astype(np.float64) * source.atoms  # type: ignore[index]
    grid = np.linspace(-50, 40, points)
    edges = np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
    counted = np.append(0.0, np.cumsum(values * np.diff(edges)))
    # an insulator is counted in its gap, away from the blur of its edges
    at = 4.0 if name == "LiF" else 0.0
    found = float(np.interp(at, edges, counted))
    print(f"{name}, {points} points, smearing {smearing} eV: {found:.4f} of {electrons:g} electrons below E_F")
    assert found == pytest.approx(electrons, rel=1e-3)
    assert counted[-1] == pytest.approx(np.trapezoid(source.states_per_ev, source.energy_ev), rel=1e-3)


# --- scale and signs -----------------------------------------------------------------------------


def test_states_that_are_known_up_to_a_factor_have_no_absolute_scale() -> None:
    source = RawDos(energy_ev=ENERGY, states_per_ev=STATES, absolute=False)
    with pytest.raises(DataError, match="up to a factor") as caught:
        feature({"step": "dos"})(Record(id="mp-1", dos=source))
    assert "scale = 'area'" in str(caught.value)
    made = feature({"step": "dos", "scale": "area"})
    values = made(Record(id="mp-1", dos=source))["intensity"]  # type: ignore[index]
    assert np.trapezoid(values.astype(np.float64), dx=20 / 600) == pytest.approx(1.0, rel=1e-6)
    assert made.spec("dos").fields["intensity"].unit == "1/eV"
    tripled = RawDos(energy_ev=ENERGY, states_per_ev=3 * STATES, atoms=7)
    np.testing.assert_allclose(made(Record(id="mp-1", dos=tripled))["intensity"], values, rtol=1e-6)  # type: ignore[index]
    empty = RawDos(energy_ev=ENERGY, states_per_ev=np.where(ENERGY < -11, 1.0, 0.0), absolute=False)
    with pytest.raises(DataError, match="no states in the window"):
        made(Record(id="mp-1", dos=empty))


def test_the_negative_lobes_of_methfessel_and_paxton_are_clipped(shared_data: Path) -> None:
    source = read_vasprun(shared_data / "pymatgen_dft" / "vasprun.Al.xml.gz").dos
    assert source is not None and source.states_per_ev.min() < -1e-3
    values = feature({"step": "dos", "start": -15.0})(Record(id="Al", dos=source))["intensity"]  # type: ignore[index]
    assert values.min() == 0.0
    with pytest.raises(DataError, match="negative"):
        feature({"step": "dos", "start": -15.0, "max_negative": 0.0})(Record(id="Al", dos=source))
