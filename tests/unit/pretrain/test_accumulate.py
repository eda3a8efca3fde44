"""Micro-batches give the gradient of the whole batch; ranks are tested in `tests.distributed.test_accumulate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain import accumulate
from pretrain.accumulate import contrast, micro_batches
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from shards.batch import Batch
from tests.small_models import SPECS, batch, model, recipe, samples

ROWS, SEED = 11, 7
OBJECTIVES = ["anchored", "all_pairs", "test_views"]
Result = tuple[float, dict[str, Tensor]]
Variant = Callable[[MultimodalModel, Batch, int], Any]


def small(objective: str = "anchored", dropout: float = 0.3, **options: Any) -> tuple[MultimodalModel, Batch]:
    return model(recipe(objective, dropout=dropout), **options), batch(samples(ROWS))


def run(variant: Variant, net: MultimodalModel, whole: Batch, size: int) -> Result:
    net.zero_grad()
    torch.manual_seed(SEED)
    loss = variant(net, whole, size)
    return float(loss), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def cached(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    return contrast(net, net.objective, Tensor.backward, whole, specs=SPECS, micro_batch=size)[0]


def held(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    """The definition: the same micro-batches, one after the other, all of their graphs held."""
    parts = [net(part) for part in micro_batches(whole, SPECS, size)]
    z, present = ({name: torch.cat([part[i][name] for part in parts]) for name in net.names} for i in (0, 1))
    loss, _ = net.objective(gather_batch(z, present, whole.groups))
    loss.backward()
    return loss


def plain(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    return contrast(net, net.objective, Tensor.backward, whole)[0]


def differ(one: Result, two: Result, tolerance: float = 1e-5) -> bool:
    scale = max(float(grad.abs().max()) for grad in two[1].values())
    assert scale > 0.01
    gaps = [float((grad - two[1][name]).abs().max()) for name, grad in one[1].items()]
    return one[1].keys() != two[1].keys() or abs(one[0] - two[0]) > tolerance or max(gaps) > tolerance


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", [1, 2, 4, 5, 10])
def test_without_dropout_micro_batches_equal_the_whole_batch(objective: str, size: int) -> None:
    net, whole = small(objective, dropout=0.0)
    assert not differ(run(cached, net, whole, size), run(plain, net, whole, size))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("size", [2, 5])
def test_with_dropout_they_equal_the_same_micro_batches_held_whole(objective: str, size: int) -> None:
    net, whole = small(objective)
    assert not differ(run(cached, net, whole, size), run(held, net, whole, size))


def test_autocast_replays_too() -> None:
    net, whole = small(autocast=torch.bfloat16)
    assert not differ(run(cached, net, whole, 3), run(held, net, whole, 3))


def test_a_micro_batch_that_is_large_enough_changes_nothing() -> None:
    net, whole = small()
    assert micro_batches(whole, SPECS, ROWS) == [whole]
    one, two = run(cached, net, whole, ROWS), run(plain, net, whole, 0)
    assert one[0] == two[0]
    assert all((one[1][name] == grad).all() for name, grad in two[1].items())


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_one_piece_and_have_a_gradient(rows: int) -> None:
    net = model(recipe())
    loss, grads = run(cached, net, batch(samples(rows)), 4)
    assert loss == 0.0
    assert grads.keys() == {name for name, _ in net.named_parameters()}
    assert not any(grad.any() for grad in grads.values())


@pytest.mark.parametrize(("size", "rows"), [(1, [1] * 11), (4, [3, 4, 4]), (5, [3, 4, 4]), (10, [5, 6]), (11, [11])])
def test_the_pieces_are_even(size: int, rows: list[int]) -> None:
    pieces = micro_batches(batch(samples(ROWS)), SPECS, size)
    assert [len(piece.ids) for piece in pieces] == rows
    assert [name for piece in pieces for name in piece.ids] == [str(row) for row in range(ROWS)]
    assert all(piece.twin is not None and piece.twin.ids == piece.ids for piece in pieces)


def test_the_random_numbers_afterwards_are_those_of_one_pass() -> None:
    net, whole = small()
    drawn = []
    for variant in (cached, held):
        run(variant, net, whole, 3)
        drawn.append(torch.rand(3))
    assert (drawn[0] == drawn[1]).all()


def test_the_objective_runs_once_and_every_piece_is_one_backward_pass() -> None:
    net, whole = small("test_views")
    boundaries, passes = [], []

    def backward(value: Tensor) -> None:
        passes.append(value.ndim)
        value.backward()

    options = {"specs": SPECS, "micro_batch": 3, "set_boundary": boundaries.append}
    contrast(net, net.objective, backward, whole, **options)
    assert net.objective.calls.tolist() == [1.0]
    assert passes == [0] * 4
    assert boundaries == [False, False, False, True]
    contrast(net, net.objective, backward, whole, boundary=False, **options)
    assert boundaries[4:] == [False] * 4


def test_a_constant_factor_of_backward_is_a_factor_of_the_gradient() -> None:
    """A loss scale, or the share of several batches."""
    net, whole = small()

    def scaled(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
        return contrast(net, net.objective, lambda value: (value * 8).backward(), whole, specs=SPECS, micro_batch=size)[
            0
        ]

    loss, grads = run(scaled, net, whole, 3)
    assert not differ((loss, {name: grad / 8 for name, grad in grads.items()}), run(cached, net, whole, 3))


def test_frozen_parts_get_no_gradient_and_where_all_are_there_is_no_second_pass() -> None:
    net, whole = small()
    for part in (net.encoders["a"], net.projections["a"]):
        part.requires_grad_(False)
    runs = []
    net.encoders["a"].register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    assert not differ(run(cached, net, whole, 3), run(held, net, whole, 3))
    net.requires_grad_(False)
    net.objective.requires_grad_()
    runs.clear()
    boundaries: list[bool] = []
    options = {"specs": SPECS, "micro_batch": 3, "set_boundary": boundaries.append}
    contrast(net, net.objective, Tensor.backward, whole, **options)
    assert len(runs) == 4
    assert boundaries == [True]


def without_replay(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulate, "set_random_state", lambda *_: None)
        return cached(net, whole, size)


def without_parameters_of_the_objective(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    """GradCache as it is usually written: the gradient at the embeddings, and nothing else, is taken on."""
    loss = held(net, whole, size)
    for parameter in net.objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return loss


def times_the_pieces(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    """Every piece adds the gradient of the whole loss to the objective's parameters."""
    loss = held(net, whole, size)
    for parameter in net.objective.parameters():
        parameter.grad *= len(micro_batches(whole, SPECS, size))
    return loss


def each_piece_alone(net: MultimodalModel, whole: Batch, size: int) -> Tensor:
    """Plain gradient accumulation: rows are compared with those of their piece only."""
    pieces = micro_batches(whole, SPECS, size)
    return sum(contrast(net, net.objective, Tensor.backward, piece)[0] for piece in pieces) / len(pieces)


@pytest.mark.parametrize(
    "wrong", [without_replay, without_parameters_of_the_objective, times_the_pieces, each_piece_alone]
)
def test_wrong_ways_are_caught(wrong: Variant) -> None:
    net, whole = small()
    assert differ(run(wrong, net, whole, 3), run(held, net, whole, 3), tolerance=1e-4)
