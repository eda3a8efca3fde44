"""MultiMat's discovery by density of states, with the wrong ways to score it."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.evaluations.base import Subject
from finetune.evaluations.discovery import (
    Discovery,
    _chances_of_least,
    best_of_n,
    weights_of,
)
from finetune.loading import Foundation, load_foundation
from finetune.metrics.spectra import integral_scores
from pretrain.config import parse_recipe
from shards.errors import ConfigError
from shards.features.dos import DosFeature
from shards.reader import Dataset
from tests.random_models import write_model
from tests.synthetic import POINTS


def grids(points: int = 201) -> tuple[np.ndarray, np.ndarray]:
    spec = DosFeature(start=-10, stop=10, points=points).spec("dos")
    return np.linspace(-10, 10, points), weights_of(spec, (-5, 5))


def bump(axis: np.ndarray, at: float, width: float = 0.5) -> np.ndarray:
    return np.exp(-(((axis - at) / width) ** 2))


def test_the_score_is_the_integral_that_it_says() -> None:
    axis, weights = grids(2001)
    # two triangles that do not meet: |difference| has twice the area of one
    a, b = np.clip(1 - abs(axis - 1), 0, None), np.clip(1 - abs(axis + 1.5), 0, None)
    assert a @ weights == pytest.approx(1)
    assert integral_scores(a[None], b[None], weights)[0, 0] == pytest.approx(2)
    assert integral_scores(a[None], 1.5 * a[None], weights)[0, 0] == pytest.approx(0.5)
    outside = bump(axis, 8.0, 0.3)
    assert integral_scores(a[None], (a + outside)[None], weights)[0, 0] == pytest.approx(0, abs=1e-9)


def test_the_ends_of_the_window_count_half() -> None:
    """A flat spectrum has as many states as the window is wide; a sum over its points would add a step."""
    _, weights = grids(201)
    assert weights.sum() == pytest.approx(10.0, rel=1e-12)
    assert (weights > 0).sum() * 0.1 == pytest.approx(10.1)


def test_itself_scores_0_and_the_scale_does_not_matter() -> None:
    axis, weights = grids()
    g, h = bump(axis, 0.3)[None], bump(axis, 0.9)[None]
    score = integral_scores(g, h, weights)[0, 0]
    assert integral_scores(g, g, weights)[0, 0] == 0
    assert integral_scores(3 * g, 3 * h, weights)[0, 0] == pytest.approx(score, rel=1e-12)
    # wrong variants: not divided; the modulus of the difference of the integrals; divided by the found spectrum
    area = abs(g - h) @ weights
    assert abs(3 * g - 3 * h) @ weights == pytest.approx(3 * area) and score == pytest.approx((area / (g @ weights))[0])
    assert abs((g - h) @ weights)[0] < 1e-3 < 0.5 < score, "two peaks at different energies are not alike"
    assert integral_scores(g, 2 * h, weights)[0, 0] != pytest.approx(integral_scores(2 * h, g, weights)[0, 0])


def test_best_of_n_is_the_least_so_far_beside_random_and_oracle() -> None:
    axis, weights = grids()
    rng = np.random.default_rng(0)
    known = np.stack([bump(axis, at) for at in rng.uniform(-4, 4, 12)])
    wanted = np.stack([bump(axis, at) for at in (-2.0, 1.0)])
    scores = integral_scores(wanted, known, weights)
    places = np.stack([rng.permutation(12)[:5] for _ in wanted])
    curves = best_of_n(wanted, known, weights, places)
    for t in range(2):
        chosen = scores[t, places[t]]
        np.testing.assert_allclose(curves["model"][t], [chosen[: n + 1].min() for n in range(5)])
        # not the mean of the first N: with more to choose from it cannot become worse
        assert not np.allclose(curves["model"][t, -1], chosen.mean())
        draws = [np.minimum.accumulate(scores[t, rng.permutation(12)[:5]]) for _ in range(4000)]
        np.testing.assert_allclose(curves["random"][t], np.mean(draws, axis=0), rtol=0.05)
    np.testing.assert_allclose(curves["oracle"][:, 0], scores.min(1))
    assert (curves["oracle"] <= curves["random"]).all() and (np.diff(curves["random"], axis=1) < 0).all()
    best = best_of_n(wanted, known, weights, np.argsort(scores, axis=1)[:, :5])
    np.testing.assert_array_equal(best["model"], best["oracle"])


def test_chances_of_the_least_are_those_of_counting() -> None:
    chances = _chances_of_least(9, 6)
    counted = [[comb(8 - i, n - 1) / comb(9, n) if 8 - i >= n - 1 else 0 for n in range(1, 7)] for i in range(9)]
    np.testing.assert_allclose(chances, counted, rtol=1e-9)
    np.testing.assert_allclose(_chances_of_least(100_000, 15).sum(0), 1, rtol=1e-6)


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Foundation:
    """A random model of a vector and a spectrum."""
    tables = {
        "name": "toy", "data": {"path": str(toy_folder), "batch_size": 16},
        "modalities": {"a": {"encoder": {"kind": "vector", "dim": 8}},
                       "dos": {"encoder": {"kind": "spectrum_cnn", "dim": 8}}},
        "projection": {"dim": 8}, "objective": {"kind": "anchored", "anchor": "a"},
    }  # fmt: skip
    dataset = Dataset(toy_folder, ["a", "dos"])
    recipe = parse_recipe(tables, where="test")
    return load_foundation(str(write_model(tmp_path_factory.mktemp("spectral") / "model", recipe, dataset)))


def evaluate(model: Foundation, dataset: Dataset, **options: Any) -> Any:
    options = {"query": "dos", "among": "a", "best_of": 4, "window": (-1.0, 1.0), "grid": (-2.0, 2.0), **options}
    part = options.pop("part", "test")
    return Discovery(**options)(Subject(model=model, dataset=dataset, split="chemical_system", part=part))


def test_candidates_are_training_materials_and_queries_held_out(
    spectral: Foundation, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.search.index import Index

    asked: list[set[str]] = []
    original = Index.build.__func__  # type: ignore[attr-defined]

    def build(cls: Any, foundation: Any, dataset: Dataset, modality: str, **options: Any) -> Index:
        asked.append({dataset.ids[i] for i in options["positions"]})
        return original(cls, foundation, dataset, modality, **options)

    monkeypatch.setattr(Index, "build", classmethod(build))
    found = evaluate(spectral, toy)
    queries, candidates = asked
    ids = toy.manifest.split("chemical_system").ids
    assert queries and queries <= set(ids["test"]) and candidates <= set(ids["train"])
    rows = found.tables["discovery"]
    assert [row["n"] for row in rows] == [1, 2, 3, 4]
    assert all(row["oracle"] <= min(row["model"], row["random"]) for row in rows)
    assert np.isfinite(list(found.values.values())).all()


def test_a_target_without_states_in_the_window_is_skipped(
    spectral: Foundation, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetune.evaluations.discovery as module

    before = evaluate(spectral, toy)
    original, calls = module.spectra, []

    def one_empty(*arguments: Any) -> np.ndarray:
        rows = original(*arguments)
        calls.append(len(rows))
        if len(calls) == 1:
            rows[0] = 0
        return rows

    monkeypatch.setattr(module, "spectra", one_empty)
    after = evaluate(spectral, toy)
    assert "are skipped (1)" in after.text and "are skipped (0)" in before.text
    assert np.isfinite(after.values["score_best_of_4"])
    _, weights = np.ones(POINTS), np.ones(POINTS)
    with np.errstate(invalid="ignore", divide="ignore"):
        assert not np.isfinite(integral_scores(np.zeros((1, POINTS)), np.ones((1, POINTS)), weights)).any()


def test_what_cannot_be_integrated_is_said(spectral: Foundation, toy: Dataset) -> None:
    with pytest.raises(ConfigError, match="does not say where 'dos' begins"):
        evaluate(spectral, toy, grid=None)
    with pytest.raises(ConfigError, match="no spectrum"):
        evaluate(spectral, toy, query="a")
    with pytest.raises(ConfigError, match="training materials are the candidates"):
        evaluate(spectral, toy, part="train")
    with pytest.raises(ConfigError, match=r"window \[7.0, 9.0\] has 0 points"):
        evaluate(spectral, toy, window=(7.0, 9.0))
