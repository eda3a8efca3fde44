"""The moving average equals its formula, and goes on from where it was saved."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch

from pretrain.ema import MovingAverage
from pretrain.model import MultimodalModel
from pretrain.prepare import prepare
from shards.errors import CheckpointError
from tests.small_models import model, recipe

DECAY = 0.9


def walk(net: MultimodalModel, steps: int, seed: int = 0) -> None:
    rng = torch.Generator().manual_seed(seed + steps)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=rng).to(parameter.dtype)
        net.encoders["a"].centre += 1


@pytest.fixture
def net() -> MultimodalModel:
    config = recipe(c={"freeze": "all"})
    net = model(config)
    prepare(net, config)
    return net


def test_it_equals_the_formula(net: MultimodalModel) -> None:
    average = MovingAverage(net, DECAY)
    expected = None
    for step in range(6):
        walk(net, step)
        average.update(net)
        now = {name: value.detach().clone() for name, value in net.named_parameters()}
        expected = now if expected is None else {n: DECAY * expected[n] + (1 - DECAY) * v for n, v in now.items()}
    for name, value in average.module.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)  # type: ignore[index]
        assert not value.requires_grad
    assert (average.module.encoders["a"].centre == 6).all()
    assert average.module is not net


def test_frozen_weights_stay_bit_for_bit(net: MultimodalModel) -> None:
    before = copy.deepcopy(net.encoders["c"].state_dict())
    average = MovingAverage(net, 0.999)
    for step in range(20):
        walk(net, step)
        average.update(net)
    assert all((value == before[name]).all() for name, value in average.module.encoders["c"].state_dict().items())


def test_its_state_goes_through_a_file(net: MultimodalModel, tmp_path) -> None:
    whole, first = MovingAverage(net, DECAY), MovingAverage(net, DECAY)
    for step in range(3):
        walk(net, step)
        whole.update(net)
        first.update(net)
    safetensors.torch.save_file({n: v.clone() for n, v in first.state_dict().items()}, tmp_path / "ema")
    resumed = MovingAverage(net, DECAY)
    resumed.load_state_dict(safetensors.torch.load_file(tmp_path / "ema"))
    for step in range(3, 5):
        walk(net, step)
        whole.update(net)
        resumed.update(net)
    for name, value in whole.state_dict().items():
        assert (resumed.state_dict()[name] == value).all(), name


def test_a_state_of_another_model_is_refused(net: MultimodalModel) -> None:
    other = MovingAverage(model(recipe("test_views")), DECAY)
    with pytest.raises(CheckpointError, match="do not fit"):
        MovingAverage(net, DECAY).load_state_dict(other.state_dict())


def test_half_precision_weights_are_averaged_in_float32(net: MultimodalModel) -> None:
    """In bfloat16 a thousandth of a step would be rounded away."""
    average = MovingAverage(net, 0.999)
    half = copy.deepcopy(net).to(torch.bfloat16)
    average.update(half)
    start = average.module.encoders["a"].mlp[0].weight.clone()
    with torch.no_grad():
        half.encoders["a"].mlp[0].weight += 1.0
    average.update(half)
    moved = (average.module.encoders["a"].mlp[0].weight - start).mean()
    assert moved == pytest.approx(0.001, rel=0.02)


def test_the_average_is_in_the_mode_it_is_put_into_and_keeps_frozen_parts_in_evaluation(net: MultimodalModel) -> None:
    average = MovingAverage(net, DECAY)
    average.module.train()
    assert average.module.encoders["a"].training
    assert not average.module.encoders["c"].training
    assert average.module.frozen[0] is average.module.encoders["c"]


def test_a_model_that_will_be_compiled_can_be_averaged(net: MultimodalModel) -> None:
    net.encoders["a"].compile(dynamic=True)
    average = MovingAverage(net, DECAY)
    average.update(net)
    assert list(average.module.state_dict()) == list(net.state_dict())
    assert average.module.encoders["a"]._compiled_call_impl is None
