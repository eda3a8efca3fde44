"""The charge density: what resampling keeps, on waves, on random grids and on real CHGCAR, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.features import feature
from shards.features.charge_density import average, resample
from shards.formats.chgcar import read_chgcar
from shards.sources.base import RHO_V, Record

METHODS = {"fourier": resample, "conservative": average}


def record(**values: object) -> Record:
    return Record(id="BaTiO3 (1.5)", **values)  # type: ignore[arg-type]


def density(given: np.ndarray, **options: object) -> np.ndarray:
    value = feature({"step": "charge_density", **options})(record(charge_density=given))
    return value["density"]  # type: ignore[index]


def wave(n: int) -> np.ndarray:
    x, y, z = np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij")
    return 1.0 + 0.5 * np.cos(2 * np.pi * (x - 2 * z)) + 0.3 * np.sin(2 * np.pi * 3 * y)


@pytest.mark.parametrize("n", [16, 24, 31, 48])
def test_charge_density_is_interpolated_exactly_below_its_band_limit(n: int) -> None:
    value = feature({"step": "charge_density"})(record(charge_density=wave(n)))["density"]  # type: ignore[index]
    assert value.dtype == np.float16
    np.testing.assert_allclose(value.astype(float), wave(32), atol=2e-3)


def test_charge_density_keeps_its_electrons() -> None:
    sharp = np.zeros((20, 24, 30))
    sharp[3, 4, 5] = 100.0
    value = feature({"step": "charge_density"})(record(charge_density=sharp))["density"]  # type: ignore[index]
    assert value.min() >= 0.0
    assert value.astype(float).mean() == pytest.approx(sharp.mean(), rel=2e-3)


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (np.full((8, 8, 8), np.nan), "NaN"),
        (np.full((8, 8, 8), -0.5), "negative"),
        (np.full((8, 8, 8), 1e6), "float16"),
        (np.ones((8, 8)), "shape"),
        (np.ones((8, 8, 0)), "shape"),
    ],
)
def test_bad_charge_densities_are_refused(density: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        feature({"step": "charge_density"})(record(charge_density=density))


def test_small_negative_noise_of_a_charge_density_is_clipped() -> None:
    value = feature({"step": "charge_density", "points": 8})(record(charge_density=np.full((8, 8, 8), -1e-3)))
    assert value["density"].min() == 0.0  # type: ignore[index]


# --- resampling ----------------------------------------------------------------------------------


def waves(shape: tuple[int, int, int], limit: int, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """A sum of plane waves with up to ``limit`` periods along each axis, moved by fractions of the cell."""
    rng = np.random.default_rng(7)
    axes = np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij")
    total = np.full(shape, 5.0)
    for k in rng.integers(-limit, limit + 1, (12, 3)):
        phase = sum(k[i] * (axes[i] - shift[i]) for i in range(3)) + rng.uniform()
        total += 0.3 * np.cos(2 * np.pi * phase)
    return total


@pytest.mark.parametrize("shape", [(12, 12, 12), (15, 20, 33), (32, 13, 16), (40, 16, 17), (16, 17, 64)])
@pytest.mark.parametrize("points", [13, 16, 21])
def test_low_waves_are_resampled_exactly(shape: tuple[int, int, int], points: int) -> None:
    limit = (min(*shape, points) - 1) // 2
    np.testing.assert_allclose(resample(waves(shape, limit), points), waves((points,) * 3, limit), atol=1e-12)


def line(n: int, periods: int, phase: float) -> np.ndarray:
    values = 2.0 + np.cos(2 * np.pi * (periods * np.arange(n) / n + phase))
    return np.broadcast_to(values[:, None, None], (n, n, n))


@pytest.mark.parametrize(("source", "target"), [(16, 24), (16, 32), (16, 17), (32, 16), (24, 16), (17, 16)])
def test_waves_at_half_of_an_even_number_of_points(source: int, target: int) -> None:
    for phase in (0.0, 0.25) if source > target else (0.0,):
        # what sampling the wave would give: nothing where only its zeros are met
        np.testing.assert_allclose(resample(line(source, 8, phase), target), line(target, 8, phase), atol=1e-12)


@pytest.mark.parametrize(("source", "target"), [(16, 15), (20, 16), (33, 16)])
def test_waves_that_the_smaller_grid_cannot_hold_do_not_fold_back(source: int, target: int) -> None:
    for periods in range(target // 2 + 1, source // 2 + 1):
        np.testing.assert_allclose(resample(line(source, periods, 0.1), target).std(), 0.0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_shift_by_a_vector_of_both_grids_commutes(method: str) -> None:
    given = np.random.default_rng(0).uniform(0, 3, (24, 30, 36))
    moved = np.roll(given, (3, -10, 18), axis=(0, 1, 2))
    change = METHODS[method]
    np.testing.assert_allclose(change(moved, 24), np.roll(change(given, 24), (3, -8, 12), axis=(0, 1, 2)), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 1, 0), (2, 0, 1)])
def test_axes_are_treated_alike(method: str, axes: tuple[int, int, int]) -> None:
    given = np.random.default_rng(0).uniform(0, 3, (10, 18, 27))
    change = METHODS[method]
    expected = np.transpose(change(given, 16), axes)
    np.testing.assert_allclose(change(np.transpose(given, axes), 16), expected, atol=1e-12)


def test_conservative_resampling_keeps_the_sums_of_blocks() -> None:
    given = np.random.default_rng(0).uniform(0, 3, (12, 20, 36))
    # blocks of 3, 5 and 9 points around each point of the new grid
    centred = np.roll(given, (1, 2, 4), axis=(0, 1, 2))
    blocks = centred.reshape(4, 3, 4, 5, 4, 9).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(average(given, 4), blocks, atol=1e-12)


def test_conservative_resampling_halves_points_between_two_blocks() -> None:
    given = np.random.default_rng(0).uniform(0, 3, (8, 8, 8))
    expected = given
    for axis in range(3):
        pairs = (np.roll(expected, 1, axis) + 2 * expected + np.roll(expected, -1, axis)) / 4
        expected = np.take(pairs, range(0, 8, 2), axis)
    np.testing.assert_allclose(average(given, 4), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 7, 9), (32, 32, 32), (50, 33, 20), (2, 100, 3)])
def test_conservative_resampling_never_rings_and_loses_nothing(shape: tuple[int, int, int]) -> None:
    given = np.zeros(shape)
    given[1, 2, 1] = 40.0
    made = average(given, 21)
    assert made.min() >= 0.0 and made.mean() == pytest.approx(given.mean(), rel=1e-13)
    assert made.max() <= 40.0 + 1e-12


# --- real files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spin", "nospin"])
@pytest.mark.parametrize("method", METHODS)
def test_real_densities_keep_their_electrons(shared_data: Path, name: str, method: str) -> None:
    structure, given = read_chgcar(shared_data / "pymatgen_dft" / f"CHGCAR.{name}.gz")
    for points in (12, 20, 31, 32, 48, 64):
        stored = density(given, points=points, method=method)
        before = METHODS[method](given, points).mean() * structure.volume
        after = stored.astype(np.float64).mean() * structure.volume
        print(f"Li {name}, {given.shape[0]} -> {points}, {method}: {before:.6f} electrons, {after:.6f} as float16")
        assert before == pytest.approx(1.0, abs=1e-6)
        assert after == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_two_grids_of_one_crystal_agree(shared_data: Path, method: str) -> None:
    """The spin-polarised lithium of 48 points and the other of 32 are the same density."""
    given = [read_chgcar(shared_data / "pymatgen_dft" / f"CHGCAR.{name}.gz")[1] for name in ("spin", "nospin")]
    made = [density(one, points=16, method=method).astype(np.float64) for one in given]
    assert np.abs(made[0] - made[1]).max() < 0.02 * made[0].max()


# --- what is refused, and what is not ------------------------------------------------------------


def dipping() -> np.ndarray:
    """A density with a peak, and dips below zero as pseudo-densities have them near nuclei."""
    given = np.full((16, 16, 16), 0.2)
    given[0, 0, 0], given[1, 0, 0], given[8, 8, 8] = 60.0, -3.0, -0.004
    return given


@pytest.mark.parametrize("points", [8, 16, 24])
@pytest.mark.parametrize("method", METHODS)
def test_dips_are_filled_and_electrons_kept(points: int, method: str) -> None:
    given = dipping()
    made = density(given, points=points, method=method)
    assert made.min() >= 0.0
    assert made.astype(np.float64).mean() == pytest.approx(given.mean(), rel=1e-3)


def test_more_than_dips_is_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        density(dipping() - 0.3)
    with pytest.raises(DataError, match="negative"):
        density(dipping(), max_negative=0.001)
    magnetisation = np.random.default_rng(0).normal(0.01, 1.0, (8, 8, 8))
    with pytest.raises(DataError, match="negative"):
        density(magnetisation)


def test_the_spec_says_what_the_density_is() -> None:
    spec = feature({"step": "charge_density"}).spec("charge_density")
    assert spec.feature["density"] == "valence" and spec.feature["method"] == "fourier"
    assert spec.fields["density"].unit == "e/A^3"
    assert feature({"step": "charge_density", "scale": "mean"}).spec("x").fields["density"].unit == ""


def test_a_density_times_an_unknown_volume_has_no_absolute_scale() -> None:
    given = np.random.default_rng(0).uniform(0.1, 2.0, (20, 20, 20))
    unknown = record(arrays={RHO_V: given * 137.0})
    with pytest.raises(DataError, match="up to the volume") as caught:
        feature({"step": "charge_density"})(unknown)
    assert "scale = 'mean'" in str(caught.value)
    made = feature({"step": "charge_density", "scale": "mean"})
    value = made(unknown)["density"]  # type: ignore[index]
    assert value.astype(np.float64).mean() == pytest.approx(1.0, rel=1e-3)
    np.testing.assert_array_equal(value, made(record(charge_density=given))["density"])  # type: ignore[index]
    with pytest.raises(DataError, match="no electrons"):
        made(record(arrays={RHO_V: -given}))
    assert made(record()) is None
