"""The linear-Gaussian model against brute-force conditioning, its EM, and streams that break it."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.toys import calmrl_recovery
from benchmarks.toys.calmrl_recovery import DIM as WIDTH
from benchmarks.toys.calmrl_recovery import NOISE, loadings_error, sample, stream, world
from pretrain.objectives.linear_gaussian import LinearGaussian

M = len(NOISE)


def brute_force(model: LinearGaussian, z: Tensor, there: list[int]) -> tuple[Tensor, Tensor, float]:
    """Posterior of the cause and log-density, by conditioning the joint Gaussian of cause and observed vectors."""
    loadings = torch.cat([model.weight[m] for m in there])
    mean = torch.cat([model.mean[m] for m in there])
    noise = torch.cat([model.variance[m].expand(z.shape[1]) for m in there])
    covariance = loadings @ loadings.T + noise.diag()
    observed = torch.cat([z[m] for m in there])
    gain = loadings.T @ torch.linalg.inv(covariance)
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(observed).item()
    return gain @ (observed - mean), torch.eye(loadings.shape[1]) - gain @ loadings, density


def test_the_posterior_equals_brute_force_conditioning() -> None:
    rng = torch.Generator().manual_seed(0)
    model = world(rng)
    sets = [list(s) for k in range(M + 1) for s in itertools.combinations(range(M), k)]
    z = torch.randn(len(sets), M, WIDTH, generator=rng, dtype=torch.float64)
    present = torch.tensor([[m in there for m in range(M)] for there in sets])
    garbage = torch.where(present[:, :, None], z, float("nan"))
    cause, covariance = model.posterior(garbage, present)
    density = model.log_likelihood(garbage, present)
    imputed = model.impute(garbage, present)
    assert not cause[0].any()  # nothing observed: the prior
    torch.testing.assert_close(covariance[0], torch.eye(3, dtype=torch.float64))
    for row, there in enumerate(sets[1:], start=1):
        mean, spread, expected = brute_force(model, z[row], there)
        torch.testing.assert_close(cause[row], mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(covariance[row], spread, atol=1e-12, rtol=0)
        assert density[row].item() == pytest.approx(expected, abs=1e-9)
        for m in range(M):
            absent = model.weight[m] @ mean + model.mean[m]
            torch.testing.assert_close(imputed[row, m], z[row, m] if m in there else absent, atol=1e-12, rtol=0)


class NoSpread(LinearGaussian):
    """A wrong E step: the cause is taken as known, its posterior covariance forgotten."""

    sweeping = False

    def posterior(self, z_NMD: Tensor, present_NM: Tensor) -> tuple[Tensor, Tensor]:
        cause, covariance = super().posterior(z_NMD, present_NM)
        return cause, 0.0 * covariance if self.sweeping else covariance

    def _sweep(self, z_NMD: Tensor, present_NM: Tensor, momentum: float) -> None:
        self.sweeping = True
        super()._sweep(z_NMD, present_NM, momentum)
        self.sweeping = False


@pytest.mark.parametrize("seed", range(2))  # with loadings from chance alone, seed 1 ends in a poor optimum
def test_em_is_monotone_and_recovers_the_world(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    truth = world(rng)
    z, present = sample(truth, 4000, rng)
    model = LinearGaussian(M, WIDTH, 3)
    history = model.fit(z, present, sweeps=15)
    assert min(np.diff(history)) > -1e-9
    assert history[-1] >= truth.log_likelihood(z, present).mean().item()
    torch.testing.assert_close(model.variance.sqrt(), torch.tensor(NOISE, dtype=torch.float64), atol=0.01, rtol=0)
    assert loadings_error(model, truth) < 0.1
    wrong = NoSpread(M, WIDTH, 3)
    assert min(np.diff(wrong.fit(z, present, sweeps=15))) < -1e-3
    # W itself is known up to a rotation alone
    assert not torch.allclose(model.weight, truth.weight, atol=0.3)


def test_the_toy_proof() -> None:
    found = calmrl_recovery.measure(0, rows=3000)
    assert found["batch EM"]["over the oracle"] < 1.02
    assert found["online EM"]["over the oracle"] < 1.02
    assert found["mean"]["over the oracle"] > 5
    shift = found["observed alone"]["anchor shift"]
    for name in ("batch EM", "online EM", "CalMrl on unit vectors"):
        assert found[name]["anchor shift"] < 0.6 * shift
    assert found["mean"]["anchor shift"] > 0.9 * shift


def test_a_stream_that_drifts_is_followed_and_momentum_1_would_not() -> None:
    rng = torch.Generator().manual_seed(2)
    first, then = world(rng), world(rng)
    old, new = sample(first, 3000, rng), sample(then, 3000, rng)
    forgetting, keeping = LinearGaussian(M, WIDTH, 3, momentum=0.9), LinearGaussian(M, WIDTH, 3, momentum=1.0)
    for model in (forgetting, keeping):
        for part in [*stream(*old, rng)[:60], *stream(*new, rng)[:120]]:
            model.update(*part)
    held = sample(then, 1000, rng)
    best = then.log_likelihood(*held).mean()
    assert best - forgetting.log_likelihood(*held).mean() < 1.0
    assert best - keeping.log_likelihood(*held).mean() > 3.0


def test_a_modality_may_be_absent_from_batches_and_seen_late() -> None:
    rng = torch.Generator().manual_seed(3)
    truth = world(rng)
    z, present = sample(truth, 4000, rng)
    present[:2000, 3] = False
    model = LinearGaussian(M, WIDTH, 3)
    for part in zip(z.split(200), present.split(200), strict=True):
        model.update(*part)
        assert all(value.isfinite().all() for value in model.state_dict().values())
    before = copy.deepcopy(model.state_dict())
    model.update(z[:200], present[:200] & torch.tensor([True, True, True, False]))
    torch.testing.assert_close(model.variance[3], before["variance"][3], rtol=1e-6, atol=0)
    model.update(z[:0], present[:0])
    model.update(z[:5], present[:5] & False)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_collapsed_embeddings_break_nothing() -> None:
    model = LinearGaussian(3, 6, 2)
    present = torch.ones(20, 3, dtype=torch.bool)
    for _ in range(50):
        model.update(torch.ones(20, 3, 6), present)
    absent = present & torch.tensor([True, False, True])
    imputed = model.impute(torch.ones(20, 3, 6), absent)
    torch.testing.assert_close(imputed, torch.ones(20, 3, 6, dtype=torch.float64), atol=1e-3, rtol=0)


def small_world(count: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Unit vectors (count, 3, 8) of a cause of width 2 around one direction; collapsed where the spread is 0."""
    maps, rng = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    loadings = torch.randn(3, 8, 2, generator=maps, dtype=torch.float64)
    cause = torch.randn(count, 2, generator=rng, dtype=torch.float64)
    noise = 0.1 * torch.randn(count, 3, 8, generator=rng, dtype=torch.float64)
    return F.normalize(3.0 + spread * (torch.einsum("mdi,ni->nmd", loadings, cause) + noise), dim=2)


def test_after_a_collapse_the_model_learns_again() -> None:
    """Loadings of zero would be a fixed point of EM: the cause explains nothing, so it learns nothing."""
    everything, absent = torch.ones(60, 3, dtype=torch.bool), torch.tensor([True, False, True]).expand(60, 3)
    for before in (0, 300):
        model = LinearGaussian(3, 8, 2, momentum=0.9)
        for _ in range(before):
            model.update(small_world(60, spread=0.0), everything)
        for seed in range(100):
            model.update(small_world(60, seed=seed), everything)
        z = small_world(60, seed=1000)
        error = (model.impute(z, absent) - z)[:, 1].square().sum()
        assert error < 0.2 * (z - z.mean(dim=0))[:, 1].square().sum(), before


@pytest.mark.parametrize("momentum", [0.1, 0.5])
def test_a_modality_that_was_seen_very_long_ago_is_forgotten(momentum: float) -> None:
    """Its sums would decay to denormal numbers, whose quotients are no numbers."""
    model, gone = LinearGaussian(3, 8, 2, momentum), torch.tensor([True, False, True]).expand(20, 3)
    model.update(small_world(20), torch.ones(20, 3, dtype=torch.bool))
    for seed in range(int(-760 / math.log(momentum))):
        model.update(small_world(20, seed=seed % 50), gone)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_covariance_that_rounding_spoils_has_a_root() -> None:
    """Cholesky's decomposition would raise."""
    model = LinearGaussian(3, 8, 2)
    model.update(small_world(20), torch.ones(20, 3, dtype=torch.bool))
    moments = torch.diag(torch.tensor([1.0, -1e-8, 1.0], dtype=torch.float64))
    with pytest.raises(RuntimeError, match="positive-definite"):
        torch.linalg.cholesky(moments)
    model._standardise(moments, torch.cat([model.weight, model.mean[:, :, None]], dim=2))
    assert all(value.isfinite().all() for value in model.state_dict().values())
