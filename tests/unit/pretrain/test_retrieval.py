from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.evaluate import mean_reciprocal_rank, ranks, retrieval


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 999))
def test_ranks_equal_a_literal_count(n: int, seed: int) -> None:
    query, gallery = unit(n, 5, seed=seed), unit(n, 5, seed=seed + 1)
    scores = (query @ gallery.T).numpy()
    expected = [1 + sum(scores[i, j] >= scores[i, i] for j in range(n) if j != i) for i in range(n)]
    assert ranks(query, gallery).tolist() == expected


def test_a_hand_case() -> None:
    gallery = torch.eye(3)
    query = F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0.2, 0.3, 0.1]]), dim=1)
    assert ranks(query, gallery).tolist() == [1, 2, 3]
    present = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)}
    row = retrieval({"a": query, "b": gallery}, present, ks=(1, 2, 5))[0]
    assert (row["query"], row["target"], row["n"]) == ("a", "b", 3)
    assert row["recall_at_1"] == pytest.approx(1 / 3)
    assert row["recall_at_2"] == pytest.approx(2 / 3)
    assert (row["chance_at_1"], row["chance_at_5"]) == (pytest.approx(1 / 3), 1.0)
    assert row["median_rank"] == 2
    assert row["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_perfect_and_swapped_partners() -> None:
    z = unit(20, 8)
    assert ranks(z, z).tolist() == [1] * 20
    assert ranks(z, z[torch.arange(20).roll(1)]).min() > 1


@pytest.mark.parametrize(("n", "dim"), [(2, 4), (37, 19), (256, 128), (1001, 64)])
def test_collapsed_embeddings_score_as_the_worst(n: int, dim: int) -> None:
    z = unit(1, dim).expand(n, dim).contiguous()
    assert ranks(z, z).tolist() == [n] * n
    near = F.normalize(z + 1e-9 * torch.randn(n, dim), dim=1)
    assert ranks(near, near).double().mean() > 0.9 * n


@pytest.mark.parametrize("where", ["query", "gallery", "all"])
def test_embeddings_that_are_not_numbers_never_win(where: str) -> None:
    query, gallery = unit(10, 4), unit(10, 4)
    for z, name in ((query, "query"), (gallery, "gallery")):
        if where in (name, "all"):
            z[3 if where != "all" else slice(None)] = float("nan")
    rank = ranks(query, gallery)
    assert rank[3] == 10
    assert rank.min() >= 1
    if where == "all":
        assert rank.tolist() == [10] * 10


def test_random_embeddings_score_at_chance() -> None:
    n = 400
    z = {"a": unit(n, 64, seed=1), "b": unit(n, 64, seed=2)}
    present = {name: torch.ones(n, dtype=torch.bool) for name in z}
    for row in retrieval(z, present):
        for k in (1, 5, 10):
            chance = float(row[f"chance_at_{k}"])
            assert chance == k / n
            assert abs(float(row[f"recall_at_{k}"]) - chance) < 5 * (chance / n) ** 0.5
        assert abs(float(row["median_rank"]) - n / 2) < 0.15 * n


def test_missing_rows_are_neither_queries_nor_gallery() -> None:
    z = {name: unit(12, 6, seed=seed) for seed, name in enumerate("abc")}
    present = {
        "a": torch.ones(12, dtype=torch.bool),
        "b": torch.arange(12) % 2 == 0,
        "c": torch.arange(12) % 3 == 0,
    }
    for name, mask in present.items():
        z[name][~mask] = float("nan")
    by_pair = {(row["query"], row["target"]): row for row in retrieval(z, present, complete_only=False)}
    assert {pair: row["n"] for pair, row in by_pair.items()} == {
        ("a", "b"): 6, ("b", "a"): 6, ("a", "c"): 4, ("c", "a"): 4, ("b", "c"): 2, ("c", "b"): 2,
    }  # fmt: skip
    assert {row["n"] for row in retrieval(z, present)} == {2}
    pair = present["a"] & present["b"]
    expected = np.mean(1 / ranks(z["a"][pair], z["b"][pair]).numpy())
    assert by_pair["a", "b"]["mrr"] == pytest.approx(expected)


def test_pairs_without_a_choice_are_left_out() -> None:
    z = {"a": unit(5, 4), "b": unit(5, 4, seed=1)}
    present = {"a": torch.ones(5, dtype=torch.bool), "b": torch.tensor([True] + [False] * 4)}
    assert retrieval(z, present) == []
    assert mean_reciprocal_rank([]) == 0.0
