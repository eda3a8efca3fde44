"""The SMILES transformer: padding, masks, unknown tokens, lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.encoders.ragged import padded
from shards.vocabulary import MASK, PADDING, UNKNOWN
from tests.unit.pretrain.encoders.arrays import build, inputs, rows, vectors


@pytest.fixture
def net():
    return build("smiles_transformer", "smiles")


def tokens(*ids):
    return {"tokens": np.array(ids, dtype=np.int32)}


def test_what_stands_in_the_padding_changes_nothing(net):
    given = inputs("smiles")
    ids, mask = padded(given["tokens"].long(), given["tokens_ptr"])
    assert (~mask).any()
    spoiled = torch.where(mask, ids, torch.randint(0, 50, ids.shape, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        clean, other = net.encode(ids, mask), net.encode(spoiled, mask)
        unmasked = net.encode(ids, torch.ones_like(mask)).vector, net.encode(spoiled, torch.ones_like(mask)).vector
    assert torch.equal(clean.vector, other.vector)
    assert torch.equal(clean.tokens[clean.mask], other.tokens[other.mask])
    assert not torch.allclose(*unmasked, atol=1e-3)  # what attends to the padding


def test_a_longer_neighbour_changes_nothing(net):
    short, long = rows("smiles")[2], rows("smiles")[3]
    alone, beside = vectors(net, "smiles", [short])[0], vectors(net, "smiles", [short, long])[0]
    torch.testing.assert_close(alone, beside, atol=1e-6, rtol=1e-5)


def test_padding_learns_nothing(net):
    net(inputs("smiles")).vector.square().sum().backward()
    assert not net.token.weight.grad[PADDING].any()
    assert not net.token.weight[PADDING].any()


def test_masked_unknown_and_foreign_tokens(net):
    masked, unknown, foreign, negative = vectors(
        net, "smiles", [tokens(5, MASK, 7), tokens(5, UNKNOWN, 7), tokens(5, 10**6, 7), tokens(5, -3, 7)]
    )
    assert torch.equal(unknown, foreign) and torch.equal(unknown, negative)
    assert not torch.allclose(masked, unknown, atol=1e-3)


def test_order_and_length(net):
    a, b = vectors(net, "smiles", [tokens(5, 9, 7), tokens(9, 5, 7)])
    assert not torch.allclose(a, b, atol=1e-4)
    cut = build("smiles_transformer", "smiles", max_tokens=3)
    a, b = vectors(cut, "smiles", [tokens(5, 9, 7), tokens(5, 9, 7, 8, 9)])
    torch.testing.assert_close(a, b)


def test_a_sequence_without_tokens(net):
    a, b = vectors(net, "smiles", [tokens(), tokens(5)])
    assert a.isfinite().all() and b.isfinite().all()
    assert vectors(net, "smiles", [tokens()]).isfinite().all()


def test_ragged_rows():
    values, pointer = torch.arange(6.0), torch.tensor([0, 2, 2, 6])
    dense, mask = padded(values, pointer)
    assert dense.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [2, 3, 4, 5]]
    assert mask.sum(1).tolist() == [2, 0, 4]
    dense, mask = padded(values, pointer, most=1)
    assert dense.tolist() == [[0], [0], [2]] and mask.tolist() == [[True], [False], [True]]
