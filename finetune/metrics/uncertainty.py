"""Metrics of how sure a predictor says it is."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import betabinom, norm

from pretrain.plots import Row

BINS = 15
# of the area between two curves
GRID = np.linspace(0, 1, 1001)


def gaussian(value: np.ndarray, std: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure standard deviations (N,) of predictions (N,) of values (N,), all above 0.

    Returns
    -------
    dict of str to float
        ``coverage_1std``: share of errors within one (0.683 of a normal distribution); ``rms_z``: root mean square of
        the error in standard deviations, 1 is right; ``nll``: mean negative log likelihood of a normal distribution,
        in nats of the unit; ``sharpness``: root mean square of the standard deviation, in the unit;
        ``miscalibration_area``, see `miscalibration_area`.
    """
    z = (truth - value) / std
    return {
        "coverage_1std": float((np.abs(z) <= 1).mean()),
        "rms_z": float(np.sqrt(np.square(z).mean())),
        "nll": float(-norm.logpdf(truth, value, std).mean()),
        "sharpness": float(np.sqrt(np.square(std).mean())),
        "miscalibration_area": miscalibration_area(z),
    }


def observed(z: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the share of errors within the central interval of each level (L,), z (N,) in standard deviations."""
    needed = np.sort(2 * norm.cdf(np.abs(z)) - 1)
    return np.searchsorted(needed, levels, side="right") / len(z)


def miscalibration_area(z: np.ndarray) -> float:
    """Return the area between observed and promised coverage of central intervals; 0 is right, 0.5 the worst.

    Kuleshov et al., ICML 2018; Tran et al., Mach. Learn.: Sci. Technol. 1 (2020) 025006.
    """
    return float(np.trapezoid(np.abs(observed(z, GRID) - GRID), GRID))


def coverage_range(calibrated: int, tested: int, level: float, *, inside: float = 0.95) -> tuple[float, float]:
    """Return between which shares the coverage of a conformal interval lies with a probability of ``inside``.

    For exchangeable rows without ties, n of which calibrated it and m were tested, the number that is covered is
    beta-binomial with m, k and n + 1 - k, k = ceil((n + 1) level) (Angelopoulos and Bates, arXiv:2107.07511).
    Coverage outside of it tells of a shift between the two.
    """
    k = math.ceil((calibrated + 1) * level - 1e-9)
    if k > calibrated or not tested:
        return 1.0, 1.0
    low, high = betabinom(tested, k, calibrated + 1 - k).interval(inside)
    return float(low) / tested, float(high) / tested


def classes(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure probabilities (N, C) against class numbers (N,).

    Returns
    -------
    dict of str to float
        ``ece``: expected calibration error in 15 bins of equal width, of the probability of the likeliest class (of
        two classes: of class 1; Guo et al., ICML 2017); ``brier``: mean squared error of the probabilities, summed
        over classes (of two: of class 1); ``nll``: mean negative log likelihood in nats.
    """
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    count = probabilities.shape[1]
    p, y = torch.from_numpy(probabilities).float(), torch.from_numpy(truth).long()
    squared = np.square(probabilities - np.eye(count)[truth.astype(int)]).sum(1).mean()
    if count == 2:
        ece, brier = binary_calibration_error(p[:, 1], y, n_bins=BINS, norm="l1"), squared / 2
    else:
        ece, brier = multiclass_calibration_error(p, y, num_classes=count, n_bins=BINS, norm="l1"), squared
    likelihood = np.clip(probabilities[np.arange(len(truth)), truth.astype(int)], 1e-12, 1)
    return {"ece": float(ece), "brier": float(brier), "nll": float(-np.log(likelihood).mean())}


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Row]:
    """Return, for each bin of equal width that has rows, the mean confidence and the share that is right."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "bin": (b + 0.5) / bins,
            "rows": int((place == b).sum()),
            "confidence": float(confidence[place == b].mean()),
            "right": float(right[place == b].mean()),
        }
        for b in np.unique(place)
    ]


def risk_coverage(uncertainty: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage (N,), 1/N to 1, and the mean loss (N,) of that share of the rows of least uncertainty.

    Rows of the same uncertainty count with their mean loss: a constant says nothing, whatever the order of the rows.
    """
    _, place, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=loss) / counts
    ordered = np.repeat(means, counts)
    rows = np.arange(1, len(loss) + 1)
    return rows / len(loss), np.cumsum(ordered) / rows


def aurc(uncertainty: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    """Return the area under the risk-coverage curve (Geifman et al., ICLR 2019).

    Returns
    -------
    dict of str to float
        ``aurc``; ``aurc_oracle``, where rows are ordered by their loss; ``aurc_random``, the mean loss.
    """
    return {
        "aurc": float(risk_coverage(uncertainty, loss)[1].mean()),
        "aurc_oracle": float(risk_coverage(loss, loss)[1].mean()),
        "aurc_random": float(loss.mean()),
    }
