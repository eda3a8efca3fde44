from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

from finetune.density import METHODS, Density
from finetune.evaluations.coverage import separation
from shards.errors import DataError

WIDTH = 256


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    """An embedding of 256 numbers that five causes move; outside, one of them is shifted."""
    rng = np.random.default_rng(0)
    view = rng.normal(size=(5, WIDTH))

    def rows(count: int, shift: float = 0.0) -> np.ndarray:
        causes = rng.normal(size=(count, 5))
        causes[:, 0] += shift
        return causes @ view + 0.1 * rng.normal(size=(count, WIDTH))

    return {"train": rows(400), "inside": rows(200), "outside": rows(200, 4.0)}


def test_a_density_tells_inside_from_outside_after_reduction(parts: dict[str, np.ndarray]) -> None:
    density = Density(parts["train"], components=5)
    assert density.components == 5
    for method in METHODS:
        scores = [density.score(parts[part], method) for part in ("inside", "outside")]
        assert separation(*scores)["auroc_ood"] > 0.95
        # a row of the training part is among the best covered
        assert np.median(density.score(parts["train"], method)) > np.median(scores[1])
    inside = density.score(parts["inside"])
    assert -25 < np.median(inside) < 0


def test_without_reduction_log_densities_are_useless(parts: dict[str, np.ndarray]) -> None:
    raw = KernelDensity(bandwidth="scott").fit(parts["train"]).score_samples(parts["inside"])
    assert np.median(raw) < -200
    reduced = Density(parts["train"], components=5).score(parts["inside"])
    assert np.median(raw) < 20 * np.median(reduced)


def test_directions_without_variance_are_no_dimensions() -> None:
    rng = np.random.default_rng(0)
    flat = np.zeros((60, 8))
    flat[:, :2] = rng.normal(size=(60, 2))
    density = Density(flat + 1e-9 * rng.normal(size=(60, 8)))
    assert density.components == 2
    assert Density(rng.normal(size=(12, 8))).components == 4
    with pytest.raises(DataError, match="no density"):
        Density(flat[:2])
