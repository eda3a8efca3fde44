"""Every registered objective keeps the five invariants; the pair losses equal a literal double loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives import infonce, pairs
from pretrain.objectives.base import OBJECTIVES, Objective
from shards.errors import ConfigError
from tests.unit.pretrain.invariants import (
    CHECKS,
    DIM,
    NAMES,
    Z,
    evaluate,
    make,
    rows,
)

# what an objective needs beside its kind to be built over NAMES; a new one adds itself here
TABLES: dict[str, list[dict[str, object]]] = {
    "anchored": [{"anchor": "a"}, {"anchor": "c", "temperature": {"learn": False, "init": 0.2}}],
    "all_pairs": [{}, {"temperature": {"init": 0.5}}],
}


def cases() -> list[dict[str, object]]:
    return [{"kind": kind, **table} for kind in OBJECTIVES.kinds() for table in TABLES.get(kind, [{}])]


@pytest.mark.parametrize("table", cases(), ids=str)
class TestInvariants:
    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_invariant(self, table: dict[str, object], check: Callable[[Objective], None]) -> None:
        check(make(table))

    def test_a_learned_temperature_has_a_gradient_and_a_fixed_one_is_no_parameter(self, table: dict) -> None:
        objective = make(table)
        learned = table.get("temperature", {}).get("learn", True)
        assert bool(list(objective.parameters())) == learned
        assert all(parameter.ndim == 1 for parameter in objective.parameters()), "DeepSpeed refuses 0 dimensions"
        if learned:
            _, grads = evaluate(objective, *rows(9))
            assert grads["temperature.log_scale"].abs() > 1e-4

    def test_half_precision_embeddings_give_a_full_precision_loss(self, table: dict[str, object]) -> None:
        z, present = rows(9)
        loss, _ = evaluate(make(table), z, present)
        half, _ = evaluate(make(table), {name: value.bfloat16() for name, value in z.items()}, present)
        assert half == pytest.approx(loss, rel=0.02)

    def test_logs_are_shares_whose_mean_over_ranks_is_the_global_value(self, table: dict[str, object]) -> None:
        objective, (z, present) = make(table), rows(10)
        _, whole = objective(z, present, slice(0, 10), 1)
        parts = [objective(z, present, local, 2)[1] for local in (slice(0, 7), slice(7, 10))]
        for name, value in whole.items():
            assert sum(float(part[name]) for part in parts) / 2 == pytest.approx(float(value), abs=1e-6)


# Values


def literal(z: Z, present: Z, chosen: list[tuple[str, str]], weight: float, temperature: float) -> float:
    """The definition, with numpy and loops, in double precision."""
    total = 0.0
    for a, b in chosen:
        valid = [i for i in range(len(present[a])) if present[a][i] and present[b][i]]
        u = [z[a][i].double().numpy() / np.linalg.norm(z[a][i].double().numpy()) for i in valid]
        v = [z[b][i].double().numpy() / np.linalg.norm(z[b][i].double().numpy()) for i in valid]
        n = len(valid)
        for i in range(n):
            row = [float(u[i] @ v[j]) / temperature for j in range(n)]
            column = [float(u[j] @ v[i]) / temperature for j in range(n)]
            total += weight * 0.5 * (math.log(sum(map(math.exp, row))) - row[i]) / n
            total += weight * 0.5 * (math.log(sum(map(math.exp, column))) - column[i]) / n
    return total


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10), st.integers(0, 10**6), st.floats(0.05, 1.0), st.floats(0.2, 1.0))
def test_the_losses_equal_literal_loops(count: int, seed: int, temperature: float, share: float) -> None:
    z, present = rows(count, seed, share)
    settings_ = {"temperature": {"init": temperature}}
    anchored, _ = evaluate(make({"kind": "anchored", "anchor": "b", **settings_}), z, present)
    assert anchored == pytest.approx(
        literal(z, present, [("b", "a"), ("b", "c")], 1.0, temperature), rel=1e-4, abs=1e-5
    )
    everything, _ = evaluate(make({"kind": "all_pairs", **settings_}), z, present)
    expected = literal(z, present, [("a", "b"), ("a", "c"), ("b", "c")], 1 / 3, temperature)
    assert everything == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize(("table", "count"), [({"kind": "anchored", "anchor": "a"}, 2), ({"kind": "all_pairs"}, 1)])
def test_collapsed_embeddings_give_log_n_a_pair(n: int, table: dict[str, object], count: int) -> None:
    z = {name: torch.ones(n, DIM) for name in NAMES}
    present = {name: torch.ones(n, dtype=torch.bool) for name in NAMES}
    assert evaluate(make(table), z, present)[0] == pytest.approx(count * math.log(n), rel=1e-5)


def test_two_modalities_make_the_two_objectives_one() -> None:
    z, present = rows(9, names=("a", "b"))
    anchored = evaluate(make({"kind": "anchored", "anchor": "a"}, ("a", "b")), z, present)
    everything = evaluate(make({"kind": "all_pairs"}, ("a", "b")), z, present)
    assert anchored[0] == everything[0]
    assert all(torch.equal(anchored[1][name], everything[1][name]) for name in anchored[1])


@pytest.mark.parametrize(("n", "floor"), [(128, 0.600), (1024, 2.062)])
def test_the_floor_at_a_fixed_temperature_is_that_of_the_simplex(n: int, floor: float) -> None:
    simplex = torch.eye(n) - 1 / n
    z = {"a": simplex, "b": simplex}
    present = {name: torch.ones(n, dtype=torch.bool) for name in z}
    table = {"kind": "all_pairs", "temperature": {"learn": False, "init": 0.2}}
    assert evaluate(make(table, ("a", "b")), z, present)[0] == pytest.approx(floor, abs=1e-3)


def test_the_length_of_a_vector_does_not_matter() -> None:
    z, present = rows(9)
    objective = make({"kind": "all_pairs"})
    longer = {name: 1000 * value for name, value in z.items()}
    assert evaluate(objective, longer, present)[0] == pytest.approx(evaluate(objective, z, present)[0], abs=1e-5)


def test_the_temperature_starts_where_it_is_set_and_is_clamped() -> None:
    for init in (0.07, 0.2, 1.0):
        _, logs = make({"kind": "all_pairs", "temperature": {"init": init}})(*rows(4), slice(0, 4))
        assert float(logs["temperature"]) == pytest.approx(init, rel=1e-5)
    objective = make({"kind": "all_pairs", "temperature": {"init": 0.2, "min": 0.01}})
    with torch.no_grad():
        objective.temperature.log_scale += 50
    loss, _ = evaluate(objective, *rows(9))
    assert math.isfinite(loss)
    _, logs = objective(*rows(9), slice(0, 9))
    assert float(logs["temperature"]) == pytest.approx(0.01, rel=1e-5)


def test_a_temperature_at_its_limit_can_come_back() -> None:
    objective = make({"kind": "all_pairs", "temperature": {"init": 0.2}})
    with torch.no_grad():
        objective.temperature.log_scale.fill_(math.log(100) + 0.5)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    z, present = rows(9)  # unrelated rows: the best temperature is high
    for _ in range(40):
        optimizer.zero_grad()
        objective(z, present, slice(0, 9))[0].backward()
        optimizer.step()
    _, logs = objective(z, present, slice(0, 9))
    assert float(logs["temperature"]) > 0.05


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "anchored", "anchor": "aa"}, "did you mean 'a'|known: a, b, c"),
        ({"kind": "anchored", "ancor": "a"}, "did you mean 'anchor'"),
        ({"kind": "all_pair"}, "did you mean 'all_pairs'"),
        ({"kind": "all_pairs", "temperature": {"init": 0}}, "greater than 0"),
        ({"kind": "all_pairs", "temperature": {"inti": 1}}, "did you mean 'init'"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(table)


@pytest.mark.parametrize("table", cases(), ids=str)
def test_one_modality_alone_is_refused(table: dict[str, object]) -> None:
    if "anchor" in table:
        table = {**table, "anchor": "a"}
    with pytest.raises(ConfigError):
        make(table, ("a",))


# Wrong variants: each must be caught by the invariants


def local_mean(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    """Divide by the valid rows of this rank, the single easiest mistake to make."""
    found = valid.nonzero().squeeze(1)
    mine = int(((found >= local.start) & (found < local.stop)).sum())
    right = infonce.info_nce(a, b, valid, scale=scale, local=local, world=world)
    return right * len(found) / (world * max(mine, 1))


def missing_as_negatives(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    """Leave the rows that lack a modality in the denominator."""
    u, v = F.normalize(a, dim=1), F.normalize(b, dim=1)
    mine = valid.nonzero().squeeze(1)
    mine = mine[(mine >= local.start) & (mine < local.stop)]
    if len(mine) == 0:
        return (u.sum() + v.sum() + scale.sum()) * 0.0
    both = [F.cross_entropy(scale * (x[mine] @ y.T), mine, reduction="sum") for x, y in ((u, v), (v, u))]
    return 0.5 * sum(both) * world / int(valid.sum())


def placeholders_counted(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    """Treat every row as valid."""
    return infonce.info_nce(a, b, torch.ones_like(valid), scale=scale, local=local, world=world)


def plain_mean(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    """Divide by all rows, valid or not."""
    right = infonce.info_nce(a, b, valid, scale=scale, local=local, world=world)
    return right * valid.sum() / len(valid)


def no_guard(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int = 1) -> Tensor:
    """Take the mean without asking whether there is a row."""
    u, v = F.normalize(a[valid], dim=1), F.normalize(b[valid], dim=1)
    scores, own = scale * (u @ v.T), torch.arange(len(u))
    return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (local_mean, {"sharding"}),
        (missing_as_negatives, {"padding", "content", "degenerate"}),
        (placeholders_counted, {"padding", "content", "degenerate"}),
        (plain_mean, {"padding", "degenerate"}),
        (no_guard, {"degenerate"}),
    ],
)
def test_wrong_variants_are_caught(wrong: Callable, caught: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "info_nce", wrong)
    objective = make({"kind": "all_pairs"})
    failed = set()
    for name, check in CHECKS.items():
        try:
            check(objective)
        except AssertionError:
            failed.add(name)
    assert failed == caught
