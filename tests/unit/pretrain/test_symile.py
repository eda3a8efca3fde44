"""Symile equals literal loops over all combinations; the shuffled form is a function of the step."""

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

from benchmarks.toys import symile_xor
from pretrain.objectives import symile
from pretrain.objectives.base import GlobalBatch, Objective
from pretrain.objectives.symile import all_combinations
from shards.errors import ConfigError
from tests.unit.pretrain import invariants
from tests.unit.pretrain.invariants import CHECKS, NAMES, check_half_precision, check_logs, evaluate, failing, make

SHUFFLED: dict[str, object] = {"kind": "symile", "negatives": "shuffled", "chunk": 2}
PAIRS: dict[str, object] = {"kind": "all_pairs"}
TABLES: list[dict[str, object]] = [{"kind": "symile"}, {"kind": "symile", "chunk": 2, "inputs": ["b", "a"]}, SHUFFLED]


def rows(objective: Objective, count: int, seed: int = 0, share: float = 0.85) -> GlobalBatch:
    """As everywhere, but enough rows have all embeddings."""
    return ROWS(objective, count, seed, share)


ROWS = invariants.rows


@pytest.fixture(autouse=True)
def _fuller_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "rows", rows)


@pytest.mark.parametrize("table", TABLES, ids=str)
@pytest.mark.parametrize("check", [*CHECKS.values(), check_logs, check_half_precision])
def test_invariants(table: dict[str, object], check: Callable[[Objective], None]) -> None:
    # in training, shuffles are drawn anew in every call; and they are of places, which a permutation of rows changes
    objective = make(table).train(table is not SHUFFLED)
    if table is SHUFFLED and check is CHECKS["permutation"]:
        pytest.skip("the order of the rows decides what is shuffled where")
    check(objective)


def units(batch: GlobalBatch) -> tuple[list[np.ndarray], list[int]]:
    found = [(z.double() / z.double().norm(dim=1, keepdim=True)).numpy() for z in batch.z.values()]
    held = torch.stack(list(batch.present.values())).all(dim=0)
    return found, held.nonzero().squeeze(1).tolist()


def literal(batch: GlobalBatch, *, temperature: float, cosine: bool = False) -> float:
    """The definition with loops; ``cosine``: with the sum of the pairs' cosines, which sees no higher order."""
    u, valid = units(batch)
    total = 0.0
    for at in range(len(u)):
        others = [m for m in range(len(u)) if m != at]
        for i in valid:
            logits = {}
            for combination in itertools.product(valid, repeat=len(others)):
                vectors = [u[at][i], *(u[m][j] for m, j in zip(others, combination, strict=True))]
                pairs = sum(float(x @ y) for x, y in itertools.combinations(vectors, 2))
                logits[combination] = (pairs if cosine else float(np.prod(vectors, axis=0).sum())) / temperature
            total += math.log(sum(map(math.exp, logits.values()))) - logits[(i,) * len(others)]
    return total / (len(u) * max(1, len(valid)))


@pytest.mark.parametrize("inputs", [["a", "b", "c"], ["c", "a"]])
@pytest.mark.parametrize(("count", "share"), [(0, 1.0), (1, 1.0), (6, 1.0), (9, 0.8)])
def test_the_loss_equals_literal_loops(inputs: list[str], count: int, share: float) -> None:
    objective = make({"kind": "symile", "inputs": inputs, "chunk": 4})
    for seed in range(3):
        batch = rows(objective, count, seed, share)
        assert evaluate(objective, batch)[0] == pytest.approx(literal(batch, temperature=0.1), rel=1e-5, abs=1e-5)


def test_sums_of_pairs_are_another_loss() -> None:
    batch = rows(make({"kind": "symile"}), 9)
    assert abs(literal(batch, temperature=0.1, cosine=True) - literal(batch, temperature=0.1)) > 0.1


def test_two_embeddings_make_it_infonce() -> None:
    batch = rows(make({"kind": "symile", "inputs": ["a", "b"]}), 9)
    loss, _ = evaluate(make({"kind": "symile"}, ("a", "b")), batch)
    assert loss == pytest.approx(evaluate(make({"kind": "all_pairs"}, ("a", "b")), batch)[0], rel=1e-5)


def test_two_flipped_signs_change_nothing_and_one_does() -> None:
    batch = rows(make({"kind": "symile"}), 9)
    loss, _ = evaluate(make({"kind": "symile"}), batch)
    twice = replace(batch, z={**batch.z, "a": -batch.z["a"], "c": -batch.z["c"]})
    assert evaluate(make({"kind": "symile"}), twice)[0] == pytest.approx(loss, rel=1e-6)
    once = replace(batch, z={**batch.z, "a": -batch.z["a"]})
    assert abs(evaluate(make({"kind": "symile"}), once)[0] - loss) > 1e-2


def test_rows_without_all_embeddings_are_left_out() -> None:
    batch = rows(make({"kind": "symile"}), 9)
    kept = torch.stack(list(batch.present.values())).all(dim=0)
    only = replace(
        batch,
        z={name: z[kept] for name, z in batch.z.items()},
        present={name: mask[kept] for name, mask in batch.present.items()},
        local=slice(0, int(kept.sum())),
    )
    assert 1 < int(kept.sum()) < 9
    loss, grads = evaluate(make({"kind": "symile"}), batch)
    assert loss == pytest.approx(evaluate(make({"kind": "symile"}), only)[0], rel=1e-6)
    assert not grads["a"][~kept].any()


def own_count(rows_: Tensor, local: slice) -> Tensor:
    """Every rank sums the terms of all rows."""
    return torch.arange(len(rows_))


def test_wrong_variants_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failing(make({"kind": "symile"})) == set()
    with monkeypatch.context() as patch:
        patch.setattr(symile, "of_rank", own_count)
        assert failing(make({"kind": "symile"})) == {"sharding", "degenerate"}
    with monkeypatch.context() as patch:
        patch.setattr(symile, "positions", lambda mask: torch.arange(len(mask)))
        assert {"padding", "content"} <= failing(make({"kind": "symile"}))


# Shuffled negatives


def test_the_shuffles_are_a_function_of_the_training_step() -> None:
    objective, again = make(SHUFFLED), make(SHUFFLED)
    batch = rows(objective, 9)
    losses = [objective(batch)[0].item() for _ in range(4)]
    assert len(set(losses)) == 4
    assert [again(batch)[0].item() for _ in range(2)] == losses[:2]
    resumed = make(SHUFFLED)
    resumed.load_state_dict(again.state_dict())
    torch.randn(7)  # nobody else's random numbers matter
    assert [resumed(batch)[0].item() for _ in range(2)] == losses[2:]
    objective.eval()
    assert objective(batch)[0].item() == objective(batch)[0].item()


def test_shuffled_candidates_are_combinations_and_each_anchors_own_is_there_once() -> None:
    n = 6
    u = [F.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for _ in range(3)]
    everything = all_combinations(u[0], u[1:]).view(n, n, n)
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        shuffles = [torch.randperm(n, generator=rng) for _ in range(2)]
        chosen = torch.tensor([4, 1])
        together = u[1] * u[2]
        logits = symile.shuffled_combinations(u[0][chosen], chosen, together[chosen], u[1:], shuffles)
        for row, i in enumerate(chosen.tolist()):
            for j in range(n):
                first, second = (int(order[j]) for order in shuffles)
                if j == i:
                    expected = everything[i, i, i]
                else:
                    expected = everything[i, first, second] if (first, second) != (i, i) else -torch.inf
                torch.testing.assert_close(logits[row, j], torch.as_tensor(expected, dtype=torch.float64))


def test_shuffled_negatives_estimate_the_mean_over_all() -> None:
    """exp(logits) averaged over many shuffles: the negatives' part of what ``all`` sums, but for the factor n."""
    n = 5
    u = [F.normalize(torch.randn(n, 4, dtype=torch.float64), dim=1) for _ in range(3)]
    everything, index = all_combinations(u[0], u[1:]).exp(), torch.arange(n)
    total, draws = torch.zeros(n, dtype=torch.float64), 3000
    rng = torch.Generator().manual_seed(0)
    for _ in range(draws):
        shuffles = [torch.randperm(n, generator=rng) for _ in range(2)]
        logits = symile.shuffled_combinations(u[0], index, (u[1] * u[2]), u[1:], shuffles)
        total += logits.fill_diagonal_(-torch.inf).exp().sum(1)
    own = everything.view(n, n, n)[index, index, index]
    expected = (everything.sum(1) - own) * (n - 1) / n**2
    torch.testing.assert_close(total / draws, expected, rtol=0.02, atol=0)


def test_all_combinations_of_four_are_refused() -> None:
    names = ("a", "b", "c", "d")
    with pytest.raises(ConfigError, match="too many negatives"):
        make({"kind": "symile"}, names)
    four = make({**SHUFFLED, "inputs": list(names)}, names)
    loss, _ = evaluate(four, rows(four, 12))
    assert math.isfinite(loss) and loss > 0


def test_exclusive_or_is_learned_and_pairs_cannot() -> None:
    for table, learned in [({"kind": "symile", "chunk": 64}, True), (SHUFFLED | {"chunk": 64}, True), (PAIRS, False)]:
        accuracy = symile_xor.train(table, seed=0, steps=150)
        assert accuracy > 0.95 if learned else accuracy <= 0.77


def test_names() -> None:
    assert make({"kind": "symile"}, NAMES).names == NAMES
