"""CalMRL: the singular values and the loss against a literal SVD, and what is updated when."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives import calmrl
from pretrain.objectives.base import GlobalBatch, Logs, Objective
from pretrain.objectives.calmrl import CalMrl, alignment, leading
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

TABLE: dict[str, object] = {"kind": "calmrl", "latent": 2, "warmup_steps": 0}


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


def test_the_model_is_as_wide_as_the_embeddings() -> None:
    objective = make({"kind": "weighted_sum", "terms": [{"objective": TABLE}, {"objective": {"kind": "all_pairs"}}]})
    assert objective.get_buffer("terms.0.model.mean").shape == (3, DIM)
    with pytest.raises(ConfigError, match="wider than"):
        make(TABLE | {"latent": DIM + 1})
