from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import endless, epoch_order, rank_slice

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=17)


@st.composite
def positions_in_shards(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(SIZES)
    total = sum(sizes)
    chosen = draw(st.sets(st.integers(0, total - 1), min_size=1))
    return np.array(draw(st.permutations(sorted(chosen)))), sizes


@given(positions_in_shards(), st.integers(0, 2**63), st.integers(0, 10_000), st.integers(1, 5))
def test_an_order_is_a_permutation(where: tuple[np.ndarray, list[int]], seed: int, epoch: int, blocks: int) -> None:
    positions, sizes = where
    order = epoch_order(positions, sizes, seed=seed, epoch=epoch, block_shards=blocks)
    assert order.dtype == np.int64
    assert sorted(order) == sorted(positions)


@given(st.integers(0, 100), st.integers(1, 20))
def test_ranks_share_rows_evenly(rows: int, world: int) -> None:
    parts = [np.arange(rows)[rank_slice(rows, rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 9), st.integers(0, 50), st.integers(1, 50))
def test_endless_passes_begin_anywhere(length: int, start: int, count: int) -> None:
    computed = []

    def one_pass(number: int) -> np.ndarray:
        computed.append(number)
        return np.random.default_rng(number).permutation(length)

    whole = np.concatenate([np.random.default_rng(number).permutation(length) for number in range(101)])
    np.testing.assert_array_equal(endless(one_pass, length, start, count), whole[start : start + count])
    assert computed == sorted({place // length for place in range(start, start + count)}), "other passes were computed"


@given(positions_in_shards(), st.integers(0, 100))
def test_the_order_is_a_function_of_seed_and_epoch_alone(where: tuple[np.ndarray, list[int]], seed: int) -> None:
    positions, sizes = where
    first = epoch_order(positions, sizes, seed=seed, epoch=3)
    np.random.seed(seed)
    np.testing.assert_array_equal(first, epoch_order(np.sort(positions), sizes, seed=seed, epoch=3))


def test_epochs_and_seeds_differ() -> None:
    orders = {
        tuple(epoch_order(np.arange(50), [10] * 5, seed=seed, epoch=epoch)) for seed in range(8) for epoch in range(8)
    }
    assert len(orders) == 64
    assert tuple(range(50)) not in orders


def test_no_position_prefers_a_place() -> None:
    """Mean place of each sample over 400 epochs: 24.5 with a standard error of 0.72."""
    places = np.zeros((400, 50))
    for epoch in range(400):
        places[epoch, epoch_order(np.arange(50), [10] * 5, seed=1, epoch=epoch)] = np.arange(50)
    assert np.abs(places.mean(0) - 24.5).max() < 4.5 * 0.72


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_few_shards_are_open_at_a_time(blocks: int) -> None:
    sizes = [20] * 12
    order = epoch_order(np.arange(240), sizes, seed=0, epoch=0, block_shards=blocks)
    shard = order // 20
    for start in range(0, 240, 20 * blocks):
        assert len(set(shard[start : start + 20 * blocks])) == blocks
    firsts = [epoch_order(np.arange(240), sizes, seed=0, epoch=e, block_shards=1)[0] // 20 for e in range(60)]
    assert len(set(firsts)) > 8, "the shards are not shuffled"
