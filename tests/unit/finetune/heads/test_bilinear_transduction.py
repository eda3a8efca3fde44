"""The largest twentieth of the values is held out: trees stop at the training maximum, bilinear transduction does not.

The synthetic table of the design notes; the wrong variants are a random anchor, and x instead of x - x_a in g.
"""

from __future__ import annotations

import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor

from finetune.heads.base import Head
from shards.errors import ConfigError
from tests.unit.finetune.heads.training import build, train, wide


def top_held_out(count: int, *, nonlinear: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Five features, y their weighed sum (and a sine of the first, if not linear)."""
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    y = x @ torch.linspace(1, 2, 5)
    if nonlinear:
        y = y + 0.3 * x[:, 0].sin()
    held_out = y > y.quantile(0.95)
    return x[~held_out], y[~held_out, None], x[held_out], y[held_out, None]


def error_and_recall(value: Tensor, truth: Tensor, threshold: Tensor) -> tuple[float, float]:
    return (value - truth).abs().mean().item(), (value > threshold).float().mean().item()


@torch.no_grad()
def predicted(head: Head, x: Tensor) -> Tensor:
    return head.predict(head(x)).value


def test_a_linear_target_goes_on_beyond_the_training_range() -> None:
    x, y, x_high, y_high = top_held_out(1000, nonlinear=False)
    forest = RandomForestRegressor(30, random_state=0).fit(x, y[:, 0])
    error, recall = error_and_recall(torch.tensor(forest.predict(x_high))[:, None], y_high, y.max())
    assert error > 1.0 and recall == 0.0
    head = train(build("bilinear_transduction", 5, layers=0, dim=8), x, y, steps=300, batch=32)
    error, recall = error_and_recall(predicted(head, x_high), y_high, y.max())
    assert error < 0.1 and recall > 0.9


def nonlinear(steps: int, **options: object) -> tuple[float, float]:
    """Error and recall on the highest twentieth of a mildly nonlinear target, after some steps of training."""
    x, y, x_high, y_high = top_held_out(2000, nonlinear=True)
    head = build("bilinear_transduction", 5, layers=2, hidden=64, **options)
    train(head, x, y, steps=steps, lr=1e-2, batch=32)
    return error_and_recall(predicted(head, x_high), y_high, y.max())


def test_a_nonlinear_target_goes_on_too() -> None:
    """It is the length of the training that decides: more anchors, more differences and longer vectors do not."""
    error, recall = nonlinear(1000)
    assert error < 0.1 and recall > 0.9


@pytest.mark.slow
def test_what_a_nonlinear_target_needs() -> None:
    error, recall = nonlinear(1000, ordered=False)
    assert error < 0.15 and recall > 0.9
    assert nonlinear(150)[0] > 0.12, "training that is cut short"
    x, y, x_high, y_high = top_held_out(2000, nonlinear=True)
    direct = build("regression", 18, layers=2, hidden=64, dropout=0.0, loss="l1")
    train(direct, wide(x), y, steps=1000, lr=1e-2, batch=32)
    assert error_and_recall(predicted(direct, wide(x_high)), y_high, y.max())[0] > 0.12, "the same network by itself"


def squares(x: Tensor) -> Tensor:
    return (3 * x.mean(dim=1, keepdim=True)).square()


def test_anchor_and_difference_must_stay_within_the_training_range() -> None:
    """(x_a + d)^2 is bilinear in (x_a^2, x_a, 1) and (1, 2 d, d^2), which small networks learn within their range."""
    generator = torch.Generator().manual_seed(1)
    x, beyond = torch.rand(400, 2, generator=generator), 1 + 0.4 * torch.rand(100, 2, generator=generator)
    y, truth = squares(x), squares(beyond)
    head = train(build("bilinear_transduction", 2, hidden=64, dim=8), x, y, steps=300, lr=5e-3, batch=32)
    right = (predicted(head, beyond) - truth).abs().mean().item()
    rows = head._standardised(beyond)
    anchors = head.anchors[torch.randint(len(head.anchors), (100,), generator=generator)]
    random_anchor = head.scale.inverse(head.between(anchors, rows - anchors))
    wrong = build("bilinear_transduction", 2, hidden=64, dim=8)
    between = wrong.between
    wrong.between = lambda anchors, gaps: between(anchors, anchors + gaps)  # type: ignore[method-assign]
    train(wrong, x, y, steps=300, lr=5e-3, batch=32)
    assert right < 0.05 * truth.mean()
    assert (random_anchor - truth).abs().mean() > 2 * right
    assert (predicted(wrong, beyond) - truth).abs().mean() > 2 * right


def test_the_anchor_is_the_one_whose_difference_was_seen() -> None:
    head = build("bilinear_transduction", 3, anchors=20, differences=50)
    x = torch.randn(30, 3)
    head.fit(x.sum(1, keepdim=True), x)
    query = torch.randn(7, 3) + 2
    gaps = head._standardised(query)[:, None] - head.anchors
    distances = torch.cdist(gaps, head.differences[None].expand(7, -1, -1)).amin(-1)
    found = distances.gather(1, head.anchor_of(query)[:, None])[:, 0]
    assert torch.allclose(found, distances.amin(1), atol=1e-5)
    assert (distances.mean(1) > found + 0.1).all()
    assert len(head.anchors) == 20 and len(head.differences) == 50


def test_pairs_go_up_and_labels_of_anchors_are_not_used() -> None:
    x = torch.randn(40, 3)
    y = x[:, :1] * 2
    head = build("bilinear_transduction", 3)
    head.fit(y, x)
    assert (head.differences[:, 0] >= 0).all()
    raw = torch.zeros(2, 2, 1, requires_grad=True)
    head.train().loss(raw, torch.tensor([[0.0], [1.0]])).backward()
    assert raw.grad is not None and raw.grad[:, :, 0].ne(0).tolist() == [[True, True], [False, True]]
    unordered = build("bilinear_transduction", 3, ordered=False)
    unordered.fit(y, x)
    assert (unordered.differences[:, 0] < 0).any()
    raw.grad = None
    unordered.train().loss(raw, torch.tensor([[0.0], [1.0]])).backward()
    assert raw.grad.ne(0).all()
    assert not any(tensor.shape == (40, 1) for tensor in head.state_dict().values())


def test_features_that_change_are_refused() -> None:
    with pytest.raises(ConfigError, match="keeps training features"):
        build("bilinear_transduction", 3).fit(torch.randn(5, 1))
    with pytest.raises(ConfigError, match="not fitted"):
        build("bilinear_transduction", 3).eval()(torch.randn(5, 3))
