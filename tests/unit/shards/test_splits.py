from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DataError
from shards.splits import group_split

GROUPS = st.dictionaries(st.text(min_size=1, max_size=4), st.sampled_from("abcdefghij"), min_size=3, max_size=60)
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}


@given(GROUPS.filter(lambda groups: len(set(groups.values())) >= 3), st.integers(0, 99))
def test_every_sample_once_and_no_group_in_two_parts(groups: dict[str, str], seed: int) -> None:
    split = group_split(groups, by="tag", fractions=FRACTIONS, seed=seed)
    assert sorted(chain.from_iterable(split.ids.values())) == sorted(groups)
    held = [{groups[sample_id] for sample_id in ids} for ids in split.ids.values()]
    assert all(held)
    assert sum(map(len, held)) == len(set(groups.values()))
    shuffled = dict(reversed(groups.items()))
    assert group_split(shuffled, by="tag", fractions=FRACTIONS, seed=seed) == split


def test_the_shares_are_met_and_the_seed_matters() -> None:
    groups = {f"s{i}": f"g{i // 3}" for i in range(900)}
    splits = [group_split(groups, by="g", fractions=FRACTIONS, seed=seed) for seed in range(3)]
    for split in splits:
        for part, share in FRACTIONS.items():
            assert len(split.ids[part]) == pytest.approx(900 * share, abs=6)
    assert splits[0].ids["test"] != splits[1].ids["test"] != splits[2].ids["test"]


@pytest.mark.parametrize(
    "fractions", [{"train": 0.5, "val": 0.4}, {"train": 1.0, "val": 0.0}, {"train": 1.5, "val": -0.5}, {}]
)
def test_shares_that_are_none_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(DataError):
        group_split({"a": "1", "b": "2"}, by="id", fractions=fractions, seed=0)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="2 groups"):
        group_split({"a": "1", "b": "2", "c": "1"}, by="id", fractions=FRACTIONS, seed=0)
