"""Feature steps: what they compute, what they do not depend on, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from shards.errors import ConfigError, DataError
from shards.features import FEATURES, feature
from shards.sources.base import RawDos, Record

ENERGY = np.linspace(-15.0, 15.0, 901)
STATES = 2.0 + np.sin(ENERGY) + np.exp(-((ENERGY - 2.0) ** 2))


def perovskite() -> Structure:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.tetragonal(3.9, 4.1), ["Ba", "Ti", "O", "O", "O"], sites)


def record(**values: object) -> Record:
    return Record(id="BaTiO3 (1.5)", **values)  # type: ignore[arg-type]


def full_record() -> Record:
    return record(
        structure=perovskite(),
        dos=RawDos(energy_ev=ENERGY, states_per_ev=STATES, atoms=5),
        charge_density=np.random.default_rng(0).uniform(0.1, 2.0, (32, 32, 32)),
        text=" A perovskite.\n",
        smiles="CCO",
        images=(np.arange(600, dtype=np.uint8).reshape(20, 30), np.zeros((40, 40, 3), dtype=np.uint8)),
        columns={"voltage_kv": 12.5, "solvent": "DMF"},
        arrays={"embedding": np.arange(8.0), "raman": np.stack([ENERGY, STATES])},
    )


NEEDED: dict[str, dict[str, object]] = {
    "spectrum": {"array": "raman", "start": -10.0, "stop": 10.0, "axis_unit": "cm^-1"},
    "table": {"columns": ["voltage_kv", "humidity_pct"], "categorical": {"solvent": ["DMF", "THF"]}},
    "vector": {"array": "embedding", "length": 8},
}


# robocrystallographer takes many seconds to import; its own tests run it
STEPS = [pytest.param(step, marks=pytest.mark.slow) if step == "robocrys" else step for step in FEATURES.kinds()]


@pytest.mark.parametrize("step", STEPS)
def test_values_satisfy_their_spec_and_missing_sources_give_none(step: str) -> None:
    made = feature({"step": step, **NEEDED.get(step, {})})
    spec = made.spec("name")
    value = made(full_record())
    assert value is not None
    spec.check(value)
    assert spec.kind == made.kind and spec.feature["step"] == step
    assert feature(spec.feature) == made
    assert made(record()) is None


def test_the_graph_without_potentials_satisfies_its_spec() -> None:
    made = feature({"step": "crystal", "potentials": False, "cutoff_a": 4.0})
    value = made(full_record())
    assert value is not None
    made.spec("crystal").check(value)


def test_importing_the_steps_is_light() -> None:
    code = (
        "import sys, shards.features; print([m for m in ('pymatgen', 'scipy', 'spglib', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "has no 'step'"),
        ({"step": "doss"}, "did you mean 'dos'"),
        ({"step": "dos", "point": 3}, "did you mean 'points'"),
        ({"step": "dos", "start": 5.0, "stop": -5.0}, "must be below stop"),
        ({"step": "dos", "points": 1}, "'points'"),
        ({"step": "xrd", "fwhm_deg": 0.1}, "two steps of the grid"),
        ({"step": "xrd", "wavelength": "CuK"}, "'wavelength'"),
        ({"step": "crystal", "cutoff_a": -1.0}, "'cutoff_a'"),
    ],
)
def test_bad_tables_are_config_errors(table: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        feature(table)


def test_large_structures_are_refused() -> None:
    with pytest.raises(DataError, match="takes 4"):
        feature({"step": "crystal", "max_atoms": 4})(full_record())


# --- diffraction ---------------------------------------------------------------------------------


def xrd(structure: Structure, **options: object) -> np.ndarray:
    return feature({"step": "xrd", **options})(record(structure=structure))["intensity"]  # type: ignore[index]


def test_xrd_does_not_change_with_rotation_atom_order_or_cell() -> None:
    structure = perovskite()
    reference = xrd(structure)
    rotation = Rotation.random(random_state=0).as_matrix()
    turned = Structure(structure.lattice.matrix @ rotation.T, structure.species, structure.frac_coords)
    shuffled = Structure.from_sites([structure[i] for i in (3, 0, 4, 1, 2)])
    supercell = structure.make_supercell((2, 1, 2), in_place=False)
    oxidised = structure.copy()
    oxidised.add_oxidation_state_by_element({"Ba": 2, "Ti": 4, "O": -2})
    for other in (turned, shuffled, supercell, oxidised):
        np.testing.assert_allclose(xrd(other), reference, atol=1e-4)


def test_xrd_peaks_stand_where_bragg_puts_them() -> None:
    silicon = Structure(
        Lattice(np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 5.431 / 2), ["Si", "Si"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    )
    pattern = xrd(silicon, points=2048, fwhm_deg=0.2)
    grid = np.linspace(10, 90, 2048)
    peaks = grid[1:-1][(pattern[1:-1] > pattern[:-2]) & (pattern[1:-1] > pattern[2:]) & (pattern[1:-1] > 0.02)]
    planes = [3, 8, 11, 16, 19, 24]  # h2 + k2 + l2 of 111, 220, 311, 400, 331, 422
    expected = [2 * np.degrees(np.arcsin(1.54184 * np.sqrt(n) / 2 / 5.431)) for n in planes]
    np.testing.assert_allclose(peaks, expected, atol=0.04)
    assert pattern.max() == 1.0 and pattern.argmax() == np.abs(grid - expected[0]).argmin()


@pytest.mark.parametrize("wavelength", ["CuKa", "MoKa"])
def test_xrd_is_pymatgens(wavelength: str) -> None:
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    structure = perovskite()
    structure.perturb(0.05)
    peaks = XRDCalculator(wavelength).get_pattern(structure, scaled=False, two_theta_range=(5, 95))
    grid = np.linspace(10, 90, 512)
    expected = np.exp(-4 * np.log(2) * ((grid[:, None] - np.array(peaks.x)) / 0.5) ** 2) @ np.array(peaks.y)
    np.testing.assert_allclose(xrd(structure, wavelength=wavelength), expected / expected.max(), atol=1e-3)


def test_xrd_tells_two_crystals_apart() -> None:
    other = perovskite()
    other.apply_strain(0.02)
    assert np.abs(xrd(other) - xrd(perovskite())).max() > 0.3


def test_xrd_refuses_what_has_no_scattering_factor_or_no_peak() -> None:
    with pytest.raises(DataError, match="scattering"):
        xrd(Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]]))
    with pytest.raises(DataError, match="cannot calculate"):
        xrd(Structure(Lattice.cubic(2.0), ["Li"], [[0, 0, 0]]), start=10.0, stop=20.0, points=128)


# --- text ----------------------------------------------------------------------------------------


def test_text_is_stripped_and_never_empty() -> None:
    assert feature({"step": "text"})(full_record()) == "A perovskite."
    with pytest.raises(DataError, match="empty"):
        feature({"step": "text"})(record(text=" \n"))
