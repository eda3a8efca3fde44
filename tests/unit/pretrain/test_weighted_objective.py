"""A weighted sum of objectives is that sum, and learned weights go to their optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.objectives.weighted import Uncertainty, WeightedSum
from shards.errors import ConfigError
from tests.unit.pretrain import invariants
from tests.unit.pretrain.invariants import CHECKS, FUSIONS, Z, evaluate, make, rows

ANCHORED = {"kind": "anchored", "anchor": "a"}
ALL_PAIRS = {"kind": "all_pairs", "pair_loss": {"kind": "ntxent", "mask_same_group": True}}
TABLES = [
    {
        "kind": "weighted_sum",
        "weights": weights,
        "terms": [{"weight": 2.0, "objective": ANCHORED}, {"objective": other}],
    }
    for weights in ("fixed", "uncertainty")
    for other in (ALL_PAIRS, ANCHORED)
]


def built(table: dict) -> WeightedSum:
    objective = make(table)
    assert isinstance(objective, WeightedSum)
    return objective


@pytest.mark.parametrize("table", TABLES, ids=str)
class TestInvariants:
    @pytest.mark.parametrize("name", CHECKS)
    def test_invariant(self, table: dict, name: str) -> None:
        CHECKS[name](built(table))

    def test_logs_and_half_precision(self, table: dict) -> None:
        invariants.check_logs(built(table))
        invariants.check_half_precision(built(table))

    def test_parameters_have_one_dimension_and_a_gradient(self, table: dict) -> None:
        objective = built(table)
        parameters = dict(objective.named_parameters())
        assert len(parameters) == (4 if table["weights"] == "uncertainty" else 2)
        _, grads = evaluate(objective, rows(objective, 9))
        for name, parameter in parameters.items():
            assert parameter.shape == (1,) and grads[name].abs() > 1e-4, name


def test_fixed_weights() -> None:
    objective = built(TABLES[0])
    batch = rows(objective, 12)
    one, one_grads = evaluate(make(ANCHORED), batch)
    other, other_grads = evaluate(make(ALL_PAIRS), batch)
    loss, grads = evaluate(objective, batch)
    assert loss == pytest.approx(2 * one + other, rel=1e-6)
    for name in batch.z:
        invariants.close(grads[name], 2 * one_grads[name] + other_grads[name])


def test_names_groups_and_logs() -> None:
    terms = [{"objective": ANCHORED}, {"objective": {"kind": "fused_anchor"}}]
    objective = make({"kind": "weighted_sum", "terms": terms}, ("a", "b"), {"joint": ("a", "b")})
    assert objective.names == ("a", "b", "joint") and not objective.needs_groups
    assert built(TABLES[0]).needs_groups
    _, logs = objective(rows(objective, 9))
    assert set(logs) == {
        "loss/anchored", "anchored/loss/a-b", "anchored/loss/a-joint", "anchored/temperature",
        "loss/fused_anchor", "fused_anchor/loss/joint-a", "fused_anchor/loss/joint-b", "fused_anchor/temperature",
    }  # fmt: skip
    _, logs = built(TABLES[3])(rows(objective := built(TABLES[3]), 9))
    assert {"loss/anchored-1", "anchored-2/temperature", "weight/anchored-1"} <= set(logs)
    assert float(logs["weight/anchored-2"]) == pytest.approx(1.0)


def test_anchors_of_all_terms() -> None:
    terms = [{"objective": {"kind": "all_pairs"}}, {"objective": {"kind": "frozen_anchor", "anchor": "b"}}]
    inner = {"kind": "weighted_sum", "terms": terms}
    objective = make({"kind": "weighted_sum", "terms": [{"objective": ANCHORED}, {"objective": inner}]})
    assert objective.anchors == {"a", "b"}
    assert make({"kind": "all_pairs"}).anchors == set()


def test_learned_weights_reach_their_optimum() -> None:
    """At the optimum of exp(-s) L + s / 2, exp(s) = 2 L."""
    module = Uncertainty()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        module(torch.tensor(3.0), torch.tensor(1.0))[0].backward()
        optimizer.step()
    assert math.exp(module.log_variance.item()) == pytest.approx(6.0, rel=1e-2)
    assert float(module(torch.tensor(3.0), torch.tensor(1.0))[1]) == pytest.approx(1 / 6, rel=1e-2)


def without_guard(names: list[str], batch: object) -> Tensor:
    return torch.ones(())


def present_here(names: list[str], batch: invariants.GlobalBatch) -> Tensor:
    """Ask this rank's rows alone whether there is anything to weigh."""
    local = replace(batch, present={name: mask[batch.local] for name, mask in batch.present.items()})
    return (torch.stack([local.present[name] for name in names]).sum(dim=0) >= 2).any().float()


@pytest.mark.parametrize(("wrong", "caught"), [(without_guard, "degenerate"), (present_here, "sharding")])
def test_wrong_variants_are_caught(wrong: object, caught: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.objectives.weighted._compares", wrong)
    assert caught in invariants.failing(built(TABLES[2]))


def test_the_weights_do_not_move_without_anything_to_compare() -> None:
    objective = built(TABLES[2])
    masks: list[Z] = [{name: torch.zeros(8, dtype=torch.bool) for name in "abc"}] * 2
    _, grads = evaluate(objective, invariants.with_presence(rows(objective, 8), objective, masks))
    assert not any(grad.any() for name, grad in grads.items() if "log_variance" in name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "weighted_sum", "terms": []}, "at least 1"),
        ({"kind": "weighted_sum", "terms": [{"objective": {"kind": "al_pairs"}}]}, "did you mean 'all_pairs'"),
        ({"kind": "weighted_sum", "terms": [{"weigth": 1, "objective": ANCHORED}]}, "did you mean 'weight'"),
        ({"kind": "weighted_sum", "terms": [{"weight": 0, "objective": ANCHORED}]}, "greater than 0"),
        ({"kind": "weighted_sum", "terms": [{"objective": {"kind": "anchored", "anchor": "x"}}]}, "'x' is no modality"),
    ],
)
def test_a_wrong_table_is_refused(table: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(table)


def test_sums_of_sums_over_fusions() -> None:
    inner = {"kind": "weighted_sum", "terms": [{"objective": {"kind": "fused_anchor"}}]}
    objective = make({"kind": "weighted_sum", "terms": [{"weight": 3.0, "objective": inner}]}, fusions=FUSIONS)
    batch = rows(objective, 9)
    alone = evaluate(make({"kind": "fused_anchor"}, fusions=FUSIONS), batch)[0]
    assert evaluate(objective, batch)[0] == pytest.approx(3 * alone, rel=1e-6)
