"""CoMM and Cross+Self: invariants, values by literal loops, and the structure that tells them from wrong variants."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pretrain.objectives import comm
from pretrain.objectives.base import GlobalBatch, Objective
from pretrain.objectives.ntxent import nt_xent
from shards.errors import ConfigError
from tests.unit.pretrain.invariants import CHECKS, DIM, check_half_precision, check_logs, evaluate, failing, make, rows

JOINT = {"joint": ("a", "b", "c")}
CASES: list[tuple[dict[str, object], dict[str, tuple[str, ...]]]] = [
    ({"kind": "comm"}, JOINT),
    ({"kind": "comm", "fusion": "all", "temperature": {"init": 0.3}, "chunk": 3}, {"all": ("a", "c")}),
    ({"kind": "cross_self"}, {}),
    ({"kind": "cross_self", "self_weight": 0.5, "temperature": {"init": 0.3}}, {}),
]
every_case = pytest.mark.parametrize(("table", "fusions"), CASES, ids=str)


@every_case
class TestInvariants:
    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_invariant(self, table: dict, fusions: dict, check: Callable[[Objective], None]) -> None:
        check(make(table, fusions=fusions))

    def test_logs_and_half_precision(self, table: dict, fusions: dict) -> None:
        check_logs(make(table, fusions=fusions))
        check_half_precision(make(table, fusions=fusions))

    def test_a_learned_temperature_has_a_gradient_and_a_fixed_one_is_no_parameter(
        self, table: dict, fusions: dict
    ) -> None:
        objective = make(table, fusions=fusions)
        assert bool(list(objective.parameters())) == ("temperature" in table)
        if "temperature" in table:
            assert evaluate(objective, rows(objective, 9))[1]["temperature.log_scale"].abs() > 1e-4

    def test_groups_reach_the_loss(self, table: dict, fusions: dict) -> None:
        objective, masked = (make({**table, "mask_same_group": on}, fusions=fusions) for on in (False, True))
        assert (objective.needs_groups, masked.needs_groups) == (False, True)
        batch = replace(rows(objective, 9), groups=torch.arange(9) // 2)
        assert evaluate(masked, batch)[0] < evaluate(objective, batch)[0] - 1e-3


# Values


def literal_ntx(a: Tensor, b: Tensor, valid: Tensor, temperature: float) -> float:
    """SimCLR's loss over the stacked valid rows, with loops in double precision."""
    z = torch.cat([a[valid], b[valid]]).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total = int(valid.sum()), 0.0
    for i in range(2 * n):
        others = [math.exp(float(z[i] @ z[j]) / temperature) for j in range(2 * n) if j != i]
        total += math.log(sum(others)) - float(z[i] @ z[(i + n) % (2 * n)]) / temperature
    return total / (2 * n) if n else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_comm_is_the_published_sum(seed: int) -> None:
    objective = make({"kind": "comm"}, fusions=JOINT)
    batch = rows(objective, 8, seed=seed)
    z, present = batch.z, batch.present
    expected = 0.0
    for one in ("joint:a", "joint:b", "joint:c", "joint"):
        for k, full in ((one, "joint/2"), (f"{one}/2", "joint")):
            expected += 0.5 * literal_ntx(z[k], z[full], present[k] & present[full], 0.1) / 4
    assert evaluate(objective, batch)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_cross_self_is_the_published_sum(seed: int) -> None:
    objective = make({"kind": "cross_self", "self_weight": 0.7}, ("a", "b"))
    batch = rows(objective, 8, seed=seed)
    z, present = batch.z, batch.present
    expected = literal_ntx(z["a"], z["b"], present["a"] & present["b"], 0.1)
    for name in "ab":
        valid = present[name] & present[f"{name}/2"]
        expected += 0.7 * 0.5 * literal_ntx(z[name], z[f"{name}/2"], valid, 0.1)
    assert evaluate(objective, batch)[0] == pytest.approx(expected, rel=1e-5)


def everywhere(objective: Objective, z: dict[str, Tensor]) -> GlobalBatch:
    count = len(next(iter(z.values())))
    present = {name: torch.ones(count, dtype=torch.bool) for name in objective.names}
    return GlobalBatch(z=z, present=present, local=slice(0, count))


@every_case
def test_collapsed_embeddings_give_the_logarithm_of_the_candidates(table: dict, fusions: dict) -> None:
    objective = make(table, fusions=fusions)
    batch = everywhere(objective, {name: torch.ones(16, DIM) for name in objective.names})
    count = 1 + table.get("self_weight", 1.0) if table["kind"] == "cross_self" else 1
    assert evaluate(objective, batch)[0] == pytest.approx(count * math.log(31), rel=1e-5)


# Structure


def test_one_modality_without_augmentation_gives_the_loss_of_an_embedding_with_itself() -> None:
    objective = make({"kind": "comm"}, ("a",), {"joint": ("a",)})
    z = torch.randn(8, DIM)
    batch = everywhere(objective, dict.fromkeys(objective.names, z))
    itself = nt_xent(z, z, torch.ones(8, dtype=torch.bool), scale=torch.tensor([10.0]), local=slice(0, 8))
    assert evaluate(objective, batch)[0] == pytest.approx(float(itself), rel=1e-6)


def swapped(batch: GlobalBatch) -> GlobalBatch:
    """Exchange the two views."""

    def other(name: str) -> str:
        return name.removesuffix("/2") if name.endswith("/2") else f"{name}/2"

    return replace(
        batch,
        z={name: batch.z[other(name)] for name in batch.z},
        present={name: batch.present[other(name)] for name in batch.present},
    )


def test_the_views_of_comm_can_be_exchanged() -> None:
    objective = make({"kind": "comm"}, fusions=JOINT)
    batch = rows(objective, 9)
    loss, grads = evaluate(objective, batch)
    other, other_grads = evaluate(objective, swapped(batch))
    assert other == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(other_grads["joint/2"], grads["joint"])
    torch.testing.assert_close(other_grads["joint:a"], grads["joint:a/2"])


def test_a_term_reads_its_own_modality_and_the_other_full_view_only() -> None:
    objective = make({"kind": "comm"}, fusions=JOINT)
    batch = rows(objective, 9, share=1.0)
    leaves = {name: z.clone().requires_grad_() for name, z in batch.z.items()}
    batch = replace(batch, z=leaves)

    def compare(a: str, b: str) -> Tensor:
        every = torch.ones(9, dtype=torch.bool)
        return nt_xent(leaves[a], leaves[b], every, scale=torch.tensor([10.0]), local=slice(0, 9))

    _, terms = objective.combined(compare)
    read = {
        part: {name for name, g in zip(leaves, slopes(term, leaves), strict=True) if g is not None and g.any()}
        for part, term in terms.items()
    }
    views = {"joint", "joint/2"}
    assert read == {"full": views, **{m: views | {f"joint:{m}", f"joint:{m}/2"} for m in "abc"}}


def slopes(loss: Tensor, leaves: dict[str, Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True))


def test_the_names_ask_for_two_views_of_every_part() -> None:
    objective = make({"kind": "comm"}, ("a", "b"), {"joint": ("a", "b")})
    assert objective.names == ("joint", "joint:a", "joint:b", "joint/2", "joint:a/2", "joint:b/2")
    assert make({"kind": "cross_self"}, ("a", "b")).names == ("a", "b", "a/2", "b/2")


@pytest.mark.parametrize(
    ("table", "modalities", "fusions", "message"),
    [
        ({"kind": "comm"}, ("a", "b"), {}, r"\[fusions.joint\]"),
        ({"kind": "comm", "fusion": "jiont"}, ("a", "b"), {"joint": ("a", "b")}, "did you mean 'joint'"),
        ({"kind": "cross_self"}, ("a",), {}, "the recipe has one"),
        ({"kind": "comm", "temperature": {"per_pair": True}}, ("a", "b"), {"joint": ("a", "b")}, "share one temp"),
    ],
)
def test_a_wrong_recipe_is_refused(table: dict, modalities: tuple, fusions: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(table, modalities, fusions)


# Wrong variants: each must be caught by the invariants


def local_mean(a: Tensor, b: Tensor, valid: Tensor, *, scale: Tensor, local: slice, world: int, **kw: object) -> Tensor:
    """Divide by the valid rows of this rank."""
    mine = int(valid[local].sum())
    return nt_xent(a, b, valid, scale=scale, local=local, world=world, **kw) * valid.sum() / (world * max(mine, 1))


def every_row(a: Tensor, b: Tensor, valid: Tensor, **kw: object) -> Tensor:
    """The published rule for missing modalities: there are none."""
    return nt_xent(a, b, torch.ones_like(valid), **kw)


@every_case
@pytest.mark.parametrize(("wrong", "caught"), [(local_mean, {"sharding"}), (every_row, {"padding", "content"})])
def test_wrong_variants_are_caught(
    table: dict, fusions: dict, wrong: Callable, caught: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "nt_xent", wrong)
    assert caught <= failing(make(table, fusions=fusions))
