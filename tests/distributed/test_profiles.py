"""The profiles train alike: one loss curve on two ranks, whatever is divided among them."""

from __future__ import annotations

from typing import Any

import pytest

from launch.profiles import deepspeed_settings, profiles
from tests.distributed.ranks import spawn

STEPS = 6


def curves(settings: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    from pretrain.engine import start_process_group
    from tests.distributed import toy_engine

    start_process_group()
    batches, found = toy_engine.parts(3), {}
    for name, keys in settings.items():
        engine = toy_engine.engine(keys, steps=STEPS)
        found[name] = []
        for step in range(STEPS):
            found[name].append(engine.compute(batches[step % 3], step)["loss"])
            engine.apply()
    return found


def test_every_profile_gives_the_loss_curve_of_plain_data_parallel_training() -> None:
    from shards.recipes import read_tables

    settings = {name: read_tables(deepspeed_settings(name)) for name in profiles()}
    # parameters of a toy are small enough to stay whole in the profiles of stage 3: here they are divided too
    apart = {
        f"{name}, divided": {
            "zero_optimization": {**table["zero_optimization"], "stage3_param_persistence_threshold": 0}
        }
        for name, table in settings.items()
        if name.startswith("zero3")
    }
    found = spawn(curves, 2, {"none": {}, **settings, **apart})[0]
    plain = found.pop("none")
    assert plain[-1] < plain[2], "it learns"
    for name, curve in found.items():
        assert curve == pytest.approx(plain, abs=1e-6), name
