"""TensorCLIP equals literal loops over the cube, and keeps the five invariants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.objectives import multiway
from pretrain.objectives.base import GlobalBatch, Logs, Objective
from pretrain.objectives.tensor import TensorClip, is_negative
from shards.errors import ConfigError
from tests.unit.pretrain.invariants import CHECKS, DIM, NAMES, check_half_precision, check_logs, evaluate, make, rows

TABLES: list[dict[str, object]] = [
    {"kind": "tensor"},
    {"kind": "tensor", "chunk": 2, "temperature": {"init": 0.5}},
    {"kind": "tensor", "positives": "diagonal", "inputs": ["c", "a", "b"]},
]


class Smaller(Objective):
    """An objective over a hundred: the loss is about 60, and the checks compare with an absolute 1e-6."""

    def __init__(self, inner: Objective) -> None:
        super().__init__(inner.config, inner.modalities)
        self.inner = inner

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        loss, logs = self.inner(batch)
        return loss / 100, {name: value / 100 for name, value in logs.items()}


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("check", [*CHECKS.values(), check_logs, check_half_precision])
def test_invariants(table: dict[str, object], check: Callable[[Objective], None]) -> None:
    check(Smaller(make(table)))


def weight(i: int, j: int, k: int, positives: str = "graded") -> float:
    equal = (i == j) + (i == k) + (j == k)
    return {3: 1.0, 1: 0.5 if positives == "graded" else 0.0, 0: 0.0}[equal]


def literal(batch: GlobalBatch, *, temperature: float, positives: str = "graded", transposed: bool = True) -> float:
    """The definition with loops; not ``transposed``: every axis uses the mask of the first, as published."""
    names = list(batch.z)
    count = len(batch.present["a"])
    unit = [(batch.z[name].double() / batch.z[name].double().norm(dim=1, keepdim=True)).numpy() for name in names]
    held = [batch.present[name].numpy() for name in names]
    total = 0.0
    for axis in range(3):
        order = [axis, (axis + 1) % 3, (axis + 2) % 3]
        a, b, c = (unit[m] for m in order)
        pa, pb, pc = (held[m] for m in (order if transposed else range(3)))
        terms = []
        for i in range(count):
            cells = [(j, k) for j, k in itertools.product(range(count), repeat=2) if pa[i] and pb[j] and pc[k]]
            t = {(j, k): (a[i] * b[j] * c[k]).sum() / temperature for j, k in cells}
            w = {(j, k): weight(i, j, k, positives) for j, k in cells}
            if not any(w.values()):
                continue
            wrong = [t[cell] for cell in cells if not w[cell]]
            push = math.log(sum(map(math.exp, wrong))) if wrong else None
            terms.append(0.0 if push is None else sum(w[cell] * (push - t[cell]) for cell in cells))
        total += float(np.mean(terms)) if terms else 0.0
    return total


@pytest.mark.parametrize("positives", ["graded", "diagonal"])
@pytest.mark.parametrize(("count", "share"), [(1, 1.0), (2, 1.0), (6, 1.0), (6, 0.6), (9, 0.5), (4, 0.3)])
def test_the_loss_equals_literal_loops(positives: str, count: int, share: float) -> None:
    objective = make({"kind": "tensor", "positives": positives, "chunk": 4})
    for seed in range(4):
        batch = rows(objective, count, seed=seed, share=share)
        expected = literal(batch, temperature=0.2, positives=positives)
        assert evaluate(objective, batch)[0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_mask_of_the_first_axis_is_wrong_for_the_others() -> None:
    batch = rows(make({"kind": "tensor"}), 9)
    wrong = literal(batch, temperature=0.2, transposed=False)
    assert abs(wrong - literal(batch, temperature=0.2)) > 0.1
    whole = replace(batch, present={name: torch.ones(9, dtype=torch.bool) for name in NAMES})
    assert literal(whole, temperature=0.2, transposed=False) == pytest.approx(literal(whole, temperature=0.2))


def test_the_census_of_the_cube() -> None:
    index = torch.arange(6)
    cells = list(itertools.product(range(6), repeat=3))
    census = {w: sum(weight(*cell) == w for cell in cells) for w in (1.0, 0.5, 0.0)}
    assert census == {1.0: 6, 0.5: 90, 0.0: 120}
    assert int(is_negative(index, index, index, "graded").sum()) == 120
    assert int(is_negative(index, index, index, "diagonal").sum()) == 210
    assert not any(is_negative(index, index, index, "graded")[cell] for cell in cells if weight(*cell))


def no_guard(a: Tensor, numbers: Tensor, b: object, c: object, positives: str) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of nothing, as published."""
    cube = torch.full((len(numbers), 1), -torch.inf) + 0.0 * a.sum()
    return cube.logsumexp(dim=1), torch.ones(len(numbers), dtype=torch.bool)


def test_a_row_without_a_negative_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make({"kind": "tensor"})
    batch = rows(objective, 2, share=2.0)
    loss, grads = evaluate(objective, batch)
    assert loss == 0
    assert not any(grad.any() for grad in grads.values())
    monkeypatch.setattr("pretrain.objectives.tensor.negatives", no_guard)
    assert not math.isfinite(evaluate(objective, batch)[0])


def test_the_loss_can_be_negative_and_a_learned_temperature_falls() -> None:
    objective = make({"kind": "tensor", "positives": "diagonal", "temperature": {"learn": True, "init": 0.2}})
    batch = rows(objective, DIM, share=2.0)
    same = replace(batch, z={name: torch.eye(DIM) for name in NAMES})
    loss, grads = evaluate(objective, same)
    assert loss == pytest.approx(3 * (math.log(DIM * DIM - 1) - 5), rel=1e-5)
    assert grads["temperature.log_scale"] < 0
    assert not list(make({"kind": "tensor"}).parameters())


def test_no_more_than_a_chunk_of_the_cube_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    biggest = []

    def watched(tensor: Tensor) -> Tensor:
        biggest.append(tensor.numel())
        return tensor

    objective = make({"kind": "tensor", "chunk": 3})
    batch = rows(objective, 24, share=2.0)
    with torch.autograd.graph.saved_tensors_hooks(watched, lambda tensor: tensor):
        loss, _ = objective(replace(batch, z={name: z.requires_grad_() for name, z in batch.z.items()}))
    assert max(biggest) < 24 * 24
    biggest.clear()
    monkeypatch.setattr(multiway, "checkpoint", lambda term, part, **_: term(part))
    with torch.autograd.graph.saved_tensors_hooks(watched, lambda tensor: tensor):
        kept, _ = objective(batch)
    assert max(biggest) == 3 * 24 * 24
    assert kept.item() == loss.item()


def test_other_than_three_embeddings_are_refused() -> None:
    with pytest.raises(ConfigError, match="exactly 3 embeddings, here are 2"):
        make({"kind": "tensor"}, ("a", "b"))
    with pytest.raises(ConfigError, match="exactly 3"):
        make({"kind": "tensor"}, ("a", "b", "c"), {"joint": ("a", "b")})
    chosen = make({"kind": "tensor", "inputs": ["a", "b", "joint"]}, NAMES, {"joint": ("a", "b")})
    assert isinstance(chosen, TensorClip)
    assert chosen.names == ("a", "b", "joint")
    with pytest.raises(ConfigError, match="did you mean 'joint'"):
        make({"kind": "tensor", "inputs": ["a", "b", "jiont"]}, NAMES, {"joint": ("a", "b")})
