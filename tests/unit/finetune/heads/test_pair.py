from __future__ import annotations

import pytest
import torch

from finetune.heads.base import mlp
from shards.errors import DataError
from tests.unit.finetune.heads.training import build, train


@pytest.mark.parametrize("mode", ["sum", "bilinear", "both_orders"])
@pytest.mark.parametrize("kind", ["pair", "pair_classification"])
def test_the_order_of_a_pair_means_nothing(kind: str, mode: str) -> None:
    head, pairs = build(kind, 16, 3, mode=mode).eval(), torch.randn(50, 2, 16)
    value = head.predict(head(pairs)).value
    assert value.shape == (50, 3)
    assert (value - head.predict(head(pairs.flip(1))).value).abs().max() < 2e-6
    # the wrong variant: an MLP of the two side by side
    plain = mlp(32, head.config, 3).eval()
    assert (plain(pairs.flatten(1)) - plain(pairs.flip(1).flatten(1))).abs().max() > 0.1


def test_bilinear_scores_are_forms_without_a_bias() -> None:
    head, pairs = build("pair", 4, 2, mode="bilinear"), torch.randn(5, 2, 4)
    triangle = head.scores.triangle.detach()
    for outcome in range(2):
        matrix = triangle[outcome].triu() + triangle[outcome].triu(1).T
        expected = torch.stack([a @ matrix @ b for a, b in pairs])
        assert torch.allclose(head(pairs)[:, outcome], expected, atol=1e-6)
    assert not head(torch.zeros(1, 2, 4)).any()


def test_a_bilinear_head_learns_an_interaction_that_a_sum_of_parts_has_not() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(1000, 2, 4, generator=generator)
    y = pairs.prod(dim=1).sum(dim=1, keepdim=True)
    head = train(build("pair", 4, mode="bilinear"), pairs, y, steps=300)
    assert (head.predict(head(pairs)).value - y).abs().mean() < 0.1
    apart = pairs.flatten(1)
    least = torch.linalg.lstsq(apart, y).solution
    assert (apart @ least - y).abs().mean() > 1.0


def test_features_of_one_partner_are_refused() -> None:
    with pytest.raises(DataError, match="both partners"):
        build("pair", 4)(torch.randn(5, 4))
