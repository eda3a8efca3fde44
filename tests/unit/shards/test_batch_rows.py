from __future__ import annotations

import pytest
import torch

from shards.batch import collate
from shards.batch_rows import pick_rows
from shards.reader import Dataset


@pytest.mark.parametrize("rows", [[0, 2, 3, 9], [5], [1, 4, 8], list(range(10)), []])
def test_picked_rows_are_those_rows_collated_alone(toy: Dataset, rows: list[int]) -> None:
    """Graphs, spectra, vectors and texts, many of them absent."""
    samples = [toy[i] for i in range(10)]
    picked = pick_rows(collate(samples, toy.modalities, ("gap_ev",)), toy.modalities, torch.tensor(rows).long())
    alone = collate([samples[i] for i in rows], toy.modalities, ("gap_ev",))
    assert picked.ids == alone.ids and set(picked.inputs) == set(alone.inputs)
    assert torch.equal(picked.groups, alone.groups)
    assert torch.allclose(picked.labels, alone.labels, equal_nan=True)
    for name, inputs in alone.inputs.items():
        assert torch.equal(picked.present[name], alone.present[name])
        assert set(picked.inputs[name]) == set(inputs)
        for field, value in inputs.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(picked.inputs[name][field], value), (name, field)
            else:
                assert picked.inputs[name][field] == value
