"""Maps of the embedding, and how far they are to be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.evaluations.base import Subject
from finetune.evaluations.latent_map import LatentMap, trustworthiness
from finetune.loading import Foundation
from pretrain.plots import plot
from shards.errors import DataError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import LABEL


def test_trustworthiness_tells_a_faithful_map_from_a_random_one() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 300)
    flat = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = np.concatenate([flat, np.zeros((300, 6))], axis=1)
    assert trustworthiness(vectors, flat, 15) > 0.99
    assert trustworthiness(vectors, rng.normal(size=(300, 2)), 15) == pytest.approx(0.5, abs=0.05)


def test_maps_are_seeded_trusted_and_drawn_in_every_colour(
    foundation: Foundation, linear_data: Dataset, tmp_path: Path
) -> None:
    subject = Subject(model=foundation, dataset=linear_data, split="chemical_system")
    evaluate = LatentMap(colours=("crystal_system", LABEL, "nothing"), parts=("val", "test"))
    findings = evaluate(subject)
    assert set(findings.plots) == {f"{m}_{c}" for m in ("pca", "umap") for c in ("crystal_system", LABEL)}
    for name, draw in findings.plots.items():
        plot(tmp_path / f"{name}.png", draw)
    assert all(0.7 < value <= 1 for value in findings.values.values())
    rows = findings.tables["latent_map"]
    assert len(rows) == 200 and len({row["id"] for row in rows}) == 200
    assert evaluate(subject).tables == findings.tables


def test_too_few_samples_are_refused(foundation: Foundation, linear_data: Dataset) -> None:
    subject = Subject(model=foundation, dataset=linear_data, split="chemical_system")
    with pytest.raises(DataError, match="too few"):
        LatentMap(neighbours=60, parts=("test",))(subject)


def test_t_sne_is_a_map_that_is_asked_for(foundation: Foundation, linear_data: Dataset) -> None:
    subject = Subject(model=foundation, dataset=linear_data, split="chemical_system")
    findings = LatentMap(methods=("tsne",), colours=("side",), parts=("test",), embedding="b")(subject)
    assert set(findings.plots) == {"tsne_side"} and findings.values["trustworthiness/tsne"] > 0.8
    again = LatentMap(methods=("tsne",), colours=("side",), parts=("test",), embedding="b")(subject)
    assert again.tables == findings.tables
