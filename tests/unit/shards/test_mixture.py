from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build import build
from shards.errors import ConfigError, DataError
from shards.mixture import Member, MixedOrder, Mixture, interleave, largest_remainder
from shards.orders.curriculum import Curriculum
from shards.orders.sequential import Sequential
from shards.orders.shuffled import Shuffled
from shards.reader import Dataset
from shards.stream import BatchStream
from tests.synthetic import FEATURES, SPLITS, ToyVector, records

SPLIT = "chemical_system"


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    """A second data set: 24 of the samples again, without text and dos, and with a modality of its own."""
    folder = tmp_path_factory.mktemp("data") / "small"
    steps = {name: FEATURES[name] for name in ("a", "b", "crystal")} | {"own": ToyVector(step="own")}
    build(records(24), steps, folder, name="small", splits=SPLITS, shard_samples=5)
    return folder


@pytest.fixture
def mixture(toy_folder: Path, small_folder: Path) -> Mixture:
    members = [("toy", toy_folder, 1.0), ("small", small_folder, 2.5)]
    return Mixture([Member(name=name, dataset=Dataset(path), weight=weight) for name, path, weight in members])


def test_a_mixture_reads_like_its_members_one_after_the_other(mixture: Mixture, toy: Dataset) -> None:
    small = mixture.members[1].dataset
    assert len(mixture) == len(mixture.ids) == 84
    assert len(set(mixture.ids)) == 84
    assert set(mixture.modalities) == set(toy.modalities) | {"own"}
    for position in (0, 59, 60, 83):
        member, own = (toy, position) if position < 60 else (small, position - 60)
        sample, original = mixture[position], member[own]
        assert sample.id == mixture.ids[position] == f"{'toy' if position < 60 else 'small'}/{original.id}"
        assert sample.modalities == original.modalities
        for name, fields in original.arrays.items():
            for field, array in fields.items():
                np.testing.assert_array_equal(sample.arrays[name][field], array)
        assert (sample.labels, sample.text, sample.tags) == (original.labels, original.text, original.tags)
    for part in ("train", "val"):
        expected = [*toy.positions(SPLIT, part), *(60 + small.positions(SPLIT, part))]
        np.testing.assert_array_equal(mixture.positions(SPLIT, part), expected)
    for name in mixture.modalities:
        np.testing.assert_array_equal(mixture.presence(name), [name in mixture[i].modalities for i in range(84)])
    atoms = [
        len(s.arrays["crystal"]["number"]) if "crystal" in s.arrays else 0 for s in map(mixture.__getitem__, range(84))
    ]
    np.testing.assert_array_equal(mixture.lengths("crystal.atoms"), atoms)
    assert mixture.sha256 == f"{toy.sha256}+{small.sha256}"


def test_a_selection_reads_what_it_names(mixture: Mixture) -> None:
    chosen = mixture.select(["own", "a"])
    assert list(chosen.modalities) == ["own", "a"]
    assert chosen[0].modalities == {"a"}
    assert chosen[60].modalities == {"a", "own"}
    np.testing.assert_array_equal(chosen.lengths("crystal.edges"), mixture.lengths("crystal.edges"))
    assert chosen.presence("dos").sum() == mixture.presence("dos").sum() > 0
    for refused in (lambda: mixture.select(["cristal"]), lambda: mixture.lengths("cristal.edges")):
        with pytest.raises(DataError, match="did you mean 'crystal'"):
            refused()


def test_data_sets_that_do_not_fit_are_refused(toy: Dataset, tmp_path: Path) -> None:
    build(records(9), {"a": ToyVector(step="a", missing=0.5)}, tmp_path / "other", name="o")
    other = Dataset(tmp_path / "other")
    with pytest.raises(DataError, match=r"modality 'a' differs\n.*'a.feature' is .*0.5.*, expected .*0.0"):
        Mixture([Member(name=n, dataset=d, weight=1) for n, d in (("toy", toy), ("other", other))])
    unused = Mixture([Member(name=n, dataset=d, weight=1) for n, d in (("toy", toy), ("other", other))], ["b"])
    assert list(unused.modalities) == ["b"]
    with pytest.raises(ConfigError, match="two data sets of the mix are called 'toy'"):
        Mixture([Member(name="toy", dataset=toy, weight=1)] * 2)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 30), st.integers(0, 9))
def test_every_batch_holds_each_share_within_one(counts: list[int], batch_size: int, seed: int) -> None:
    slots = interleave(counts, batch_size, np.random.default_rng(seed))
    assert np.bincount(slots, minlength=len(counts)).tolist() == counts
    for start in range(0, len(slots), batch_size):
        batch = slots[start : start + batch_size]
        for member, count in enumerate(counts):
            assert abs(int((batch == member).sum()) - Fraction(len(batch) * count, sum(counts))) <= 1


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(0, 500))
def test_largest_remainders_add_up(weights: list[float], total: int) -> None:
    counts = largest_remainder(weights, total)
    assert sum(counts) == total
    remainders = [Fraction(w) * total / sum(map(Fraction, weights)) - c for w, c in zip(weights, counts, strict=True)]
    assert all(-1 < rest < 1 for rest in remainders)
    # who was rounded up had no smaller remainder than who was rounded down
    up, down = [1 + r for r in remainders if r < 0], [r for r in remainders if r >= 0]
    assert not up or not down or min(up) >= max(down)


@pytest.mark.parametrize("inner", [Shuffled(block_shards=2), Sequential()], ids=lambda order: order.kind)
def test_an_epoch_has_exact_counts_and_no_pass_repeats_a_sample(mixture: Mixture, inner: Shuffled | Sequential) -> None:
    """Weights 1 : 2.5 of 30 draws: 9 and 21 (quotas 8.57 and 21.43)."""
    positions = mixture.positions(SPLIT, "train")
    plan = MixedOrder(inner=inner, batch_size=8, samples=30)
    epochs = plan.prepare(mixture, positions, seed=3)
    orders = [epochs(epoch) for epoch in range(20)]
    assert all(Counter((order >= 60).tolist()) == {False: 9, True: 21} for order in orders)
    for first, last in ((0, 60), (60, 84)):
        own = [int(i) for i in positions if first <= i < last]
        walked = [int(i) for order in orders for i in order if first <= i < last]
        passes = [walked[start : start + len(own)] for start in range(0, len(walked) - len(own) + 1, len(own))]
        assert len(passes) >= 5
        assert all(sorted(one) == own for one in passes)
        assert (len({tuple(one) for one in passes}) > 1) == (inner.kind == "shuffled")
    np.testing.assert_array_equal(plan.prepare(mixture, positions, seed=3)(17), orders[17])
    other = plan.prepare(mixture, positions, seed=4)(17)
    assert not np.array_equal(other >= 60, orders[17] >= 60)
    same_walk = np.array_equal(other[other >= 60], orders[17][orders[17] >= 60])
    assert same_walk == (inner.kind == "sequential"), "the passes do not depend on the seed"
    assert plan.length(len(positions)) == 30
    assert MixedOrder(inner=inner, batch_size=8).length(len(positions)) == len(positions)


def test_a_mixed_stream_is_the_same_for_any_ranks_and_resumes(mixture: Mixture) -> None:
    positions = mixture.positions(SPLIT, "train")
    plan = MixedOrder(inner=Curriculum(difficulty="missing", epochs=3), batch_size=7, samples=40)
    settings = {"batch_size": 7, "order": plan, "seed": 2}
    whole = [batch.ids for batch in BatchStream(mixture, positions, **settings).epoch(3)]  # type: ignore[arg-type]
    assert [len(batch) for batch in whole] == [7] * 5 + [5]
    parts = [
        [b.ids for b in BatchStream(mixture, positions, rank=rank, world=2, **settings).epoch(3, start=2)]  # type: ignore[arg-type]
        for rank in range(2)
    ]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole[2:]
    batch = next(BatchStream(mixture, positions, **settings).epoch(0))  # type: ignore[arg-type]
    assert batch.present["own"].tolist() == [sample_id.startswith("small/") for sample_id in batch.ids]


def test_a_member_that_would_never_come_is_refused(mixture: Mixture, toy: Dataset) -> None:
    positions = mixture.positions(SPLIT, "train")
    with pytest.raises(DataError, match="'toy' would never be drawn"):
        MixedOrder(inner=Shuffled(), batch_size=4, samples=1).prepare(mixture, positions, seed=0)
    with pytest.raises(DataError, match="'small' has no sample"):
        MixedOrder(inner=Shuffled(), batch_size=4).prepare(mixture, toy.positions(SPLIT, "train"), seed=0)


def test_prefetching_is_passed_on_in_order(mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[int]] = {}
    for member in mixture.members:
        fetch = lambda positions, name=member.name: asked.__setitem__(name, positions.tolist())  # noqa: E731
        monkeypatch.setattr(member.dataset, "prefetch", fetch)
    mixture.prefetch(np.array([83, 5, 60, 59, 2]))
    assert asked == {"toy": [5, 59, 2], "small": [23, 0]}
