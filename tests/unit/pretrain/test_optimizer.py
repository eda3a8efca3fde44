"""Learning rates, exactly, parameter by parameter and step by step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.config import OptimConfig
from pretrain.depth import stages_of
from pretrain.optimizer import accumulation, autocast_type, encoder_scales, learning_rate, parameter_groups
from pretrain.prepare import prepare
from shards.errors import ConfigError
from tests.small_models import model, recipe


class Tower(nn.Module):
    """What most encoders look like: an embedding, blocks that hold sequences of their own, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, 4))
        self.embed = nn.Linear(2, 4)
        self.scale = nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))}) for _ in "12"
        )
        self.norm, self.head = nn.LayerNorm(4), nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        if head is not None:
            self.head = head


def names(module: nn.Module) -> list[set[str]]:
    """What the stages are made of: modules that hold parameters, by name."""
    known = {parameter: name for name, parameter in module.named_parameters()}
    stages = [[known[parameter] for parameter in stage] for stage in stages_of(module)]
    assert sorted(name for stage in stages for name in stage) == sorted(known.values())
    return [{name.rpartition(".")[0] for name in stage} for stage in stages]


TOWER = [
    {"", "embed", "scale.0"},
    {"blocks.0.mlp.0", "blocks.0.mlp.1"},
    {"blocks.1.mlp.0", "blocks.1.mlp.1"},
    {"norm", "head.1"},
]


def test_stages_follow_the_order_of_the_children() -> None:
    assert names(Tower()) == TOWER
    assert names(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))) == [{"0"}, {"2"}]
    assert names(nn.Linear(2, 2)) == [{""}]
    assert names(nn.Identity()) == []


def test_wrappers_are_looked_through_and_chains_of_chains_are_one_chain() -> None:
    inside = [{f"inner.inner.{name}".removesuffix(".") for name in stage} for stage in TOWER]
    assert names(Wrapper(Wrapper(Tower()))) == inside
    *first, last = names(Wrapper(Tower(), nn.Linear(3, 3)))
    assert [len(stage) for stage in first] == [3, 2, 2]
    assert last == {"inner.norm", "inner.head.1", "head"}
    resnet = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), nn.Linear(1, 1))
    assert names(resnet) == [{"0"}, {"1.0"}, {"1.1"}, {"2"}]


def test_a_list_of_one_is_a_stage_and_norms_belong_to_what_they_norm() -> None:
    """Depth must not depend on how many blocks there are, nor on how a block is spelt."""
    shallow = Tower()
    shallow.blocks = shallow.blocks[:1]
    assert names(shallow) == [TOWER[0], TOWER[1], TOWER[3]]
    normed = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GELU(), nn.Linear(2, 2))
    assert names(normed) == [{"0", "1"}, {"3"}]


def test_a_shared_parameter_belongs_to_the_first_stage() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    assert [len(stage) for stage in stages_of(tied)] == [2, 2, 1]


def rates(**tables: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    config = recipe(**tables)
    net = model(config)
    prepare(net, config)
    groups = parameter_groups(net, 0.05, net.lr_scales)
    known = {parameter: name for name, parameter in net.named_parameters()}
    return {known[p]: group["lr_scale"] for group in groups for p in group["params"]}, groups


def test_layer_decay_and_scale_reach_exactly_their_parameters() -> None:
    deep = {"kind": "vector", "layers": 2, "hidden": 4, "dim": 4}
    found, groups = rates(
        a={"layer_decay": 0.5, "lr_scale": 0.1, "encoder": deep}, b={"lr_scale": 3.0}, c={"freeze": "encoder"}
    )
    expected = {"encoders.a.mlp.0": 0.025, "encoders.a.mlp.3": 0.05, "encoders.a.mlp.6": 0.1}
    layers = sorted({name.rsplit(".", 1)[0] for name in found if name.startswith("encoders.a")})
    for layer, scale in zip(layers, expected.values(), strict=True):
        assert (found[f"{layer}.weight"], found[f"{layer}.bias"]) == (pytest.approx(scale), pytest.approx(scale))
    assert {scale for name, scale in found.items() if name.startswith("encoders.b")} == {3.0}
    assert not [name for name in found if name.startswith("encoders.c")]
    rest = [scale for name, scale in found.items() if not name.startswith("encoders.")]
    assert rest and set(rest) == {1.0}
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.05}


def test_without_scales_there_are_two_groups_and_none_is_empty() -> None:
    found, groups = rates()
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert set(found.values()) == {1.0}
    assert encoder_scales(model(recipe()).encoders, recipe().modalities) == {}
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


@pytest.mark.parametrize("table", [{"layer_decay": 1.5}, {"layer_decay": 0.0}, {"lr_scale": 0.0}, {"freeze": "some"}])
def test_values_that_mean_nothing_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(table))):
        recipe(a=table)


def test_the_schedule_rises_to_the_peak_and_ends_at_the_floor() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1)
    found = [learning_rate(config, step, warmup=4, total=12) for step in range(12)]
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[8] == pytest.approx(0.55)
    assert all(later < earlier for earlier, later in pairwise(found[4:]))
    assert learning_rate(config, 12, warmup=4, total=12) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("together", "shares", "boundaries"),
    [
        (1, [1.0] * 5, [True] * 5),
        (2, [1 / 2] * 4 + [1.0], [False, True, False, True, True]),
        (3, [1 / 3] * 3 + [1 / 2] * 2, [False, False, True, False, True]),
        (9, [1 / 5] * 5, [False] * 4 + [True]),
    ],
)
def test_every_optimizer_step_is_a_mean_of_batches(together: int, shares: list[float], boundaries: list[bool]) -> None:
    config = OptimConfig(accumulate=together)
    found = [accumulation(config, step, total=5) for step in range(5)]
    assert [share for share, _ in found] == pytest.approx(shares)
    assert [boundary for _, boundary in found] == boundaries
    assert sum(share for share, _ in found) == pytest.approx(sum(boundaries))


def test_the_type_of_autocast() -> None:
    cpu = torch.device("cpu")
    found = [autocast_type(OptimConfig(precision=name), cpu) for name in ("auto", "fp32", "bf16", "fp16")]  # type: ignore[arg-type]
    assert found == [None, None, torch.bfloat16, torch.float16]
