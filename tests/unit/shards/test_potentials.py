"""Infinite lattice sums: against known constants, brute force and their own symmetries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gammaincc

from shards.crystals import neighbours
from shards.potentials import gamma_minus_three_halves, lattice_sums

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / np.sqrt(2.0)  # nearest distance 1
LATTICE = np.array([[4.1, 0.2, 0.0], [0.7, 5.0, -0.4], [0.3, -0.9, 4.6]])
POSITIONS = np.array([[0.1, 0.2, 0.1], [2.0, 1.5, 2.5], [0.5, 3.5, 1.0]])


def brute_force(lattice: np.ndarray, positions: np.ndarray, radius: float) -> np.ndarray:
    """London and Pauli sums (n, n, 2) over all images within a radius, with the mean density beyond it."""
    n, volume = len(positions), abs(np.linalg.det(lattice))
    found = neighbours(lattice, positions, radius)
    pair = found.centre * n + found.neighbour
    london = np.bincount(pair, found.distance**-6, minlength=n * n) + 4 * np.pi / (3 * volume * radius**3)
    pauli = np.bincount(pair, np.exp(-3 * found.distance), minlength=n * n)
    return np.stack([london, pauli], axis=-1).reshape(n, n, 2)


@pytest.mark.parametrize("eta", [0.45, 0.6, 1.0, 1.6])
def test_sums_do_not_depend_on_the_splitting(eta: float) -> None:
    np.testing.assert_allclose(lattice_sums(LATTICE, POSITIONS, eta=eta), lattice_sums(LATTICE, POSITIONS), atol=1e-8)


def test_madelung_constant_of_rocksalt() -> None:
    distance = 2.82
    sums = lattice_sums(FCC * np.sqrt(2.0) * distance, np.array([[0, 0, 0], [distance, 0, 0]]))
    assert (sums[0, 1, 0] - sums[0, 0, 0]) * distance == pytest.approx(1.7475645946, abs=1e-9)


def test_madelung_constant_of_caesium_chloride() -> None:
    a = 4.0
    sums = lattice_sums(np.eye(3) * a, np.array([[0.0, 0, 0], [a / 2, a / 2, a / 2]]))
    assert (sums[0, 1, 0] - sums[0, 0, 0]) * a * np.sqrt(3) / 2 == pytest.approx(1.7626747731, abs=1e-9)


def test_london_sum_of_fcc() -> None:
    distance = 2.5
    sums = lattice_sums(FCC * distance, np.zeros((1, 3)))
    assert sums[0, 0, 1] * distance**6 == pytest.approx(14.45392, abs=1e-5)


def test_london_and_pauli_equal_brute_force() -> None:
    sums, expected = lattice_sums(LATTICE, POSITIONS), brute_force(LATTICE, POSITIONS, 40.0)
    np.testing.assert_allclose(sums[..., 1], expected[..., 0], rtol=2e-5)
    np.testing.assert_allclose(sums[..., 2], expected[..., 1], atol=1e-8)


def test_sums_do_not_depend_on_the_choice_of_cell() -> None:
    other = np.array([[1, 1, 0], [0, 1, -2], [0, 0, 1]]) @ LATTICE
    moved = POSITIONS + np.array([3, -1, 2]) @ LATTICE + [0.3, 0.1, -2.0]
    np.testing.assert_allclose(lattice_sums(other, moved), lattice_sums(LATTICE, POSITIONS), atol=1e-9)


def test_sums_over_the_images_in_a_supercell_give_the_primitive_ones() -> None:
    scale = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 2]])
    images = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]) @ LATTICE
    positions = (images[:, None] + POSITIONS).reshape(-1, 3)
    sums = lattice_sums(scale @ LATTICE, positions).reshape(4, 3, 4, 3, 3).sum(axis=2)
    np.testing.assert_allclose(sums, np.broadcast_to(lattice_sums(LATTICE, POSITIONS), (4, 3, 3, 3)), atol=5e-8)


def test_sums_are_symmetric_and_follow_the_atoms() -> None:
    sums = lattice_sums(LATTICE, POSITIONS)
    assert np.array_equal(sums, sums.transpose(1, 0, 2))
    order = [2, 0, 1]
    np.testing.assert_allclose(lattice_sums(LATTICE, POSITIONS[order]), sums[np.ix_(order, order)], atol=1e-12)


def test_a_large_empty_cell_is_bounded_work() -> None:
    """One atom in 100 A: the potential of a cubic point lattice with background, -2.837297 / a."""
    sums = lattice_sums(np.eye(3) * 100.0, np.zeros((1, 3)))
    assert sums[0, 0, 0] * 100.0 == pytest.approx(-2.837297, abs=1e-6)


def test_negative_order_gamma() -> None:
    x = np.array([0.01, 0.3, 1.0, 4.0, 20.0])
    half = np.sqrt(np.pi) * gammaincc(0.5, x)
    value = gamma_minus_three_halves(x)
    np.testing.assert_allclose((-0.5) * (-1.5) * value + (-0.5) * x**-1.5 * np.exp(-x) + x**-0.5 * np.exp(-x), half)
    grid = np.linspace(1.0, 60.0, 2_000_001)
    np.testing.assert_allclose(value[2], np.trapezoid(grid**-2.5 * np.exp(-grid), grid), rtol=1e-8)
