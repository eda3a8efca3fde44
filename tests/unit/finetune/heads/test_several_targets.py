from __future__ import annotations

import pytest
import torch

from tests.unit.finetune.heads.training import build, train


@pytest.mark.parametrize("kind", ["linear", "regression", "classification", "gaussian", "quantile"])
def test_an_unknown_label_has_no_gradient(kind: str) -> None:
    """Of two targets one is unknown everywhere: only its outputs stay as they were; taken for 0, they would move."""
    targets = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    head, features = build(kind, 4, 2), torch.randn(2, 4)
    for given, moves in ((targets, False), (targets.nan_to_num(), True)):
        raw = head(features).detach().requires_grad_()
        head.loss(raw, given).backward()
        assert raw.grad is not None and raw.grad[:, 0].abs().sum() > 0
        assert bool(raw.grad[:, 1].any()) == moves


def test_training_with_missing_labels_is_training_on_the_known_ones() -> None:
    """Rows of which the label is unknown change no weight; taken for 0, they are a wrong variant."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=generator)
    y = x[:, :1] - x[:, 1:2] + 5
    known = torch.arange(64) % 3 > 0
    sparse = torch.where(known[:, None], y, float("nan"))
    values = []
    for features, labels in ((x[known], y[known]), (x, sparse), (x, sparse.nan_to_num())):
        head = train(build("regression", 4, dropout=0.0, hidden=16), features, labels, steps=30)
        values.append(head.predict(head(x)).value)
    assert torch.allclose(values[0], values[1], atol=1e-3)
    assert (values[0] - values[2]).abs().mean() > 1.0


def test_targets_that_no_row_has_together_are_learned_together() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 4, generator=generator)
    y = torch.stack([x[:, 0] + 3, x[:, 1] - x[:, 2] + 5], dim=1)
    sparse = y.clone()
    sparse[::2, 0] = sparse[1::2, 1] = float("nan")
    errors = []
    for labels in (y, sparse, sparse.nan_to_num()):
        head = train(build("regression", 4, 2, dropout=0.0, hidden=32), x, labels, steps=100)
        errors.append((head.predict(head(x)).value - y).abs().mean().item())
    assert errors[1] < 1.3 * errors[0] and errors[2] > 2 * errors[0]


def test_a_linear_head_is_linear() -> None:
    head = build("linear", 4, 2)
    head.fit(torch.randn(9, 2) * 4 + 7)
    a, b = torch.randn(2, 5, 4)
    value = lambda x: head.predict(head(x)).value  # noqa: E731
    assert torch.allclose(value(a) + value(b), value(a + b) + value(torch.zeros(1, 4)), atol=1e-4)
    mlp = build("regression", 4, 2, dropout=0.0)
    assert not torch.allclose(mlp(a) + mlp(b), mlp(a + b) + mlp(torch.zeros(1, 4)), atol=1e-2)
