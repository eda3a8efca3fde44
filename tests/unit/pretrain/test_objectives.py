"""Objectives over pairs of embeddings: the five invariants, and which pairs are summed with which weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.objectives.base import GlobalBatch, Objective
from pretrain.objectives.temperature import Temperature, TemperatureConfig
from shards.errors import ConfigError
from tests.unit.pretrain import invariants
from tests.unit.pretrain.invariants import CHECKS, DIM, FUSIONS, NAMES, Z, evaluate, make, rows

Table = dict[str, object]

MASKED = {"mask_same_group": True, "mask_above": 0.4, "chunk": 2}
LOSSES: list[object] = [
    "infonce",
    {"kind": "infonce", "label_smoothing": 0.1, **MASKED},
    {"kind": "infonce", "mask_same_group": True, "chunk": 3},
    "ntxent",
    {"kind": "ntxent", **MASKED},
    "siglip",
    {"kind": "siglip", "bias": -3.0, **MASKED},
    "barlow",
]
# an objective needs names of its own, so they are those of the invariants: a, b, c and the fusion "joint"
TABLES: list[Table] = [
    *({"kind": "all_pairs", "pair_loss": loss} for loss in LOSSES),
    {"kind": "anchored", "anchor": "a"},
    {"kind": "anchored", "anchor": "c", "temperature": {"learn": False, "init": 0.2}},
    {"kind": "anchored", "anchor": "joint", "temperature": {"per_pair": True}},
    {"kind": "anchored", "anchor": "b", "pair_loss": "siglip", "temperature": {"per_pair": True}},
    {"kind": "frozen_anchor", "anchor": "b"},
    {"kind": "frozen_anchor", "anchor": "b", "pair_loss": "siglip"},
    {"kind": "fused_anchor"},
    {"kind": "fused_anchor", "pair_loss": "infonce", "temperature": {"per_pair": True}},
]


def fusions(table: Table) -> dict[str, tuple[str, ...]] | None:
    return FUSIONS if table["kind"] == "fused_anchor" or table.get("anchor") == "joint" else None


def built(table: Table) -> Objective:
    return make(table, fusions=fusions(table))


def pair_loss(table: Table) -> object:
    loss = table.get("pair_loss", "ntxent" if table["kind"] == "fused_anchor" else "infonce")
    return loss["kind"] if isinstance(loss, dict) else loss


def with_everything(batch: GlobalBatch) -> GlobalBatch:
    return replace(batch, present={name: torch.ones_like(mask) for name, mask in batch.present.items()})


@pytest.mark.parametrize("table", TABLES, ids=str)
class TestInvariants:
    @pytest.mark.parametrize("name", CHECKS)
    def test_invariant(self, table: Table, name: str) -> None:
        if name == "degenerate":
            # only a softmax has nothing to say of one row: the sigmoid compares it with its bias
            invariants.check_degenerate(built(table), lone_row_is_zero=pair_loss(table) != "siglip")
        else:
            CHECKS[name](built(table))

    def test_logs_and_half_precision(self, table: Table) -> None:
        invariants.check_logs(built(table))
        invariants.check_half_precision(built(table))

    def test_what_is_learned_has_a_gradient(self, table: Table) -> None:
        objective = built(table)
        _, grads = evaluate(objective, rows(objective, 9))
        parameters = dict(objective.named_parameters())
        for name, parameter in parameters.items():
            assert parameter.ndim == 1, "DeepSpeed refuses 0 dimensions"
            assert grads[name].abs().min() > 1e-5, name
        temperature = objective.config.temperature
        learned = temperature.learn and pair_loss(table) != "barlow"
        assert ("temperature.log_scale" in parameters) == learned
        if learned:
            assert len(parameters["temperature.log_scale"]) == (len(objective.pairs) if temperature.per_pair else 1)

    def test_names_of_the_logs(self, table: Table) -> None:
        objective = built(table)
        _, logs = objective(rows(objective, 9))
        pairs = [f"{a}-{b}" for a, b in objective.pairs]
        expected = {f"loss/{pair}" for pair in pairs}
        each = [f"/{pair}" for pair in pairs] if objective.config.temperature.per_pair else [""]
        expected |= set() if pair_loss(table) == "barlow" else {f"temperature{suffix}" for suffix in each}
        expected |= {f"bias{suffix}" for suffix in each} if pair_loss(table) == "siglip" else set()
        assert set(logs) == expected


# Pairs and weights


def test_pairs() -> None:
    def pairs(table: Table) -> set[str]:
        return {f"{a}-{b}" for a, b in built(table).pairs}

    assert pairs({"kind": "all_pairs"}) == {"a-b", "a-c", "b-c"}
    assert (
        pairs({"kind": "anchored", "anchor": "b"}) == {"b-a", "b-c"} == pairs({"kind": "frozen_anchor", "anchor": "b"})
    )
    assert pairs({"kind": "anchored", "anchor": "joint"}) == {"joint-a", "joint-b", "joint-c"}
    assert pairs({"kind": "fused_anchor"}) == {"joint-a", "joint-b", "joint-c"}
    assert built({"kind": "fused_anchor"}).names == ("joint", *NAMES)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("loss", ["infonce", "siglip", "ntxent"])
def test_sums_of_pairs(loss: str, share: float) -> None:
    """Anchored is the sum of its pairs' losses, all-pairs times the number of pairs is the sum of all."""
    names = ("a", "b", "c", "d")
    everything = make({"kind": "all_pairs", "pair_loss": loss}, names)
    batch = rows(everything, 20, share=share)
    lone = {}
    for pair in combinations(names, 2):
        one = {"kind": "all_pairs", "pair_loss": loss}
        lone[frozenset(pair)] = evaluate(make(one, pair), batch)[0]
    assert evaluate(everything, batch)[0] * 6 == pytest.approx(sum(lone.values()), rel=1e-6)
    for anchor in names:
        expected = sum(value for pair, value in lone.items() if anchor in pair)
        found = evaluate(make({"kind": "anchored", "anchor": anchor, "pair_loss": loss}, names), batch)[0]
        assert found == pytest.approx(expected, rel=1e-6)


def test_two_modalities_make_the_two_objectives_one() -> None:
    anchored, everything = (make({"kind": kind, **more}, ("a", "b")) for kind, more in
                            (("anchored", {"anchor": "a"}), ("all_pairs", {})))  # fmt: skip
    batch = rows(anchored, 9)
    one, other = evaluate(anchored, batch), evaluate(everything, batch)
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("kind", ["anchored", "all_pairs"])
def test_the_published_presence_rates_keep_the_invariants(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crystal, density of states, charge density and text of MultiMat: 1, 0.58, 0.79 and 1 of all materials."""
    rates = {"a": 1.0, "b": 0.58, "c": 0.79, "d": 1.0}

    def drawn(objective: Objective, count: int, seed: int = 0) -> GlobalBatch:
        batch, rng = rows(objective, count, seed), torch.Generator().manual_seed(seed)
        return replace(batch, present={name: torch.rand(count, generator=rng) < rate for name, rate in rates.items()})

    monkeypatch.setattr(invariants, "rows", drawn)
    table = {"kind": kind, "anchor": "a"} if kind == "anchored" else {"kind": kind}
    objective = make(table, tuple(rates))
    for check in CHECKS.values():
        check(objective)


@pytest.mark.parametrize("n", [2, 7, 64])
@pytest.mark.parametrize(("table", "count"), [({"kind": "anchored", "anchor": "a"}, 2), ({"kind": "all_pairs"}, 1)])
def test_collapsed_embeddings_give_log_n_a_pair(n: int, table: Table, count: int) -> None:
    objective = built(table)
    batch = with_everything(rows(objective, n))
    batch = replace(batch, z={name: torch.ones(n, DIM) for name in NAMES})
    assert evaluate(objective, batch)[0] == pytest.approx(count * math.log(n), rel=1e-5)


def test_the_length_of_a_vector_does_not_matter() -> None:
    for loss in ("infonce", "ntxent", "siglip", "barlow"):
        objective = make({"kind": "all_pairs", "pair_loss": loss})
        batch = rows(objective, 12, share=0.9)
        longer = replace(batch, z={name: 1000 * value for name, value in batch.z.items()})
        tolerance = 1e-3 if loss == "barlow" else 1e-5  # a constant is added to its variances
        assert evaluate(objective, longer)[0] == pytest.approx(evaluate(objective, batch)[0], rel=tolerance)


# Temperature


def test_the_temperature_starts_where_it_is_set() -> None:
    for init in (0.07, 0.2, 1.0):
        objective = make({"kind": "all_pairs", "temperature": {"init": init}})
        assert float(objective(rows(objective, 4))[1]["temperature"]) == pytest.approx(init, rel=1e-5)
    # the limit is that of a learned one
    objective = make({"kind": "all_pairs", "temperature": {"init": 0.005, "learn": False}})
    assert float(objective(rows(objective, 4))[1]["temperature"]) == pytest.approx(0.005, rel=1e-5)


def clamped(module: Temperature) -> Tensor:
    """Clamp, and let the gradient through: the wrong variant."""
    log_scale = module.log_scale
    return (log_scale + (log_scale.clamp(max=module.limit) - log_scale).detach()).exp()


@pytest.mark.parametrize(("scales", "comes_back"), [(Temperature.forward, True), (clamped, False)])
@pytest.mark.parametrize("init", [0.01, 0.02])
def test_a_temperature_stops_at_its_limit_and_leaves_it_at_once(
    init: float, scales: Callable[[Temperature], Tensor], comes_back: bool
) -> None:
    module = Temperature(TemperatureConfig(init=init, min=0.01))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)

    def train(best: float, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            (scales(module).log() - math.log(best)).square().sum().backward()
            optimizer.step()
        return 1 / scales(module).item()

    assert train(best=10_000, steps=600) == pytest.approx(0.01, rel=0.02)
    assert scales(module).item() <= 100.001
    assert (train(best=10, steps=200) > 0.015) == comes_back


def test_each_pair_learns_its_own_temperature() -> None:
    objective = make({"kind": "anchored", "anchor": "a", "temperature": {"per_pair": True}})
    batch = with_everything(rows(objective, 16))
    batch = replace(batch, z={**batch.z, "b": batch.z["a"]})  # a and b agree, c has nothing to do with a
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    logs = objective(batch)[1]
    assert float(logs["temperature/a-b"]) < 0.05 < 0.2 < float(logs["temperature/a-c"])


# Frozen and fused anchors


def test_no_gradient_reaches_a_frozen_anchor() -> None:
    for kind, moves in (("frozen_anchor", False), ("anchored", True)):
        objective = make({"kind": kind, "anchor": "b", "temperature": {"per_pair": True}})
        batch = rows(objective, 9)
        loss, grads = evaluate(objective, batch)
        assert bool(grads["b"].any()) == moves
        assert grads["a"].any() and grads["c"].any()
        if moves:
            assert loss == evaluate(make({"kind": "frozen_anchor", "anchor": "b"}), batch)[0]


def linear_world(count: int, seed: int) -> Z:
    """Three linear views of the same eight numbers, with some noise."""
    maps, rng = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 8, generator=rng)
    seen = {name: hidden @ torch.randn(8, 16, generator=maps) for name in NAMES}
    return {name: x + 0.1 * torch.randn(x.shape, generator=rng) for name, x in seen.items()}


@pytest.mark.parametrize("paired", [True, False])
def test_modalities_that_never_meet_are_aligned_by_the_anchor(paired: bool) -> None:
    torch.manual_seed(0)
    objective = make({"kind": "frozen_anchor", "anchor": "c"})
    encoders = nn.ModuleDict({name: nn.Linear(16, 8) for name in NAMES})
    frozen = encoders["c"].weight.clone()
    parameters = [*objective.parameters(), *encoders["a"].parameters(), *encoders["b"].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    for step in range(100):
        data = linear_world(128, step)
        # no row has both a and b; in the control the anchor belongs to another row
        first = torch.arange(128) < 64
        data["c"] = data["c"] if paired else data["c"].roll(1, dims=0)
        present = {"a": first, "b": ~first, "c": torch.ones(128, dtype=torch.bool)}
        z = {name: encoders[name](x) for name, x in data.items()}
        optimizer.zero_grad()
        objective(GlobalBatch(z=z, present=present, local=slice(0, 128)))[0].backward()
        optimizer.step()
    test = {name: F.normalize(encoders[name](x), dim=1) for name, x in linear_world(256, 10_000).items()}
    recall = ((test["a"] @ test["b"].T).argmax(1) == torch.arange(256)).float().mean()
    assert recall > 0.5 if paired else recall < 0.05, "chance is 0.004"
    assert torch.equal(frozen, encoders["c"].weight)


def test_a_fused_anchor_at_collapse() -> None:
    """Two NT-Xent terms over 2B rows at B = 32: 8.286 (MatMCL)."""
    objective = make({"kind": "fused_anchor"}, ("t", "v"), {"joint": ("t", "v")})
    batch = with_everything(rows(objective, 32))
    batch = replace(batch, z={name: torch.ones(32, DIM) for name in batch.z})
    assert evaluate(objective, batch)[0] == pytest.approx(8.286, abs=1e-3)
    assert evaluate(objective, batch)[0] == pytest.approx(2 * math.log(63), rel=1e-6)


def test_a_fused_anchor_is_two_terms_with_equal_roles() -> None:
    objective = make({"kind": "fused_anchor"}, ("t", "v"), {"joint": ("t", "v")})
    batch = rows(objective, 12)
    loss, logs = objective(batch)
    assert float(logs["temperature"]) == pytest.approx(0.1) and not list(objective.parameters())
    assert float(loss) == pytest.approx(float(logs["loss/joint-t"] + logs["loss/joint-v"]), rel=1e-6)
    swapped = {"joint": "joint", "t": "v", "v": "t"}
    other, _ = objective(
        replace(
            batch,
            z={name: batch.z[swapped[name]] for name in batch.z},
            present={name: batch.present[swapped[name]] for name in batch.present},
        )
    )
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    # t and v are compared through the fusion only
    batch = with_everything(batch)
    _, grads = evaluate(objective, replace(batch, present={**batch.present, "v": torch.zeros(12, dtype=torch.bool)}))
    assert grads["t"].any() and not grads["v"].any()


# Refusals


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "anchored", "anchor": "aa"}, "did you mean 'a'|known: a, b, c"),
        ({"kind": "anchored", "ancor": "a"}, "did you mean 'anchor'"),
        ({"kind": "all_pair"}, "did you mean 'all_pairs'"),
        ({"kind": "all_pairs", "temperature": {"init": 0}}, "greater than 0"),
        ({"kind": "all_pairs", "temperature": {"inti": 1}}, "did you mean 'init'"),
        ({"kind": "all_pairs", "temperature": {"learn": False, "per_pair": True}}, "'per_pair' is for a learned"),
        ({"kind": "all_pairs", "temperature": {"init": 0.005}}, "'init' 0.005 lies below 'min' 0.01"),
        ({"kind": "all_pairs", "pair_loss": "siglp"}, "did you mean 'siglip'"),
        ({"kind": "all_pairs", "pair_loss": {"kind": "siglip", "bais": 0}}, "did you mean 'bias'"),
        ({"kind": "all_pairs", "pair_loss": {"kind": "infonce", "chunk": 0}}, "'chunk': .*greater than 0"),
        ({"kind": "all_pairs", "pair_loss": {"kind": "infonce", "mask_above": 1.0}}, "less than 1"),
        ({"kind": "all_pairs", "pair_loss": 3}, "neither a kind nor a table"),
        ({"kind": "all_pairs", "pair_loss": "barlow", "temperature": {"init": 0.3}}, "'barlow' has no temperature"),
        ({"kind": "fused_anchor", "anchor": "a"}, "'a' is no fusion"),
        ({"kind": "fused_anchor"}, "the recipe has none"),
    ],
)
def test_a_wrong_table_is_refused(table: Table, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(table)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_one_modality_alone_is_refused(table: Table) -> None:
    if table.get("anchor") in ("b", "c"):
        table = {**table, "anchor": "a"}
    with pytest.raises(ConfigError):
        make(table, ("a",), {"joint": ("a",)} if table["kind"] == "fused_anchor" else None)


def test_a_resolved_table_means_the_same() -> None:
    for table in TABLES:
        config = built(table).config
        again = make(config.model_dump(mode="json"), fusions=fusions(table)).config
        assert again == config and type(again.pair_loss) is type(config.pair_loss)


# Wrong variants of the frame: each must be caught by the invariants


def broken(change: Callable[[Objective], None], table: Table) -> set[str]:
    objective = built(table)
    change(objective)
    return invariants.failing(objective)


def any_of_two(objective: Objective) -> None:
    """Take rows that have one of the two for valid."""
    right = objective.losses[0].forward

    def wrong(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> object:
        return right(a, b, torch.ones_like(valid), scale, batch)

    objective.losses[0].forward = wrong  # type: ignore[method-assign]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_missing_rows_as_valid_ones_are_caught(loss: object) -> None:
    assert {"padding", "content"} <= broken(any_of_two, {"kind": "all_pairs", "pair_loss": loss})
