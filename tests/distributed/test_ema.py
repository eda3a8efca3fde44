"""The moving average beside the real engine: the same on all ranks, from whole weights, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn

DECAY, STEPS, STAGES = 0.8, 4, (0, 1, 2, 3)


def average() -> dict[int, Any]:
    from pretrain.ema import MovingAverage
    from pretrain.engine import Engine, start_process_group
    from pretrain.prepare import prepare
    from tests.small_models import batch, model, recipe, samples

    rank, _, _ = start_process_group()
    found = {}
    for stage in STAGES:
        config = recipe(c={"freeze": "encoder"}, optim={"ema": DECAY, "accumulate": 2})
        net = model(config)
        prepare(net, config)
        mean = MovingAverage(net, DECAY)
        spread = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        engine = Engine(
            net, config.optim, batch_size=12, warmup_steps=0, total_steps=2 * STEPS, seed=0,
            settings={"zero_optimization": {"stage": stage, **spread}}, scales=net.lr_scales,
        )  # fmt: skip
        weights = []
        for step in range(2 * STEPS):
            engine.compute(batch(samples(6, seed=10 * step + rank)), step)
            engine.apply()
            if not engine.pending:
                with engine.whole():
                    mean.update(net)
                    weights.append({n: p.detach().cpu().double().numpy().copy() for n, p in net.named_parameters()})
        means = {name: value.numpy() for name, value in mean.module.named_parameters()}
        found[stage] = {"weights": weights, "mean": means}
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[int, Any]]:
    return spawn(average, 2)


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_is_that_of_the_weights_after_each_step_of_the_optimizer(
    stage: int, ranks: list[dict[int, Any]]
) -> None:
    for found in (rank[stage] for rank in ranks):
        assert len(found["weights"]) == STEPS
        for name, mean in found["mean"].items():
            first, *later = [weights[name] for weights in found["weights"]]
            expected = first
            for weights in later:
                expected = DECAY * expected + (1 - DECAY) * weights
            np.testing.assert_allclose(mean, expected, atol=1e-6, rtol=0)
            assert (mean == ranks[0][stage]["mean"][name]).all()
            frozen = name.startswith("encoders.c.")
            assert (np.abs(later[-1] - first).max() > 1e-3) != frozen, name
