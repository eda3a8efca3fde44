r"""Infinite sums of interatomic potentials over a lattice, for every ordered pair of atoms of a cell.

For a pair (i, j) with r = x_j - x_i the sums run over all lattice vectors L:

* Coulomb: :math:`\sum_L |r + L|^{-1}`, the Epstein zeta function at s = 1/2, by analytic
  continuation (equal to Ewald's sum with a neutralising background), in 1/A;
* London: :math:`\sum_L |r + L|^{-6}`, the same at s = 3, in 1/A^6;
* Pauli: :math:`\sum_L \exp(-3 |r + L|)` with lengths in A, without unit.

For i = j the term L = 0 is left out. The zeta sums are split by an incomplete gamma function
(P. P. Ewald, Ann. Phys. 369, 253 (1921); R. E. Crandall, "Fast evaluation of Epstein zeta
functions" (1998)): with a splitting parameter eta and R = r + L

.. math::

    \sum_L \frac{\Gamma(s, \eta^2 R^2)}{\Gamma(s) R^{2s}}
    + \frac{\pi^{3/2}}{V \Gamma(s)} \Big[ \sum_{G \ne 0} (G^2/4)^{s-3/2}
      \Gamma(3/2 - s, G^2 / 4\eta^2) \cos(G \cdot r) + \frac{\eta^{2s-3}}{s - 3/2} \Big]
    - \delta_{ij} \frac{\eta^{2s}}{s \Gamma(s)},

which does not depend on eta. The use of these sums as edge features is due to Y. Lin et al.,
"Efficient approximations of complete interatomic potentials for crystal property prediction"
(PotNet, ICML 2023).
"""

from __future__ import annotations

import numpy as np

from shards.crystals import neighbours

PAULI_DECAY_PER_A = 3.0
# exp(-3 r) beyond 8 A adds less than 1e-8 / (volume in A^3) to a sum.
PAULI_RADIUS_A = 8.0
# Both halves of the split stop at exp(-REACH^2) = 2e-12.
REACH = 5.2
# Bound of eta^3 V, which keeps the number of reciprocal vectors below about 4,500.
MAX_ETA3_VOLUME = 240.0


def lattice_sums(lattice: np.ndarray, positions: np.ndarray, *, eta: float | None = None) -> np.ndarray:
    """Sum the three potentials over the lattice for every ordered pair of atoms.

    Parameters
    ----------
    lattice : ndarray
        (3, 3) rows are the lattice vectors, Angstrom.
    positions : ndarray
        (n, 3) Cartesian coordinates, Angstrom; no two atoms at the same place.
    eta : float, optional
        Splitting parameter in 1/A; only speed depends on it.

    Returns
    -------
    ndarray
        (n, n, 3) float64, symmetric in the first two axes; the last axis is Coulomb (1/A), London
        (1/A^6), Pauli (no unit).
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    volume = abs(float(np.linalg.det(lattice)))
    if eta is None:
        eta = min(REACH / PAULI_RADIUS_A, (MAX_ETA3_VOLUME / volume) ** (1.0 / 3.0))
    sums = _direct(lattice, positions, eta)
    sums[..., :2] += _reciprocal(lattice, positions, eta, volume)
    atoms = np.arange(len(positions))
    sums[atoms, atoms, 0] -= 2.0 * eta / np.sqrt(np.pi)
    sums[atoms, atoms, 1] -= eta**6 / 6.0
    return 0.5 * (sums + sums.transpose(1, 0, 2))  # rounding differs between (i, j) and (j, i)


def _direct(lattice: np.ndarray, positions: np.ndarray, eta: float) -> np.ndarray:
    """Sum the short-ranged halves of the zeta sums, and all of the Pauli sum, in real space: (n, n, 3)."""
    from scipy.special import erfc

    n = len(positions)
    found = neighbours(lattice, positions, max(PAULI_RADIUS_A, REACH / eta))
    pair = found.centre * n + found.neighbour
    distance = found.distance
    square = (eta * distance) ** 2
    terms = (
        erfc(eta * distance) / distance,  # Gamma(1/2, x^2) = sqrt(pi) erfc(x)
        np.exp(-square) * (1.0 + square + 0.5 * square**2) / distance**6,  # Gamma(3, y) = e^-y (2 + 2 y + y^2)
        np.exp(-PAULI_DECAY_PER_A * distance),
    )
    sums = [np.bincount(pair, term, minlength=n * n).reshape(n, n) for term in terms]
    return np.stack(sums, axis=-1).astype(np.float64)  # without any term, bincount counts in integers


def _reciprocal(lattice: np.ndarray, positions: np.ndarray, eta: float, volume: float) -> np.ndarray:
    """Sum the long-ranged halves of the zeta sums over reciprocal vectors, G = 0 included: (n, n, 2)."""
    g_vectors = _half_space(2.0 * np.pi * np.linalg.inv(lattice).T, 2.0 * eta * REACH)
    quarter = np.einsum("gx,gx->g", g_vectors, g_vectors) / 4.0
    x = quarter / eta**2
    weights = (
        np.pi / volume * np.exp(-x) / quarter,  # Gamma(1, x) = exp(-x)
        np.pi**1.5 / (2.0 * volume) * quarter**1.5 * gamma_minus_three_halves(x),
    )
    zero = (-np.pi / (volume * eta**2), np.pi**1.5 * eta**3 / (3.0 * volume))
    phase = np.asarray(positions, dtype=np.float64) @ g_vectors.T
    cosine, sine = np.cos(phase), np.sin(phase)
    # cos(G (x_i - x_j)) = cos cos + sin sin; G and -G give the same term, hence the 2.
    sums = [
        term + 2.0 * ((cosine * weight) @ cosine.T + (sine * weight) @ sine.T)
        for weight, term in zip(weights, zero, strict=True)
    ]
    return np.stack(sums, axis=-1)


def gamma_minus_three_halves(x: np.ndarray) -> np.ndarray:
    """Return the upper incomplete gamma function Gamma(-3/2, x) for x > 0.

    By the recurrence Gamma(a, x) = (Gamma(a + 1, x) - x^a exp(-x)) / a from
    Gamma(1/2, x) = sqrt(pi) erfc(sqrt(x)) (NIST DLMF 8.8.2 and 8.4.6).
    """
    from scipy.special import erfc

    decay = np.exp(-x)
    half = np.sqrt(np.pi) * erfc(np.sqrt(x))
    minus_half = -2.0 * (half - x**-0.5 * decay)
    return -2.0 / 3.0 * (minus_half - x**-1.5 * decay)


def _half_space(reciprocal: np.ndarray, radius: float) -> np.ndarray:
    """Return the vectors of a lattice within ``radius``, without 0 and one of every pair G, -G: (g, 3)."""
    vectors = neighbours(reciprocal, np.zeros((1, 3)), radius).vector
    tiny = 1e-9 * radius
    x, y, z = vectors.T
    positive = (z > tiny) | ((np.abs(z) <= tiny) & ((y > tiny) | ((np.abs(y) <= tiny) & (x > 0))))
    return vectors[positive]
