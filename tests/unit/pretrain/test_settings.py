"""DeepSpeed keys that are refused, and the scale of the loss in fp16."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.gradients import part_of
from pretrain.precision import LossScale
from pretrain.settings import check_settings, offloads, zero_stage
from shards.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": {"enabled": True}}, "'fp16'"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"checkpoint": {"load_universal": True}}, "'checkpoint'"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"managed_gradient_accumulation": False}, "no DeepSpeed key that can be set"),
        ({"zero_optimization": {"stage": 4}}, "no ZeRO stage 4"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "does nothing at ZeRO stage 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "does nothing at ZeRO stage 0"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "cannot go to 'nvme'"),
    ],
)
def test_keys_that_are_the_recipes_or_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(settings)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_may_be_set(stage: int) -> None:
    offload = {"offload_optimizer": {"device": "cpu"}} if stage else {}
    settings = {"zero_optimization": {"stage": stage, **offload}, "comms_logger": {"enabled": False}}
    check_settings(settings)
    assert (zero_stage(settings), offloads(settings)) == (stage, stage > 0)


def test_the_scale_falls_at_an_overflow_and_rises_after_a_while() -> None:
    scale = LossScale(value=8.0, window=3)
    values = []
    for overflow in (True, False, False, False, False, True, True, True, True):
        scale.update(overflow=overflow)
        values.append(scale.value)
    assert values == [4, 4, 4, 8, 8, 4, 2, 1, 1]
    assert scale.exhausted


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoders.dos.blocks.0.weight", "dos"),
        ("projections.dos.0.weight", "dos"),
        ("fusions.joint.gate", "joint"),
        ("objective.log_scale", "objective"),
    ],
)
def test_a_parameter_counts_to_its_modality_fusion_or_the_objective(name: str, part: str) -> None:
    assert part_of(name) == part
