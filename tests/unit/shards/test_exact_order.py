"""The promise of the stream, for every split of the work: world sizes 1, 2, 4, 8 x workers 0-3 x shards 1-17."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.budget import Budget
from shards.orders.base import Order
from shards.orders.curriculum import Curriculum
from shards.orders.inverse_availability import InverseAvailability
from shards.orders.sequential import Sequential
from shards.orders.shuffled import Shuffled
from shards.stream import BatchStream
from tests.unit.shards.samples import Memory

WORLDS, WORKERS = (1, 2, 4, 8), (0, 1, 2, 3)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Memory, np.ndarray, dict[str, object]]:
    shards = draw(st.lists(st.integers(1, 6), min_size=1, max_size=17))
    count = sum(shards)
    chosen = draw(st.sets(st.integers(0, count - 1), min_size=1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = Memory(shards, present={"m": rng.random(count) < 0.8}, sizes=rng.integers(0, 9, count))
    budget = draw(st.none() | st.builds(Budget, axis=st.just("m.atoms"), max=st.integers(1, 40)))
    settings = {"batch_size": draw(st.integers(1, 20)), "seed": draw(st.integers(0, 2**63)), "budget": budget}
    return data, np.array(sorted(chosen)), settings


def ids(batches: Sequence[object]) -> list[list[str]]:
    return [batch.ids for batch in batches]  # type: ignore[attr-defined]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cases(), st.sampled_from(WORLDS), st.sampled_from(WORKERS), st.integers(0, 2), st.floats(0, 1, exclude_max=True),
    st.sampled_from([Shuffled(block_shards=3), Sequential()]),
)  # fmt: skip
def test_each_sample_once_in_the_same_batches_on_equal_steps_and_resumed_anywhere(
    case: tuple[Memory, np.ndarray, dict[str, object]], world: int, workers: int, epoch: int, place: float, order: Order
) -> None:
    data, positions, options = case
    single = BatchStream(data, positions, order=order, workers=0, **options)  # type: ignore[arg-type]
    reference = ids(list(single.epoch(epoch)))
    assert sorted(int(i) for batch in reference for i in batch) == positions.tolist(), "not each sample once"
    assert all(reference), "a global batch is empty"
    assert len(reference) == single.steps_in(epoch)

    start = int(place * len(reference))
    whole, late = [], []
    for rank in range(world):
        stream = BatchStream(data, positions, order=order, workers=workers, rank=rank, world=world, **options)  # type: ignore[arg-type]
        whole.append(ids(list(stream.epoch(epoch))))
        data.read.clear()
        late.append(ids(list(stream.epoch(epoch, start=start))))
        own = [int(i) for batch in late[-1] for i in batch]
        assert sorted(data.read) == sorted(own), "a resumed stream reads what it does not deliver"
        np.testing.assert_array_equal(data.prefetched[-1], [int(i) for batch in reference[start:] for i in batch])
    assert {len(part) for part in whole} == {len(reference)}, "the ranks differ in steps"
    assert [list(chain(*parts)) for parts in zip(*whole, strict=True)] == reference
    assert [list(chain(*parts)) for parts in zip(*late, strict=True)] == reference[start:]


@pytest.mark.parametrize("budget", [None, Budget(axis="m.atoms", max=25)])
@pytest.mark.parametrize(
    "order",
    [Shuffled(), Sequential(), Curriculum(difficulty="length:m.atoms", epochs=4), InverseAvailability()],
    ids=lambda order: order.kind,
)
def test_steps_add_up_and_locate_every_global_step(order: Order, budget: Budget | None) -> None:
    rng = np.random.default_rng(5)
    data = Memory([7] * 9, present={"m": rng.random(63) < 0.7}, sizes=rng.integers(1, 9, 63))
    stream = BatchStream(data, np.arange(50), batch_size=8, seed=4, order=order, budget=budget)
    places = [(epoch, step) for epoch in range(6) for step in range(len(list(stream.epoch(epoch))))]
    fresh = BatchStream(data, np.arange(50), batch_size=8, seed=4, order=order, budget=budget)
    assert [fresh.locate(step) for step in range(len(places))] == places
    lengths = [sum(epoch == e for e, _ in places) for epoch in range(6)]
    assert [fresh.steps_in(epoch) for epoch in range(6)] == lengths
    assert [fresh.total(epochs) for epochs in range(7)] == np.cumsum([0, *lengths]).tolist()
    assert fresh.total(2.5) == sum(lengths[:2]) + round(lengths[2] / 2)
    assert (len(set(lengths)) == 1) == (budget is None or order.kind == "sequential")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_arrives_at_its_own_step_and_leaves_no_thread(workers: int) -> None:
    class Broken(Memory):
        def __getitem__(self, position: int) -> object:  # type: ignore[override]
            if position == 7:
                raise ValueError("sample 7 is damaged")
            return super().__getitem__(position)

    batches = BatchStream(Broken([20]), np.arange(20), batch_size=2, order=Sequential(), workers=workers).epoch(0)
    assert ids([next(batches) for _ in range(3)]) == [["0", "1"], ["2", "3"], ["4", "5"]]
    with pytest.raises(ValueError, match="sample 7 is damaged"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_prepared_at_once_and_at_most_two_a_worker_ahead(workers: int) -> None:
    """As many reads wait for each other as there are workers: with fewer threads this would never end."""
    together = threading.Barrier(workers, timeout=60)

    class Waiting(Memory):
        def __getitem__(self, position: int) -> object:  # type: ignore[override]
            if position < workers:
                together.wait()
            return super().__getitem__(position)

    data = Waiting([40])
    batches = BatchStream(data, np.arange(40), batch_size=1, order=Sequential(), workers=workers).epoch(0)
    assert next(batches).ids == ["0"]
    batches.close()
    assert max(data.read) <= 2 * workers
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_without_workers_nothing_is_read_ahead() -> None:
    data = Memory([40])
    batches = BatchStream(data, np.arange(40), batch_size=4, order=Sequential(), workers=0).epoch(0)
    next(batches)
    assert data.read == [0, 1, 2, 3]
