"""GRAM: the identities of the volume, and the loss against literal determinants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives import gram
from pretrain.objectives.base import GlobalBatch, Objective
from pretrain.objectives.gram import determinants, volumes
from shards.errors import ConfigError
from tests.unit.pretrain.invariants import (
    CHECKS,
    NAMES,
    check_half_precision,
    check_logs,
    evaluate,
    failing,
    make,
    rows,
)

TABLES: list[dict[str, object]] = [
    {"kind": "gram", "anchor": "a"},
    {"kind": "gram", "anchor": "b", "chunk": 2, "label_smoothing": 0.0},
    {"kind": "gram", "anchor": "a", "inputs": ["c", "a"], "temperature": {"learn": False, "init": 0.2}},
]


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("check", [*CHECKS.values(), check_logs, check_half_precision])
def test_invariants(table: dict[str, object], check: Callable[[Objective], None]) -> None:
    check(make(table))


# The volume


def spanned(*vectors: Tensor) -> float:
    return volumes(vectors[0][None], torch.stack(vectors[1:])[None]).item()


def random_units(count: int, dim: int = 7, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_identities() -> None:
    x, y, w = random_units(3)
    assert spanned(*torch.eye(4)) == pytest.approx(1, abs=1e-5)
    assert spanned(x, y) == pytest.approx(math.sqrt(1 - float(x @ y) ** 2), abs=1e-5)
    # documented limits of the method: opposite vectors, and any two that coincide
    assert spanned(x, -x) == pytest.approx(0, abs=2e-3)
    for order in itertools.permutations([x, x, w]):
        assert spanned(*order) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_volumes_equal_the_determinant_of_the_whole_gram_matrix_in_any_order(count: int) -> None:
    vectors = random_units(count)
    gram_matrix = (vectors @ vectors.T).double()
    expected = math.sqrt(torch.linalg.det(gram_matrix).item())
    for order in itertools.permutations(range(count)):
        assert spanned(*vectors[list(order)]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_determinant_and_adjugate(size: int) -> None:
    matrices = torch.randn(6, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, adjugate = determinants(matrices)
    torch.testing.assert_close(found, torch.linalg.det(matrices))
    torch.testing.assert_close(adjugate, torch.linalg.det(matrices)[:, None, None] * matrices.inverse())


def test_small_volumes_are_exact_in_single_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 1, 32, generator=rng) + 0.1 * torch.randn(50, 4, 32, generator=rng)
    units = F.normalize(vectors, dim=2)
    whole = units.double() @ units.double().mT
    expected = (torch.linalg.det(whole) + gram.EPSILON).sqrt()
    found = volumes(units[:, 0], units[:, 1:]).diagonal().double()
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", ["same", "opposite", "two of three", "all three"])
def test_the_gradient_is_finite_where_vectors_are_dependent(kind: str) -> None:
    x, y, w = random_units(3)
    anchor, members = {
        "same": (x, [x]),
        "opposite": (x, [-x]),
        "two of three": (x, [y, y]),
        "all three": (w, [w, w]),
    }[kind]
    z = [vector.clone().requires_grad_() for vector in (anchor, *members)]
    units = [F.normalize(vector, dim=0) for vector in z]
    volumes(units[0][None], torch.stack(units[1:])[None]).sum().backward()
    for vector in z:
        assert vector.grad is not None
        assert vector.grad.isfinite().all()
        assert vector.grad.norm() < 10


def test_rounding_makes_the_plain_root_no_number() -> None:
    x, y = (random_units(200, dim=32, seed=seed).requires_grad_() for seed in (0, 1))
    between = F.normalize(x + y, dim=1)
    flat = torch.stack([x, y, between], dim=1)
    assert not torch.linalg.det(flat @ flat.mT).sqrt().isfinite().all()
    own = volumes(between, torch.stack([x, y], dim=1)).diagonal()
    own.sum().backward()
    assert own.detach().max() < 2e-3
    for vectors in (x, y):
        assert vectors.grad is not None
        assert vectors.grad.norm(dim=1).max() < 10


def test_a_small_volume_is_still_pulled_to_zero() -> None:
    x, y, w = random_units(3)
    close = F.normalize(x + 0.05 * y, dim=0)
    z = [vector.clone().requires_grad_() for vector in (x, close, w)]
    units = [F.normalize(vector, dim=0) for vector in z]
    before = volumes(units[0][None], torch.stack(units[1:])[None])
    before.sum().backward()
    moved = [F.normalize(vector.detach() - 0.01 * vector.grad, dim=0) for vector in z]  # type: ignore[operator]
    assert spanned(*moved) < before.item()


# The loss


def literal(batch: GlobalBatch, anchor: str, *, temperature: float, smoothing: float, own_subset: bool = True) -> float:
    """The definition with loops; not ``own_subset``: volumes of different numbers of vectors are compared."""
    others = [name for name in batch.z if name != anchor]
    unit = {name: (z.double() / z.double().norm(dim=1, keepdim=True)).numpy() for name, z in batch.z.items()}
    held = {name: mask.numpy() for name, mask in batch.present.items()}
    count = len(held[anchor])
    sets = [tuple(name for name in others if held[name][i]) for i in range(count)]
    valid = [i for i in range(count) if held[anchor][i] and sets[i]]

    def logit(i: int, j: int, names: tuple[str, ...]) -> float:
        vectors = np.stack([unit[anchor][i], *(unit[name][j] for name in names)])
        return -math.sqrt(max(np.linalg.det(vectors @ vectors.T), 0) + gram.EPSILON) / temperature

    def entropy(logits: list[float], own: int) -> float:
        total = math.log(sum(map(math.exp, logits)))
        return total - (1 - smoothing) * logits[own] - smoothing * float(np.mean(logits))

    losses = []
    for i in valid:
        if own_subset:
            candidates = [j for j in valid if set(sets[i]) <= set(sets[j])]
            to_tuples = [logit(i, j, sets[i]) for j in candidates]
        else:
            candidates = valid
            to_tuples = [logit(i, j, sets[j]) for j in candidates]
        to_anchors = [logit(j, i, sets[i]) for j in candidates]
        at = candidates.index(i)
        losses.append(0.5 * (entropy(to_tuples, at) + entropy(to_anchors, at)))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (7, 1.0), (9, 0.6), (9, 0.4)])
def test_the_loss_equals_literal_determinants(smoothing: float, count: int, share: float) -> None:
    objective = make({"kind": "gram", "anchor": "b", "label_smoothing": smoothing, "chunk": 3})
    for seed in range(3):
        batch = rows(objective, count, seed=seed, share=share)
        expected = literal(batch, "b", temperature=0.07, smoothing=smoothing)
        assert evaluate(objective, batch)[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_volumes_of_different_numbers_of_vectors_are_not_compared() -> None:
    objective = make({"kind": "gram", "anchor": "a"})
    batch = rows(objective, 12, share=0.6)
    mixed = literal(batch, "a", temperature=0.07, smoothing=0.1, own_subset=False)
    assert abs(mixed - evaluate(objective, batch)[0]) > 0.1
    # a row with all: what it lacks can only be on the other side
    one = batch.present["a"].clone()
    whole = replace(batch, present={"a": one, "b": one, "c": one})
    complete = literal(whole, "a", temperature=0.07, smoothing=0.1, own_subset=False)
    assert evaluate(objective, whole)[0] == pytest.approx(complete, abs=1e-4)


def test_the_order_of_the_others_does_not_matter() -> None:
    batch = rows(make(TABLES[0]), 9)
    losses = {
        evaluate(make({"kind": "gram", "anchor": "a", "inputs": list(order)}), batch)[0]
        for order in itertools.permutations(NAMES)
    }
    assert max(losses) - min(losses) < 1e-6


def test_wrong_variants_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(make(TABLES[0])) == set()
    # every rank sums the terms of all rows
    with monkeypatch.context() as patch:
        patch.setattr(gram, "of_rank", lambda found, local: torch.arange(len(found)))
        assert failing(make(TABLES[0])) == {"sharding"}
    # every row counts as a candidate
    with monkeypatch.context() as patch:
        patch.setattr(gram, "positions", lambda mask: torch.arange(len(mask)))
        assert {"padding", "content"} <= failing(make(TABLES[0]))


def test_an_anchor_that_is_not_among_the_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of the inputs"):
        make({"kind": "gram", "anchor": "a", "inputs": ["b", "c"]})
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        make({"kind": "gram", "anchor": "aa"})
