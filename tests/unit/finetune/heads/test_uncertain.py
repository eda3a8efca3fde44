"""Heads that say how sure they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.heads.base import HEADS
from shards.errors import ConfigError
from tests.unit.finetune.heads.training import build, train, wide

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


def noisy(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """y = 10 x + noise of a standard deviation that rises from 1 to 5, x in (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(count, 1, generator=generator) - 1
    sigma = 3 + 2 * x
    features = torch.cat([x, x**2, torch.ones_like(x)], dim=1)
    return features, 10 * x + sigma * torch.randn(count, 1, generator=generator), sigma


def nll(value: Tensor, std: Tensor, truth: Tensor) -> float:
    return -torch.distributions.Normal(value, std).log_prob(truth).mean().item()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_gaussian_head_finds_where_the_noise_is(beta: float) -> None:
    (x, y, _), (x_test, y_test, sigma) = noisy(2000, 0), noisy(2000, 1)
    head = train(build("gaussian", 3, beta=beta, hidden=32, dropout=0.0), x, y, steps=500, batch=256)
    with torch.no_grad():
        value, std, *_ = head.predict(head(x_test))
    assert std is not None
    assert (std / sigma - 1).abs().mean() < 0.15
    # the wrong variant: one standard deviation for all
    constant = (value - y_test).std().expand_as(value)
    assert nll(value, std, y_test) < nll(value, constant, y_test) - 0.05


def test_beta_weighs_by_the_variance_without_its_gradient() -> None:
    raw = torch.tensor([[[0.0, 0.0]], [[0.0, 2.0]]], requires_grad=True)
    head = build("gaussian", 1, beta=1.0)
    head.loss(raw, torch.ones(2, 1)).backward()
    assert raw.grad is not None
    # with beta = 1 the mean has the gradient of the squared error, whatever the variance
    assert torch.allclose(raw.grad[:, 0, 0], torch.tensor([-0.5, -0.5]))
    # and the weight itself is not learned: d/d log v of (log v + 1 / v) / 2, times v
    variance = torch.tensor([0.0, 2.0]).exp()
    assert torch.allclose(raw.grad[:, 0, 1], 0.25 * (variance - 1))


def test_quantiles_hold_what_they_say_and_never_cross() -> None:
    (x, y, _), (x_test, y_test, _) = noisy(2000, 0), noisy(2000, 1)
    head = train(build("quantile", 3, quantiles=QUANTILES, hidden=32, dropout=0.0), x, y, steps=500, batch=256)
    with torch.no_grad():
        raw = head(x_test)
        prediction = head.predict(raw)
    assert prediction.lower is not None and prediction.upper is not None
    assert torch.equal(prediction.value, head.scale.inverse(raw[..., 2]))
    for index, level in enumerate(QUANTILES):
        below = (y_test < head.scale.inverse(raw[..., index])).float().mean().item()
        assert below == pytest.approx(level, abs=0.05)
    inside = (y_test >= prediction.lower) & (y_test <= prediction.upper)
    assert inside.float().mean().item() == pytest.approx(0.8, abs=0.05)


def test_free_outputs_would_cross_and_these_do_not() -> None:
    head, features = build("quantile", 4), 100 * torch.randn(500, 4)
    free = head.layers(features)
    assert (free.diff(dim=-1) < 0).any()
    assert (head(features).diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("quantiles", [(0.1, 0.9), (0.5, 0.9), (0.9, 0.5, 0.1), (0.0, 0.5, 1.0)])
def test_quantiles_that_make_no_sense_are_refused(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="quantiles"):
        HEADS.options({"kind": "quantile", "quantiles": quantiles})


def posterior_of(observed: int) -> tuple[float, float, float, Tensor]:
    """Two parameters, of which their sum, or the sum and the difference, are observed with a noise of 0.025.

    Returns
    -------
    tuple
        Root mean square error, mean posterior standard deviation, coverage of one standard deviation, and the rank
        (0 .. 99) of the first parameter among draws from its posterior.
    """
    generator = torch.Generator().manual_seed(0)
    truth = 0.55 * torch.randn(4000, 2, generator=generator)
    seen = torch.stack([truth.sum(1), truth[:, 0] - truth[:, 1]], dim=1)[:, :observed]
    seen = seen + 0.025 * torch.randn(seen.shape, generator=generator)
    features = wide(seen)
    head = build("conditional_posterior", features.shape[1], 2, components=2, hidden=64, dropout=0.0)
    train(head, features[:3000], truth[:3000], steps=500, lr=5e-3, batch=256)
    raw = head(features[3000:]).detach()
    prediction, left = head.predict(raw), truth[3000:]
    assert prediction.std is not None
    error = prediction.value - left
    ranks = (head.sample(raw, 99)[..., 0] < left[:, 0]).sum(0)
    inside = (error.abs() < prediction.std).float().mean()
    return error.square().mean().sqrt().item(), prediction.std.mean().item(), inside.item(), ranks


def test_a_posterior_stays_wide_where_the_observation_does_not_tell() -> None:
    rmse, std, _, ranks = posterior_of(1)
    # of a normal prior with 0.55, the difference is left: 0.55 / sqrt 2
    assert rmse == pytest.approx(0.389, rel=0.1) and std == pytest.approx(0.389, rel=0.1)
    # simulation-based calibration: every rank is as frequent (Talts et al., arXiv 1804.06788)
    counts = ranks.div(10, rounding_mode="floor").bincount(minlength=10)
    assert (counts - 100).square().sum() / 100 < 30
    # the wrong variant: a point regressor, whose draws all lie on its prediction
    assert (torch.tensor([500, *[0] * 8, 500]) - 100).square().sum() / 100 > 30


def test_a_posterior_narrows_where_it_does() -> None:
    rmse, std, inside, _ = posterior_of(2)
    assert rmse < 0.06 and std == pytest.approx(rmse, rel=0.35)
    assert inside == pytest.approx(0.68, abs=0.12)


def test_an_unknown_parameter_is_integrated_out() -> None:
    """Of a correlated Gaussian, the likelihood of the first entry alone is that of its marginal."""
    head = build("conditional_posterior", 4, 2, components=3).double()
    raw = head(torch.randn(6, 4, dtype=torch.float64))
    targets = torch.randn(6, 2, dtype=torch.float64)
    whole = -head.posterior(raw).log_prob(targets).sum() / 12
    assert torch.allclose(head.loss(raw, targets), whole)
    logits, means, factors = head._parts(raw)
    std = (factors @ factors.mT)[..., 0, 0].sqrt()
    each = torch.distributions.Normal(means[..., 0], std).log_prob(targets[:, :1])
    marginal = -(logits.log_softmax(-1) + each).logsumexp(-1).mean()
    targets[:, 1] = float("nan")
    assert torch.allclose(head.loss(raw, targets), marginal)
