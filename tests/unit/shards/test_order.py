from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import epoch_order, rank_slice, step_slice, steps_per_epoch

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=17)


@st.composite
def positions_in_shards(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    sizes = draw(SIZES)
    total = sum(sizes)
    chosen = draw(st.sets(st.integers(0, total - 1), min_size=1))
    return np.array(draw(st.permutations(sorted(chosen)))), sizes


@given(positions_in_shards(), st.integers(0, 2**63), st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 20))
def test_each_sample_once_in_the_same_global_batches_for_every_world(
    where: tuple[np.ndarray, list[int]], seed: int, epoch: int, blocks: int, batch: int
) -> None:
    positions, sizes = where
    order = epoch_order(positions, sizes, seed=seed, epoch=epoch, block_shards=blocks)
    assert sorted(order) == sorted(positions)
    steps = steps_per_epoch(len(order), batch)
    batches = [step_slice(order, step, batch) for step in range(steps)]
    np.testing.assert_array_equal(np.concatenate(batches), order)
    assert all(len(rows) == batch for rows in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch
    assert len(step_slice(order, steps, batch)) == 0
    for world in (1, 2, 3, 4, 8):
        for rows in batches:
            parts = [rows[rank_slice(len(rows), rank, world)] for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate(parts), rows)
            lengths = [len(part) for part in parts]
            assert max(lengths) - min(lengths) <= 1


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
