"""Micro-batches and accumulated batches through the real engine, at every ZeRO stage, on uneven ranks.

The reference is plain PyTorch: one process, the whole batch at once, AdamW. With dropout, where the whole batch draws
other masks, it is the same engine with all micro-batches' graphs held.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed.ranks import spawn

STEPS, ROWS, MICRO = 4, 12, 2
# rows of each rank, step by step: uneven, and none
ROWS_OF = {1: [[12]] * 4, 2: [[9, 3], [12, 0], [0, 12], [5, 7]]}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ALL = {"accumulate": 3, "micro_batch": MICRO, "grad_clip": 0.05}
# settings of ZeRO, objective, options of the optimizer; below, dropout as well
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "zero0-micro": ({"stage": 0}, "anchored", {"micro_batch": MICRO}),
    "zero1-micro": ({"stage": 1}, "test_views", {"micro_batch": MICRO}),
    "zero2-micro": ({"stage": 2}, "anchored", {"micro_batch": MICRO}),
    "zero3-micro": ({"stage": 3}, "test_views", {"micro_batch": MICRO}),
    "zero0-two-batches": ({"stage": 0}, "test_views", {"accumulate": 2}),
    "zero3-recomputed": ({"stage": 3}, "test_views", {"micro_batch": MICRO, "checkpoint_activations": True}),
    "zero1-recomputed": ({"stage": 1}, "anchored", {"accumulate": 2, "checkpoint_activations": True}),
    **{f"zero{stage}-all": ({"stage": stage}, "anchored", ALL) for stage in range(4)},
    **{f"zero{stage}-offloaded": ({"stage": stage, **OFFLOAD}, "anchored", ALL) for stage in (2, 3)},
}
DROPOUT = {f"zero{stage}": stage for stage in range(4)}
TOLERANCE = 1e-5


def batches() -> list[list[Any]]:
    """Global batches; in each another modality is missing from the first rank, in one everywhere."""
    from tests.small_models import samples

    steps = []
    for step, (absent, everywhere) in enumerate([("b", ""), ("c", ""), ("", "a"), ("a", "")]):
        edge = ROWS_OF[2][step][0]
        first = samples(edge, seed=step, absent=absent + everywhere)
        steps.append(first + samples(ROWS - edge, seed=10 + step, absent=everywhere))
    return steps


def start(objective: str, optim: dict[str, Any], dropout: float = 0.0) -> Any:
    from tests.small_models import model, recipe

    config = recipe(objective, dropout=dropout, optim=optim)
    return config, model(config)


def train(objective: str, zero: dict[str, Any], optim: dict[str, Any], dropout: float = 0.0) -> dict[str, Any]:
    from pretrain.engine import Engine, start_process_group
    from pretrain.prepare import prepare
    from shards.batch import rows_of
    from tests.small_models import batch

    rank, world, _ = start_process_group()
    config, net = start(objective, optim, dropout)
    prepare(net, config)
    if zero["stage"] == 3:
        # small parameters are spread over the ranks too
        zero = {**zero, "stage3_param_persistence_threshold": 0}
    engine = Engine(
        net, config.optim, batch_size=ROWS, warmup_steps=2, total_steps=STEPS, seed=0,
        settings={"zero_optimization": zero},
    )  # fmt: skip
    losses = []
    for step, everything in enumerate(batches()):
        sizes = ROWS_OF[world][step]
        first = sum(sizes[:rank])
        part = rows_of(batch(everything), net.specs, first, first + sizes[rank])
        losses.append(engine.compute(part, step)["loss"])
        engine.apply()
    with engine.whole():
        found = {name: value.detach().float().cpu().numpy().copy() for name, value in net.named_parameters()}
    return {"losses": losses, "parameters": found, "calls": float(getattr(net.objective, "calls", torch.zeros(1)))}


def train_all(cases: dict[str, tuple[dict[str, Any], str, dict[str, Any]]]) -> dict[str, Any]:
    return {case: train(objective, zero, optim) for case, (zero, objective, optim) in cases.items()}


def plain(objective: str, optim: dict[str, Any]) -> dict[str, Any]:
    """The reference: no engine, no micro-batches, no ranks."""
    from pretrain.accumulate import contrast
    from pretrain.optimizer import learning_rate, parameter_groups
    from tests.small_models import batch

    config, net = start(objective, optim)
    groups = parameter_groups(net, config.optim.weight_decay)
    adam = torch.optim.AdamW(groups, betas=config.optim.betas, weight_decay=0.0)
    losses, together = [], config.optim.accumulate
    for first in range(0, STEPS, together):
        steps = range(first, min(first + together, STEPS))
        adam.zero_grad()
        for step in steps:
            share = torch.tensor(1 / len(steps))
            loss, _ = contrast(
                net, net.objective, partial(torch.Tensor.backward, gradient=share), batch(batches()[step])
            )
            losses.append(float(loss))
        if config.optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), config.optim.grad_clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate(config.optim, steps[-1], warmup=2, total=STEPS)
        adam.step()
    return {"losses": losses, "parameters": {name: value.detach().numpy() for name, value in net.named_parameters()}}


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return spawn(train_all, request.param, CASES)


@pytest.mark.parametrize("case", CASES)
def test_training_equals_plain_pytorch_on_whole_batches(case: str, trained: list[dict[str, Any]]) -> None:
    _, objective, optim = CASES[case]
    right = plain(objective, optim)
    for rank in trained:
        assert rank[case]["losses"] == pytest.approx(right["losses"], abs=TOLERANCE)
        for name, value in right["parameters"].items():
            np.testing.assert_allclose(rank[case]["parameters"][name], value, atol=TOLERANCE, rtol=0, err_msg=name)
        assert rank[case]["calls"] == (STEPS if objective == "test_views" else 0)


def held(encode: Any, objective: Any, backward: Any, batch: Any, **options: Any) -> Any:
    """The definition of `contrast`: the same micro-batches with the same random numbers, all graphs held."""
    from pretrain.accumulate import micro_batches
    from pretrain.gather import gather_batch

    parts = [encode(part) for part in micro_batches(batch, options["specs"], options["micro_batch"])]
    z, present = ({name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i]} for i in (0, 1))
    loss, logs = objective(gather_batch(z, present, batch.groups if objective.needs_groups else None))
    options["set_boundary"](options["boundary"])
    backward(loss)
    return loss.detach(), logs


def with_dropout(replay: bool = True) -> dict[str, Any]:
    import pretrain.accumulate
    import pretrain.engine

    results = {}
    if not replay:
        pretrain.accumulate.set_random_state = lambda *_: None  # type: ignore[assignment]
    for case, stage in DROPOUT.items():
        results[case] = train("test_views", {"stage": stage}, {"micro_batch": 4}, dropout=0.3)
    pretrain.engine.contrast = held  # type: ignore[assignment]
    return {**results, "held": train("test_views", {"stage": 0}, {"micro_batch": 4}, dropout=0.3)}


def largest_gap(one: dict[str, Any], two: dict[str, Any], only: str = "") -> float:
    gaps = {name: float(np.abs(one["parameters"][name] - value).max()) for name, value in two["parameters"].items()}
    return gaps[only] if only else max(gaps.values())


@pytest.mark.parametrize("world", [1, 2])
def test_with_dropout_training_equals_that_with_all_graphs_held(world: int) -> None:
    for rank in spawn(with_dropout, world):
        for case in DROPOUT:
            assert rank[case]["losses"] == pytest.approx(rank["held"]["losses"], abs=TOLERANCE)
            assert largest_gap(rank[case], rank["held"]) < TOLERANCE, case


def test_a_last_pass_that_leaves_the_objective_out_is_caught() -> None:
    """An offloaded optimizer would forget the temperature's gradient."""
    zero, objective, optim = CASES["zero2-offloaded"]
    (result,) = spawn(without_touch, 1, objective, zero, optim)
    right = plain(objective, optim)
    assert largest_gap(result, right) > 100 * TOLERANCE
    assert {name for name in right["parameters"] if largest_gap(result, right, name) > TOLERANCE} >= {
        "objective.temperature.log_scale"
    }


def without_touch(*case: Any) -> dict[str, Any]:
    import pretrain.accumulate

    pretrain.accumulate.touched = lambda *_: torch.zeros(())  # type: ignore[assignment]
    return train(*case)


def test_other_dropout_masks_in_the_second_pass_are_caught() -> None:
    (result,) = spawn(with_dropout, 1, False)
    assert largest_gap(result["zero0"], result["held"]) > 100 * TOLERANCE


def test_ranks_agree_on_the_number_of_pieces() -> None:
    """Each on its own would take 5 and 2, and wait for the other in vain."""
    assert spawn(pieces, 2, [9, 3]) == [[1, 2, 2, 2, 2], [0, 1, 0, 1, 1]]
    assert spawn(pieces, 2, [0, 2]) == [[0], [2]]


def pieces(rows: list[int]) -> list[int]:
    from pretrain.accumulate import micro_batches
    from pretrain.engine import start_process_group
    from tests.small_models import SPECS, batch, samples

    rank, _, _ = start_process_group()
    return [len(piece.ids) for piece in micro_batches(batch(samples(rows[rank])), SPECS, MICRO)]
