from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ConfigError, DataError
from shards.orders import ORDERS, Order, order
from shards.orders.curriculum import Curriculum
from shards.orders.inverse_availability import InverseAvailability
from shards.orders.sequential import Sequential
from shards.orders.shuffled import Shuffled
from shards.reader import Dataset
from tests.unit.shards.samples import Memory

ALL = [
    Shuffled(block_shards=2),
    Sequential(),
    Curriculum(difficulty="length:m.atoms", epochs=5),
    InverseAvailability(),
]


@pytest.fixture
def data() -> Memory:
    rng = np.random.default_rng(0)
    present = {"m": rng.random(120) < 0.8, "k": rng.random(120) < 0.3, "r": rng.random(120) < 0.05}
    return Memory([20] * 6, present=present, sizes=rng.integers(1, 30, 120))


@pytest.mark.parametrize("plan", ALL, ids=lambda plan: plan.kind)
def test_an_order_is_a_pure_function_of_seed_and_epoch_of_constant_length(plan: Order, data: Memory) -> None:
    positions = np.arange(10, 110)
    epochs = plan.prepare(data, positions, seed=3)
    forward = [epochs(epoch).copy() for epoch in range(7)]
    np.random.seed(1)
    again = plan.prepare(data, positions, seed=3)
    for epoch in reversed(range(7)):
        np.testing.assert_array_equal(again(epoch), forward[epoch])
    assert {len(visited) for visited in forward} == {plan.length(100)} == {100}
    assert all(visited.dtype == np.int64 and set(visited) <= set(positions) for visited in forward)
    if plan.kind != "sequential":
        assert not np.array_equal(forward[5], forward[6])
        assert not np.array_equal(plan.prepare(data, positions, seed=4)(6), forward[6])


def test_kinds_are_found_by_name_and_misspelt_options_refused() -> None:
    assert ORDERS.kinds() == ["curriculum", "inverse_availability", "sequential", "shuffled"]
    assert order({"kind": "shuffled", "block_shards": 4}) == Shuffled(block_shards=4)
    with pytest.raises(ConfigError, match="did you mean 'shuffled'"):
        order({"kind": "shufled"})
    with pytest.raises(ConfigError, match="did you mean 'difficulty'"):
        order({"kind": "curriculum", "dificulty": "missing", "epochs": 3})
    for wrong in ("easy", "label:", "length:crystal"):
        with pytest.raises(ConfigError, match="difficulty"):
            order({"kind": "curriculum", "difficulty": wrong, "epochs": 3})


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.floats(0.05, 1), st.sampled_from([0.5, 1.0, 2.0]), st.integers(1, 6),
)  # fmt: skip
def test_a_curriculum_draws_evenly_up_to_the_quantile(hard: list[int], start: float, power: float, last: int) -> None:
    """The specification: max(d) of what is drawn is the lam-quantile; from T on each sample once."""
    labels = [{"d": float(d)} for d in hard]
    data = Memory([len(hard)], labels=labels)
    plan = Curriculum(difficulty="label:d", epochs=last, start=start, power=power)
    epochs = plan.prepare(data, np.arange(len(hard)), seed=1)
    for epoch in range(last + 3):
        fraction = min(Fraction(1), Fraction(start) + (1 - Fraction(start)) * Fraction((epoch / last) ** power))
        # the smallest difficulty with at least that fraction of the samples at or below it
        quantile = min(q for q in hard if sum(d <= q for d in hard) >= fraction * len(hard) - Fraction(1, 10**9))
        visits = Counter(epochs(epoch).tolist())
        assert max(hard[i] for i in visits) == quantile
        assert set(visits) == {i for i, d in enumerate(hard) if d <= quantile}, "an easy sample is left out"
        assert max(visits.values()) - min(visits.values()) <= 1
        assert sum(visits.values()) == len(hard)
        if epoch >= last:
            assert set(visits.values()) == {1}


def test_the_first_epoch_ends_at_numpys_quantile() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=200)
    data = Memory([200], labels=[{"d": value} for value in values])
    drawn = Curriculum(difficulty="label:d", epochs=10).prepare(data, np.arange(200), seed=0)(0)
    assert values[drawn].max() == np.quantile(values, 0.3, method="inverted_cdf")


@pytest.mark.parametrize(
    ("difficulty", "expected"),
    [("missing", [0, 1, 1, 2, 0]), ("length:m.atoms", [5, 3, np.inf, np.inf, 9]),
     ("label:gap_ev", [0.5, np.inf, 0.1, np.inf, 0.0]), ("tag:elements", [1, 2, np.inf, 4, 3])],
)  # fmt: skip
def test_difficulties(difficulty: str, expected: list[float]) -> None:
    """What lacks the quantity comes last: by the first epoch in which each sample is drawn."""
    present = {"m": np.array([1, 1, 0, 0, 1], bool), "k": np.array([1, 0, 1, 0, 1], bool)}
    labels = [{"gap_ev": 0.5}, {}, {"gap_ev": 0.1}, {"gap_ev": float("nan")}, {"gap_ev": 0.0}]
    tags = [{"elements": "1"}, {"elements": "2.0"}, {}, {"elements": "4"}, {"elements": "3"}]
    data = Memory([5], present=present, sizes=np.array([5, 3, 7, 2, 9]), labels=labels, tags=tags)
    epochs = Curriculum(difficulty=difficulty, epochs=8, start=0.01).prepare(data, np.arange(5), seed=0)
    first = [next(epoch for epoch in range(9) if i in epochs(epoch)) for i in range(5)]
    ranks = np.searchsorted(np.unique(expected), expected)
    np.testing.assert_array_equal(np.searchsorted(np.unique(first), first), ranks)


def test_difficulties_that_cannot_be_told_are_refused(toy: Dataset) -> None:
    data = Memory([2], tags=[{"elements": "many"}, {"elements": "1"}])
    for difficulty, message in [("tag:elements", "is no number"), ("label:gap_ev", "no sample has")]:
        with pytest.raises(DataError, match=message):
            Curriculum(difficulty=difficulty, epochs=3).prepare(data, np.arange(2), seed=0)
    for difficulty, meant in [("length:cristal.atoms", "crystal"), ("length:crystal.atom", "crystal.atoms")]:
        with pytest.raises(DataError, match=f"did you mean '{meant}'"):
            Curriculum(difficulty=difficulty, epochs=3).prepare(toy, np.arange(2), seed=0)


def test_a_curriculum_reads_a_real_data_set(toy: Dataset) -> None:
    positions = toy.positions("chemical_system", "train")
    for difficulty in ("missing", "length:crystal.edges", "label:gap_ev"):
        epochs = Curriculum(difficulty=difficulty, epochs=4).prepare(toy, positions, seed=0)
        assert len(set(epochs(0))) < len(positions)
        assert sorted(epochs(4)) == positions.tolist()
    drawn = Curriculum(difficulty="missing", epochs=4, start=0.05).prepare(toy, positions, seed=0)(0)
    fullest = max(len(toy[int(i)].modalities) for i in positions)
    assert {len(toy[int(i)].modalities) for i in drawn} == {fullest}


def expected_visits(data: Memory, positions: np.ndarray) -> list[Fraction]:
    """c_i of the docstring, one sample after the other, in whole numbers."""
    holders = {name: int(has[positions].sum()) for name, has in data.present.items()}
    weights = []
    for i in positions:
        rarest = min([holders[name] for name, has in data.present.items() if has[i]], default=len(positions))
        weights.append(1 / Fraction(rarest, len(positions)))
    return [len(positions) * weight / sum(weights) for weight in weights]


def test_visits_are_the_floor_or_ceil_of_their_exact_expectation(data: Memory) -> None:
    positions = np.arange(5, 115)
    expected = expected_visits(data, positions)
    epochs = InverseAvailability().prepare(data, positions, seed=9)
    visits = np.array([np.bincount(epochs(e), minlength=120)[positions] for e in range(400)])
    for column, mean in zip(visits.T, expected, strict=True):
        assert set(column) <= {mean.__floor__(), mean.__ceil__()}
        # a visit beyond the floor is a coin of that mean: 5 standard errors of 400 tosses
        assert abs(column.mean() - mean) <= 5 * 0.5 / 20
    assert len({round(float(mean), 6) for mean in expected}) == 4, "the case is too easy"


def test_modalities_that_do_not_meet_get_equal_shares() -> None:
    owner = np.repeat(["a", "b", "c"], [70, 25, 5])
    data = Memory([50, 50], present={name: owner == name for name in "abc"})
    epochs = InverseAvailability().prepare(data, np.arange(100), seed=0)
    totals = Counter()
    for epoch in range(30):
        counts = Counter(owner[epochs(epoch)].tolist())
        assert set(counts.values()) <= {33, 34}
        totals += counts
    assert max(totals.values()) - min(totals.values()) <= 30


def test_equal_availability_is_every_sample_once() -> None:
    data = Memory([7, 6], present={"m": np.ones(13, bool), "none": np.zeros(13, bool)})
    for epoch in range(5):
        assert sorted(InverseAvailability().prepare(data, np.arange(13), seed=0)(epoch)) == list(range(13))


def test_copies_of_a_sample_keep_apart(data: Memory) -> None:
    """A sample that comes c times comes about every N / c places."""
    visited = InverseAvailability().prepare(data, np.arange(120), seed=0)(0)
    rare = [i for i, count in Counter(visited.tolist()).items() if count >= 4]
    gaps = [
        gap for i in rare for gap in np.diff(np.flatnonzero(visited == i)) * len(np.flatnonzero(visited == i)) / 120
    ]
    assert rare
    assert 0.5 < min(gaps) <= max(gaps) < 2
    assert any(a != b for a, b in pairwise(visited))
