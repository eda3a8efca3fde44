"""A slice of a collated batch equals having collated those rows alone."""

from __future__ import annotations

import pytest
import torch

from shards.batch import Batch, collate, rows_of
from shards.reader import Dataset


def assert_same(found: Batch, expected: Batch) -> None:
    assert found.ids == expected.ids
    assert torch.equal(found.groups, expected.groups)
    assert found.inputs.keys() == expected.inputs.keys()
    for name, mask in expected.present.items():
        assert torch.equal(found.present[name], mask)
    for name, inputs in expected.inputs.items():
        assert found.inputs[name].keys() == inputs.keys()
        for field, value in inputs.items():
            other = found.inputs[name][field]
            same = torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value
            assert same, (name, field)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_every_slice_equals_its_own_collation(toy: Dataset, size: int) -> None:
    samples = [toy[position] for position in range(20)]
    whole = collate(samples, toy.modalities)
    for start in range(0, 20, size):
        part = collate(samples[start : start + size], toy.modalities)
        assert_same(rows_of(whole, toy.modalities, start, start + size), part)


def test_groups_are_those_of_the_samples(toy: Dataset) -> None:
    batch = collate([toy[position] for position in (0, 1, 0)], toy.modalities)
    assert batch.groups[0] == batch.groups[2] != batch.groups[1]
