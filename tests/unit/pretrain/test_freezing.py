"""Frozen parts stay bit for bit, through training mode, steps of the optimizer and weight decay."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch import nn

from pretrain.accumulate import contrast
from pretrain.encoders.base import ENCODERS
from pretrain.model import MultimodalModel
from pretrain.optimizer import parameter_groups
from pretrain.prepare import prepare
from shards.errors import ConfigError
from tests.small_models import NAMES, batch, model, recipe, samples


def digest(module: nn.Module) -> str:
    state = module.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


class Restless(ENCODERS.get("vector")):  # type: ignore[misc]
    """An encoder whose buffer moves in training mode, as statistics of a batch would."""

    def forward(self, inputs: Any) -> Any:
        if self.training:
            self.centre += 0.1
        return super().forward(inputs)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS._plugins, "vector", Restless)


def trained(**tables: Any) -> tuple[MultimodalModel, dict[str, tuple[str, str]]]:
    """Three steps; returns the model and whether each part's digest is as before."""
    config = recipe(dropout=0.5, **tables)
    net = model(config)
    prepare(net, config)
    parts = {f"{kind}.{name}": getattr(net, kind)[name] for kind in ("encoders", "projections") for name in NAMES}
    before = {name: digest(part) for name, part in parts.items()}
    adam = torch.optim.AdamW(parameter_groups(net, 0.1, net.lr_scales), lr=0.01)
    for step in range(3):
        net.train()
        adam.zero_grad()
        contrast(net, net.objective, torch.Tensor.backward, batch(samples(8, seed=step)))
        adam.step()
    return net, {name: digest(part) == before[name] for name, part in parts.items()}


@pytest.mark.usefixtures("restless")
def test_frozen_parts_are_bitwise_as_before_and_the_others_are_not() -> None:
    net, same = trained(a={"freeze": "encoder"}, b={"freeze": "all"})
    assert {name for name, kept in same.items() if kept} == {"encoders.a", "encoders.b", "projections.b"}
    assert not any(part.training for name in "ab" for part in net.encoders[name].modules())
    assert net.encoders["c"].training and net.projections["a"].training
    frozen = [p for part in (net.encoders["a"], net.encoders["b"], net.projections["b"]) for p in part.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


@pytest.mark.usefixtures("restless")
def test_freezing_that_only_stops_the_gradient_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MultimodalModel, "train", nn.Module.train)
    _, same = trained(a={"freeze": "encoder"})
    assert not same["encoders.a"]


def test_evaluation_mode_is_one_for_all() -> None:
    net, _ = trained(a={"freeze": "all"})
    assert not any(module.training for module in net.eval().modules())


def test_a_shared_projection_cannot_be_frozen_for_one() -> None:
    config = recipe(a={"freeze": "all"}, projection={"dim": 5, "shared": True})
    with pytest.raises(ConfigError, match="share one projection"):
        prepare(model(config), config)
    config = recipe(a={"freeze": "encoder"}, projection={"dim": 5, "shared": True})
    prepare(model(config), config)


def test_a_model_of_which_nothing_learns_is_refused() -> None:
    tables: dict[str, Any] = {name: {"freeze": "all"} for name in NAMES}
    prepare(model(recipe(**tables)), recipe(**tables))
    config = recipe(learn=False, **tables)
    with pytest.raises(ConfigError, match="nothing is left to train"):
        prepare(model(config), config)


def test_an_export_of_a_frozen_modality_can_be_trained_again() -> None:
    """Freezing is of the run, not of the model that it leaves behind."""
    net = model(recipe(a={"freeze": "all"}))
    assert all(parameter.requires_grad for parameter in net.parameters())
