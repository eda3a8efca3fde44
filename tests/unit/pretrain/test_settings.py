"""DeepSpeed keys that are refused, and the scale of the loss in fp16."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.automatic import recipe_settings, resolved
from pretrain.config import OptimConfig
from pretrain.deepspeed_keys import SETTABLE
from pretrain.gradients import part_of
from pretrain.precision import LossScale
from pretrain.settings import check_settings, offloads, refused, zero_stage
from shards.errors import ConfigError

SAYS = recipe_settings(OptimConfig(), batch_size=8, world=1, warmup_steps=1, total_steps=9, precision="fp32")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fp16": {"enabled": True}}, "'fp16'"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"checkpoint": {"load_universal": True}}, "'checkpoint'"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"managed_gradient_accumulation": False}, "no DeepSpeed key that can be set"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage' cannot be 4"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage' cannot be true"),
        ({"zero_optimization": None}, "'zero_optimization' cannot be null"),
        ({"zero_optimization": [1]}, r"'zero_optimization' = \[1\] is no table"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, "overlap_comm' cannot be"),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, "reduce_bucket_size' cannot be 0.5"),
        ({"comms_logger": None}, "'comms_logger' cannot be null"),
        ({"timers": "on"}, "'timers' = 'on' is no table"),
        ({"communication_data_type": "int8"}, "communication_data_type' cannot be"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "does nothing at ZeRO stage 2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "does nothing at ZeRO stage 0"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "cannot go to 'nvme'"),
    ],
)
def test_keys_that_are_the_recipes_or_do_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(keys)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_may_be_set(stage: int) -> None:
    offload = {"offload_optimizer": {"device": "cpu"}} if stage else {}
    keys = {"zero_optimization": {"stage": stage, **offload}, "comms_logger": {"enabled": False}}
    check_settings(keys)
    assert (zero_stage(keys), offloads(keys)) == (stage, stage > 0)


def keys_of(table: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any value at any key, at any depth."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    scalars |= st.sampled_from(["cpu", "none", "nvme", "auto", "fp16", "debug", "1", 5e8, 0, 1, 2, 3, 10**400])
    anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner))
    each = {
        name: scalars | anything | keys_of(value) if isinstance(value, dict) else scalars | anything
        for name, value in table.items()
    }
    return (
        st.integers(0, 3)
        .flatmap(lambda count: st.sets(st.sampled_from(sorted(each)), max_size=count))
        .flatmap(lambda names: st.fixed_dictionaries({name: each[name] for name in names}))
    )


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys_of({**SETTABLE, **SAYS}))
def test_any_value_at_any_key_is_one_that_deepspeed_takes_or_a_config_error(given_keys: dict[str, Any]) -> None:
    try:
        kept, _ = resolved({}, given_keys, SAYS)
    except ConfigError:
        return
    assert zero_stage(kept) in (0, 1, 2, 3)
    offloads(kept)
    with suppress(ConfigError), refused():
        DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, **kept})


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
