from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.budget import Budget, balanced_slice, pack
from shards.errors import DataError
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.stream import BatchStream
from tests.unit.shards.samples import Memory

SIZES = st.lists(st.integers(0, 30), min_size=0, max_size=60)


def packed_one_by_one(sizes: list[int], most: int, batch_size: int) -> list[list[int]]:
    """The definition: a sample joins the batch if it fits, otherwise it begins the next one."""
    batches: list[list[int]] = []
    for size in sizes:
        fits = batches and sum(batches[-1]) + size <= most and len(batches[-1]) < batch_size
        if fits:
            batches[-1].append(size)
        else:
            batches.append([size])
    return batches


@given(SIZES, st.integers(1, 40), st.integers(1, 9))
def test_batches_are_packed_greedily(sizes: list[int], most: int, batch_size: int) -> None:
    bounds = pack(np.array(sizes, dtype=np.int64), most=most, batch_size=batch_size)
    found = [sizes[first:last] for first, last in pairwise(bounds)]
    assert found == packed_one_by_one(sizes, most, batch_size)
    assert all(sum(batch) <= most or len(batch) == 1 for batch in found)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 8))
def test_ranks_get_contiguous_rows_of_about_equal_size(sizes: list[int], world: int) -> None:
    parts = [balanced_slice(np.array(sizes), rank, world) for rank in range(world)]
    assert [i for part in parts for i in range(len(sizes))[part]] == list(range(len(sizes)))
    loads = [sum(sizes[part]) for part in parts]
    assert max(loads) <= sum(sizes) / world + max(sizes) + 1


def test_rows_without_size_are_shared_too() -> None:
    parts = [balanced_slice(np.zeros(8, dtype=np.int64), rank, 4) for rank in range(4)]
    assert [part.stop - part.start for part in parts] == [2, 2, 2, 2]


def test_no_batch_of_a_real_data_set_exceeds_the_budget_over_all_ranks(toy: Dataset) -> None:
    """Counted in the collated batches of 3 ranks; the two samples of 8 edges exceed the budget of 7 alone."""
    positions = toy.positions("chemical_system", "train")
    budget = Budget(axis="crystal.edges", max=7)
    streams = [
        BatchStream(toy, positions, batch_size=6, budget=budget, rank=rank, world=3, order=Sequential())
        for rank in range(3)
    ]
    parts = list(zip(*(stream.epoch(0) for stream in streams), strict=True))
    edges = [
        sum(int(b.inputs["crystal"]["edges_ptr"][-1]) for b in batches if "crystal" in b.inputs)  # type: ignore[arg-type]
        for batches in parts
    ]
    ids = [[sample_id for batch in batches for sample_id in batch.ids] for batches in parts]
    assert [i for batch in ids for i in batch] == [toy.ids[i] for i in positions]
    assert all(len(batch) <= 6 for batch in ids)
    alone = [len(batch) for batch, count in zip(ids, edges, strict=True) if count > 7]
    assert alone == [1] * streams[0].larger_than_budget
    assert alone, "the case is too easy"
    assert len({len(batch) for batch in ids}) > 2


def test_the_trained_on_samples_alone_are_counted_as_too_large() -> None:
    data = Memory([4], sizes=np.array([9, 1, 9, 9]))
    assert BatchStream(data, np.arange(3), batch_size=2, budget=Budget(axis="m.atoms", max=5)).larger_than_budget == 2
    assert BatchStream(data, np.arange(3), batch_size=2).larger_than_budget == 0


def test_an_axis_that_does_not_exist_is_refused(toy: Dataset) -> None:
    with pytest.raises(DataError, match=r"crystal\.edges"):
        BatchStream(toy, np.arange(3), batch_size=2, budget=Budget(axis="crystal.edgs", max=5))
