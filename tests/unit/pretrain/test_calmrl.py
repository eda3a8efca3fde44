"""CalMRL: the model against brute-force conditioning, the loss against a literal SVD, and what is updated when."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.toys import calmrl_recovery
from benchmarks.toys.calmrl_recovery import DIM as WIDTH
from benchmarks.toys.calmrl_recovery import NOISE, loadings_error, sample, stream, world
from pretrain.objectives import calmrl
from pretrain.objectives.base import GlobalBatch, Logs, Objective
from pretrain.objectives.calmrl import CalMrl, alignment, leading
from pretrain.objectives.linear_gaussian import LinearGaussian
from shards.errors import ConfigError
from tests.unit.pretrain.invariants import (
    CHECKS,
    DIM,
    NAMES,
    check_degenerate,
    check_half_precision,
    check_logs,
    evaluate,
    failing,
    make,
    rows,
)

TABLE: dict[str, object] = {"kind": "calmrl", "dim": DIM, "latent": 2, "warmup_steps": 0}
M = len(NOISE)


class Restored(Objective):
    """An objective whose buffers are as before after every call: in training they change with each."""

    def __init__(self, inner: Objective) -> None:
        super().__init__(inner.config, inner.modalities)
        self.inner = inner

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        before = copy.deepcopy(self.inner.state_dict())
        try:
            return self.inner(batch)
        finally:
            self.inner.load_state_dict(before)


def trained(table: dict[str, object] = TABLE, steps: int = 4) -> CalMrl:
    """After a few training batches."""
    objective = make(table)
    for seed in range(steps):
        objective(rows(objective, 30, seed=100 + seed))
    assert isinstance(objective, CalMrl)
    return objective


def objectives() -> dict[str, Objective]:
    return {
        "observed": make(TABLE | {"complete": False, "chunk": 2}),
        "warming up": Restored(make(TABLE | {"warmup_steps": 9})),
        "completing": Restored(trained(TABLE | {"chunk": 3})),
        "evaluating": trained(TABLE | {"instance_weight": 0.3}).eval(),
        "two": Restored(trained(TABLE | {"inputs": ["c", "a"]})),
    }


@pytest.mark.parametrize("name", objectives())
@pytest.mark.parametrize("check", [*CHECKS.values(), check_logs, check_half_precision])
def test_invariants(name: str, check: Callable[..., None]) -> None:
    # a row alone has something to align: its own embeddings
    options = {"lone_row_is_zero": False} if check is check_degenerate else {}
    check(objectives()[name], **options)


# The model


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


def test_what_is_not_finite_does_not_enter_the_sums() -> None:
    objective = trained()
    batch = rows(objective, 12)
    broken = replace(batch, z={**batch.z, "a": batch.z["a"].clone()}, present=everybody(12))
    broken.z["a"][3] = float("nan")
    assert not objective(broken)[0].isfinite()  # the guards see it
    assert all(value.isfinite().all() for value in objective.state_dict().values())
    assert objective(batch)[0].isfinite()


def everybody(count: int) -> dict[str, Tensor]:
    return {name: torch.ones(count, dtype=torch.bool) for name in NAMES}


def test_the_model_stays_in_double_precision() -> None:
    objective = trained()
    variance = objective.model.variance.clone()
    objective.bfloat16()
    assert objective.temperature.log_scale.dtype == torch.bfloat16
    assert {b.dtype for b in objective.model.buffers()} == {torch.float64}
    assert torch.equal(objective.model.variance, variance)
    assert not list(objective.model.parameters())


# The singular values


def random_sets(count: int, size: int, dim: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(4)
    return F.normalize(torch.randn(count, size, dim, generator=rng, dtype=torch.float64), dim=2)


def svd(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Values, ascending, and leading direction by the SVD, with the sign of the sum in which the first count most."""
    u, values, _ = torch.linalg.svd(vectors.mT, full_matrices=False)
    first, counts = u[:, :, 0], 0.5 ** torch.arange(vectors.shape[1], dtype=vectors.dtype)
    sign = torch.where((first * torch.einsum("k,nkd->nd", counts, vectors)).sum(dim=1) < 0, -1.0, 1.0)
    return values.flip(1), first * sign[:, None]


def test_values_direction_and_gradients_equal_those_of_the_svd() -> None:
    vectors = random_sets(20, 4)
    there = torch.ones(20, 4, dtype=torch.bool)
    weights = torch.randn(20, 6, dtype=torch.float64)
    grads = []
    for decompose in (svd, lambda v: leading(v, there)):
        leaf = vectors.clone().requires_grad_()
        values, u = decompose(leaf)
        (values[:, -1].square().sum() + (u * weights).sum()).backward()
        grads.append((values.detach(), u.detach(), leaf.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["orthonormal", "parallel", "two and two", "opposite"])
def test_the_gradient_is_finite_where_singular_values_meet(name: str) -> None:
    e = torch.eye(6)
    vectors = {
        "orthonormal": e[:4],
        "parallel": e[[0, 0, 0, 0]],
        "two and two": e[[0, 0, 1, 1]],
        "opposite": torch.stack([e[0], -e[0], e[1], -e[1]]),
    }[name][None]
    leaf = vectors.clone().requires_grad_()
    there = torch.ones(1, 4, dtype=torch.bool)
    values, u = leading(leaf, there)
    (alignment(values, there, 0.1).sum() + (u * torch.randn(1, 6)).sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() < 1e4
    if name in ("orthonormal", "two and two"):
        exact = vectors.clone().requires_grad_()
        _, first = svd(exact)
        (first * torch.randn(1, 6)).sum().backward()
        assert exact.grad is not None
        assert not exact.grad.isfinite().all() or exact.grad.abs().max() > 1e4


def test_parallel_vectors_have_the_largest_singular_value_and_no_loss() -> None:
    there = torch.ones(1, 4, dtype=torch.bool)
    values, _ = leading(F.normalize(torch.ones(1, 4, 6), dim=2), there)
    assert values[0, -1].item() == pytest.approx(2, abs=1e-5)
    assert alignment(values, there, 0.1).item() == pytest.approx(0, abs=1e-6)
    orthonormal, _ = leading(torch.eye(6)[None, :4], there)
    assert alignment(orthonormal, there, 0.1).item() == pytest.approx(math.log(4), abs=1e-4)


def test_absent_vectors_have_no_share_in_the_softmax() -> None:
    vectors = random_sets(5, 3)
    there = torch.tensor([[True, False, True]]).expand(5, 3)
    ours = alignment(leading(vectors, there)[0], there, 0.3)
    alone = alignment(leading(vectors[:, [0, 2]], there[:, :2] | True)[0], there[:, :2] | True, 0.3)
    torch.testing.assert_close(ours, alone)


# The objective


def literal(z: list[np.ndarray], held: np.ndarray, tau: float, temperature: float, weight: float) -> float:
    """The loss by numpy's SVD, row by row."""
    first, aligned = [], []
    for row in range(len(held)):
        if held[row].sum() < 2:
            continue
        columns = np.stack([z[m][row] for m in range(len(z)) if held[row, m]], axis=1)
        columns, counts = columns / np.linalg.norm(columns, axis=0), 0.5 ** np.flatnonzero(held[row])
        u, values, _ = np.linalg.svd(columns, full_matrices=False)
        aligned.append(math.log(np.exp((values - values[0]) / tau).sum()))
        first.append(u[:, 0] * np.sign(u[:, 0] @ columns @ counts))
    scores = np.stack(first) @ np.stack(first).T / temperature
    apart = np.log(np.exp(scores).sum(axis=1)) - scores.diagonal()
    return float(np.mean(aligned) + weight * np.mean(apart))


def arrays(batch: GlobalBatch) -> tuple[list[np.ndarray], np.ndarray]:
    held = torch.stack(list(batch.present.values()), dim=1).numpy()
    return [z.double().numpy() for z in batch.z.values()], held


def test_the_loss_on_observed_embeddings_equals_a_literal_svd() -> None:
    objective = make(TABLE | {"complete": False, "instance_weight": 0.7, "tau": 0.2, "chunk": 4})
    for seed in range(4):
        batch = rows(objective, 9, seed=seed, share=0.8)
        assert evaluate(objective, batch)[0] == pytest.approx(literal(*arrays(batch), 0.2, 0.1, 0.7), rel=1e-3)


def test_the_loss_on_completed_embeddings_equals_a_literal_svd() -> None:
    objective = trained().eval()
    batch = rows(objective, 9, share=0.7)
    z, held = arrays(batch)
    unit = np.stack([rows_ / np.linalg.norm(rows_, axis=1, keepdims=True) for rows_ in z], axis=1)
    whole = objective.model.impute(torch.from_numpy(unit), torch.from_numpy(held)).numpy()
    kept = held.sum(axis=1) >= 2
    expected = literal([whole[kept, m] for m in range(3)], np.ones_like(held[kept]), 0.1, 0.1, 1.0)
    assert evaluate(objective, batch)[0] == pytest.approx(expected, rel=1e-3)
    observed = make(TABLE | {"complete": False})
    assert abs(evaluate(observed, batch)[0] - expected) > 1e-2


def test_completion_starts_after_the_warm_up_and_changes_in_training_alone() -> None:
    objective, plain = make(TABLE | {"warmup_steps": 3}), make(TABLE | {"complete": False})
    batch = rows(objective, 30)
    expected = plain(batch)[0].item()
    losses = []
    for step in range(6):
        assert int(objective.steps) == step
        losses.append(objective(batch)[0].item())
    assert losses[:3] == [expected] * 3
    assert len({expected, *losses[3:]}) == 4
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    again = [objective(batch)[0].item() for _ in range(2)]
    assert again[0] == again[1]
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    # what is saved goes on where it was
    resumed = make(TABLE | {"warmup_steps": 3})
    resumed.load_state_dict(before)
    assert resumed(batch)[0].item() == again[0]


def test_gradients_reach_observed_embeddings_alone() -> None:
    objective = trained()
    batch = rows(objective, 12)
    _, grads = evaluate(objective, batch)
    held = torch.stack(list(batch.present.values()), dim=1)
    for at, name in enumerate(NAMES):
        reached = grads[name].abs().sum(dim=1) > 0
        assert not reached[~held[:, at]].any()
        assert torch.equal(reached, held[:, at] & (held.sum(dim=1) >= 2))
    assert not any(buffer.requires_grad for buffer in objective.buffers())


def test_wrong_variants_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"degenerate"}  # that one row alone has no loss does not hold here
    assert failing(make(TABLE | {"complete": False})) == good
    with monkeypatch.context() as patch:
        patch.setattr(calmrl, "of_rank", lambda found, local: torch.arange(len(found)))
        assert failing(make(TABLE | {"complete": False})) == {"sharding"} | good
    # completing rows that have nothing
    with monkeypatch.context() as patch:
        patch.setattr(calmrl, "positions", lambda mask: torch.arange(len(mask)))
        assert {"padding"} <= failing(make(TABLE | {"complete": False}))


def test_a_wrong_width_is_refused() -> None:
    objective = make(TABLE | {"dim": 7})
    with pytest.raises(ConfigError, match=r"objective\.dim=5"):
        objective(rows(objective, 4))
    with pytest.raises(ConfigError, match="wider than"):
        make(TABLE | {"latent": 6})
