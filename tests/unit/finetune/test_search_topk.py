"""Exact top-k against a full sort, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.search.approximate import Approximate
from finetune.search.index import Index
from finetune.search.topk import exact_topk
from shards.errors import ConfigError, DataError
from shards.schema import Sample


def unit(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count: int, clusters: int = 200, dim: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = unit(clusters, dim, seed)[rng.integers(clusters, size=count)] + 0.15 * rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_sort(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The definition: a stable sort of float64 products."""
    products = np.stack([(vectors.astype(np.float64) * q.astype(np.float64)).sum(1) for q in queries])
    return np.argsort(-products, axis=1, kind="stable")[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 90), queries=st.integers(1, 5), k=st.integers(1, 100),
    copies=st.integers(1, 9), budget=st.integers(1, 400), seed=st.integers(0, 5),
)  # fmt: skip
def test_it_is_the_stable_sort_for_any_chunks_and_ties(
    count: int, queries: int, k: int, copies: int, budget: int, seed: int
) -> None:
    # `copies` different vectors alone: ties are the rule
    vectors = unit(copies, 7, seed)[np.random.default_rng(seed).integers(copies, size=count)]
    asked = unit(queries, 7, seed + 100)
    scores, places = exact_topk(vectors, asked, k, budget=budget)
    np.testing.assert_array_equal(places, by_sort(vectors, asked, k))
    assert (np.diff(scores, axis=1) <= 0).all()


def test_neither_the_batch_nor_the_chunk_changes_a_bit() -> None:
    vectors, asked = clustered(5000), clustered(40, seed=3)
    scores, places = exact_topk(vectors, asked, 10)
    for budget in (300, 7001, 10**6):
        one = [exact_topk(vectors, q[None], 10, budget=budget) for q in asked]
        np.testing.assert_array_equal(np.concatenate([p for _, p in one]), places)
        np.testing.assert_array_equal(np.concatenate([s for s, _ in one]), scores)


def test_float32_products_alone_would_order_equal_vectors_wrongly() -> None:
    """The wrong variant: near ties that float32 cannot tell apart."""
    asked = unit(1, 4096)
    vectors = (asked + 1e-6 * np.random.default_rng(0).normal(size=(400, 4096))).astype(np.float32)
    right = by_sort(vectors, asked, 50)
    np.testing.assert_array_equal(exact_topk(vectors, asked, 50)[1], right)
    wrong = np.argsort(-(vectors @ asked[0]), kind="stable")[:50]
    assert not np.array_equal(wrong, right[0])


def test_the_products_are_never_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = unit(3000, 8), unit(300, 8, 1)
    largest = 0
    original = np.ndarray.__matmul__

    class Watched(np.ndarray):
        def __matmul__(self, other: np.ndarray) -> np.ndarray:
            nonlocal largest
            found = original(np.asarray(self), np.asarray(other))
            largest = max(largest, found.size)
            return found

    exact_topk(vectors, asked.view(Watched), 5, budget=20_000)
    assert 0 < largest <= 20_000 < len(vectors) * len(asked)


def test_barred_and_allowed_rows() -> None:
    vectors = unit(50)
    allowed = np.arange(50) % 2 == 0
    _, places = exact_topk(vectors, vectors[:3], 50, barred=[np.array([0, 4])] * 3, allowed=allowed, budget=30)
    for row in places:
        found = row[row >= 0]
        assert set(found) == set(range(0, 50, 2)) - {0, 4}
        assert (row[len(found) :] == -1).all()


def index(vectors: np.ndarray, **options: object) -> Index:
    samples = [
        Sample(id=f"m{i}", group=f"g{i // 3}", labels={"gap_ev": i / 10} if i % 2 else {}, tags={"formula": "GaN"})
        for i in range(len(vectors))
    ]
    return Index(vectors, samples, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("faiss", ["never", "always"])
def test_its_own_id_and_its_group_are_excluded(faiss: str) -> None:
    vectors = np.repeat(clustered(1000, clusters=30), 3, axis=0)
    whole = index(vectors, faiss=faiss)
    samples, queries = list(whole.samples[:60]), vectors[:60]
    plain = whole.nearest_of(queries, 3)
    assert sum(s.id in {h.id for h in hits} for s, hits in zip(samples, plain, strict=True)) > 50
    own = whole.nearest_of(queries, 3, samples=samples, exclude_self=True)
    group = whole.nearest_of(queries, 3, samples=samples, exclude_group=True)
    groups = {s.id: s.group for s in whole.samples}
    for sample, a, b in zip(samples, own, group, strict=True):
        assert len(a) == len(b) == 3
        assert sample.id not in {h.id for h in a} and groups[a[0].id] == sample.group
        assert sample.group not in {groups[h.id] for h in b}
    alike = whole.nearest_of(queries, 3, exclude_duplicates=True)
    assert all(hits[0].similarity < 1 - 1e-6 for hits in alike)
    with pytest.raises(ConfigError, match="not known"):
        whole.nearest_of(queries, exclude_self=True)


def test_recall_of_an_orthogonal_transform_is_one() -> None:
    """Both sides turned the same way change no similarity; one side alone is chance."""
    vectors = unit(400, 32)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(32, 32)))[0].astype(np.float32)
    turned = index(vectors @ turn)
    own = np.arange(400)
    for k in (1, 5):
        assert ((turned.places(vectors @ turn, k)[1] == own[:, None]).any(1)).mean() == 1
    wrong = (turned.places(vectors, 1)[1][:, 0] == own).mean()
    assert wrong < 0.05


def test_an_approximate_search_finds_nearly_all_of_clustered_data() -> None:
    vectors, queries = clustered(20_000), clustered(200, seed=0)
    right = exact_topk(vectors, queries, 10)[1]
    recalls = {}
    for kind, effort in (("ivf", None), ("ivf", 1), ("hnsw", None)):
        found = Approximate(vectors, kind, effort).candidates(queries, 10)  # type: ignore[arg-type]
        recalls[kind, effort] = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])
    print(recalls)
    assert recalls["ivf", None] > 0.95 and recalls["hnsw", None] > 0.95
    assert recalls["ivf", 1] < recalls["ivf", None], "one cell alone must miss some"


def test_approximate_scores_are_exact_and_where_is_never_approximate() -> None:
    from finetune.search.where import Where

    vectors = clustered(3000)
    fast, exact = index(vectors, faiss="always"), index(vectors, faiss="never")
    scores, places = fast.places(vectors[:20], 5)
    np.testing.assert_array_equal(places[:, 0], exact.places(vectors[:20], 1)[1][:, 0])
    np.testing.assert_array_equal(scores[:, 0], exact.places(vectors[:20], 1)[0][:, 0])
    few = Where(labels={"gap_ev": (0.05, 0.35)})
    assert {hit.id for hit in fast.nearest(vectors[900], 5, where=few)} == {"m1", "m3"}


def test_without_faiss_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r'pip install "matloom\[faiss\]"'):
        index(unit(100), faiss="always").nearest(unit(1)[0])
    assert len(index(unit(100)).nearest(unit(1)[0], 3)) == 3


def test_a_query_of_another_width_or_without_a_value_is_refused() -> None:
    whole = index(unit(10))
    with pytest.raises(ConfigError, match="8 numbers"):
        whole.nearest(unit(1, 8)[0])
    with pytest.raises(DataError, match="NaN"):
        whole.nearest(np.full(16, np.nan, np.float32))
