"""Periodic real-space grids in plain numpy: resampling, smoothing, interpolation, the correction at the nuclei."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def fourier_resample(values: FloatArray, points: int = 32) -> FloatArray:
    """Resample a periodic grid to ``points`` along each axis by trigonometric interpolation.

    The mean (hence the integral over the cell) is kept exactly, and a function whose frequencies lie below the
    Nyquist frequency of both grids is reproduced to rounding. An even number of points carries its Nyquist
    frequency in one bin for +f and -f together: going up it is split in halves, going down the two are averaged.

    Parameters
    ----------
    values : (nx, ny, nz)
        The function at fractional coordinates ``i / n``.
    points
        Points along each axis of the result.

    Returns
    -------
    (points, points, points)
    """
    for axis in range(3):
        have = values.shape[axis]
        if have == points:
            continue
        old = np.moveaxis(np.fft.fft(values, axis=axis), axis, 0)
        new = np.zeros((points, *old.shape[1:]), complex)
        kept = min(have, points)
        half = (kept - 1) // 2  # frequencies -half .. half exist on both grids
        new[: half + 1] = old[: half + 1]
        if half:
            new[-half:] = old[-half:]
        if kept % 2 == 0:
            nyquist = kept // 2
            if points > have:
                new[nyquist] = new[-nyquist] = old[nyquist] / 2
            else:
                new[nyquist] = (old[nyquist] + old[-nyquist]) / 2
        values = np.moveaxis(np.fft.ifft(new, axis=0).real * points / have, 0, axis)
    return values


def gaussian_smooth(values: FloatArray, cell: FloatArray, sigma: float) -> FloatArray:
    """Convolve a periodic grid with a normalised Gaussian; the integral is kept.

    Parameters
    ----------
    values : (nx, ny, nz)
    cell : (3, 3)
        Lattice vectors as rows, Angstrom.
    sigma
        Standard deviation, Angstrom.
    """
    frequencies = np.meshgrid(*[np.fft.fftfreq(n, 1 / n) for n in values.shape], indexing="ij")
    wave_vectors = np.stack(frequencies, -1) @ (2 * np.pi * np.linalg.inv(cell).T)
    damping = np.exp(-0.5 * sigma**2 * (wave_vectors**2).sum(-1))
    return np.fft.ifftn(np.fft.fftn(values) * damping).real


def refine_periodic(values: FloatArray, axis: int, factor: int) -> FloatArray:
    """Interpolate linearly along one periodic axis, giving ``factor`` mid-cell points for each interval."""
    following = np.roll(values, -1, axis)
    weights = (np.arange(factor) + 0.5) / factor
    fine = np.stack([values * (1 - w) + following * w for w in weights], axis=axis + 1)
    shape = list(values.shape)
    shape[axis] *= factor
    return fine.reshape(shape)


def correct_at_nuclei(
    density: FloatArray, frac_coords: FloatArray, volume: float, electrons: float
) -> tuple[FloatArray, float]:
    """Make a density integrate to the number of electrons by moving the excess at the nuclei only.

    A grid cannot integrate the sharp peaks at the nuclei exactly (the error reaches 10 % for heavy atoms), while it
    is exact in the smooth regions. So the excess is subtracted at the grid point nearest to each nucleus, shared in
    proportion to the density there.

    Parameters
    ----------
    density : (nx, ny, nz)
        Electrons per cubic Angstrom.
    frac_coords : (N, 3)
    volume
        Of the cell, cubic Angstrom.
    electrons
        What the integral must be.

    Returns
    -------
    density : (nx, ny, nz)
        The corrected copy.
    raw_integral
        Electrons before the correction.
    """
    raw_integral = float(density.mean() * volume)
    shape = np.array(density.shape)
    nearest = tuple((np.rint((frac_coords % 1) * shape).astype(int) % shape).T)
    peaks = density[nearest]
    voxel = volume / density.size
    corrected = density.copy()
    corrected[nearest] -= (raw_integral - electrons) * peaks / peaks.sum() / voxel
    return corrected, raw_integral
