from __future__ import annotations

import pytest
import torch

from finetune.heads.base import HEADS
from shards.errors import ConfigError, DataError
from tests.unit.finetune.heads.training import build, train


def test_classes_are_learned_with_their_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 4, generator=generator)
    y = x[:, :3].argmax(dim=1, keepdim=True).float()
    head = train(build("multiclass", 4, classes=3, hidden=32, dropout=0.0), x, y, steps=200)
    prediction = head.predict(head(x))
    assert prediction.probabilities is not None and prediction.probabilities.shape == (600, 3)
    assert torch.allclose(prediction.probabilities.sum(1), torch.ones(600))
    assert torch.equal(prediction.value[:, 0].long(), prediction.probabilities.argmax(1))
    assert (prediction.value == y).float().mean() > 0.95


def test_balanced_weights_make_every_class_weigh_alike() -> None:
    y = torch.tensor([0.0] * 9 + [1.0, float("nan")])[:, None]
    head = build("multiclass", 4, classes=2, weights="balanced")
    head.fit(y)
    assert torch.allclose(head.weights, torch.tensor([10 / 18, 10 / 2]))
    raw = torch.zeros(11, 2, requires_grad=True)
    head.loss(raw, y).backward()
    assert raw.grad is not None and torch.allclose(raw.grad.sum(0), torch.zeros(2), atol=1e-6)
    plain = build("multiclass", 4, classes=2)
    raw.grad = None
    plain.loss(raw, y).backward()
    assert raw.grad[:, 0].sum() < -0.3


def test_what_is_no_class_is_refused() -> None:
    for value in (3.0, -1.0, 0.5):
        with pytest.raises(DataError, match="no class"):
            build("multiclass", 4, classes=3).fit(torch.tensor([[0.0], [value]]))
    with pytest.raises(ConfigError, match="one target"):
        build("multiclass", 4, 2, classes=3)
    with pytest.raises(ConfigError, match="'weights' has 2 numbers for 3 classes"):
        HEADS.options({"kind": "multiclass", "classes": 3, "weights": (1.0, 2.0)})
