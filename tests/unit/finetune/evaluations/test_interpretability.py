"""Purity of neighbours and clusters, beside permuted labels."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluations.base import Subject
from finetune.evaluations.interpretability import Interpretability, cluster_purity, clusters, neighbours
from finetune.loading import Foundation
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import LABEL


def test_what_the_space_is_ordered_by_exceeds_the_permutations_and_a_coin_does_not(
    foundation: Foundation, linear_data: Dataset
) -> None:
    subject = Subject(model=foundation, dataset=linear_data, split="chemical_system")
    table = Interpretability(properties=("crystal_system", "coin"), labels=(LABEL,))(subject).tables["interpretability"]
    rows = {(row["property"], row["measure"]): row for row in table}
    held, label = rows["crystal_system", "neighbour_purity"], rows[LABEL, "neighbour_r2"]
    assert held["n"] == 400 and held["value"] > 0.8 > held["permuted_95"] and held["p"] < 0.01
    assert label["value"] > 0.5 > 0 > label["permuted_95"] and label["p"] < 0.01
    coin = rows["coin", "neighbour_purity"]
    assert coin["p"] > 0.01 and coin["value"] == pytest.approx(0.5, abs=0.05)
    # without its baseline, the purity of what is mostly one class says nothing
    assert coin["permuted"] == pytest.approx(0.5, abs=0.03)


def test_a_sample_is_not_its_own_neighbour() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    near = neighbours(points, 4)
    assert near.shape == (20, 4) and (near != np.arange(20)[:, None]).all()
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    assert (near[:, 0] == cosine.argmax(1)).all()
    assert neighbours(points, 50).shape == (20, 19)


def test_cluster_purity_by_hand_and_of_clusters_that_are_apart() -> None:
    assert cluster_purity(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])) == pytest.approx(4 / 5)
    centres = np.repeat(np.eye(3) * 10, 20, axis=0)
    points = centres + np.random.default_rng(0).normal(size=centres.shape)
    assert cluster_purity(clusters(points, 3, 0), np.repeat([2, 0, 1], 20)) == 1.0
