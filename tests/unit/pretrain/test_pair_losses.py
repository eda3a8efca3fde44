"""The pair losses equal their definitions, written as loops; wrong variants are caught by the invariants or a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.objectives.barlow import barlow_twins
from pretrain.objectives.base import GlobalBatch, Logs
from pretrain.objectives.infonce import info_nce
from pretrain.objectives.ntxent import nt_xent
from pretrain.objectives.pair_losses import PAIR_LOSSES, PairLoss
from pretrain.objectives.siglip import sigmoid_loss
from shards.errors import ConfigError
from shards.plugins import Options
from tests.unit.pretrain.invariants import failing, make

Drop = Callable[[np.ndarray, int, int], bool]


def everything(count: int, seed: int, share: float, dim: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two embeddings, where both are valid, and groups."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(count, dim, generator=rng), torch.randn(count, dim, generator=rng)
    return a, b, torch.rand(count, generator=rng) < share, torch.randint(0, max(count // 2, 1), (count,), generator=rng)


def valid_rows(z: Tensor, valid: Tensor) -> np.ndarray:
    rows = z[valid].double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def criteria(groups: Tensor | None, above: float | None) -> Drop:
    """Whether candidate j of unit rows z is dropped for anchor i."""

    def drop(z: np.ndarray, i: int, j: int) -> bool:
        same = groups is not None and groups[i] == groups[j]
        return i != j and (bool(same) or (above is not None and float(z[i] @ z[j]) > above))

    return drop


def cross_entropy(logits: list[float], positive: float, smoothing: float = 0.0) -> float:
    top = max(logits)
    lse = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return lse - (1 - smoothing) * positive - smoothing * sum(logits) / len(logits)


def literal_info_nce(u: np.ndarray, v: np.ndarray, t: float, drop: Drop, smoothing: float) -> float:
    n, total = len(u), 0.0
    for x, y in ((u, v), (v, u)):
        for i in range(n):
            logits = [float(x[i] @ y[j]) / t for j in range(n) if not drop(y, i, j)]
            total += cross_entropy(logits, float(x[i] @ y[i]) / t, smoothing) / (2 * n)
    return total


def literal_nt_xent(u: np.ndarray, v: np.ndarray, t: float, drop: Drop, smoothing: float) -> float:
    n, total = len(u), 0.0
    z = np.concatenate([u, v])
    for row in range(2 * n):
        logits = []
        for other in range(2 * n):
            kind = u if other < n else v
            if other != row and not drop(kind, row % n, other % n):
                logits.append(float(z[row] @ z[other]) / t)
        total += cross_entropy(logits, float(z[row] @ z[(row + n) % (2 * n)]) / t) / (2 * n)
    return total


def literal_sigmoid(u: np.ndarray, v: np.ndarray, t: float, drop: Drop, smoothing: float) -> float:
    n, total = len(u), 0.0
    for i in range(n):
        for j in range(n):
            logit = (1 if i == j else -1) * (float(u[i] @ v[j]) / t - 2.0)
            if not (drop(u, i, j) or drop(v, i, j)):
                total += math.log1p(math.exp(-abs(logit))) + max(-logit, 0.0)
    return total / max(n, 1)


def with_bias(*args: Any, smoothing: float, **more: Any) -> Tensor:
    return sigmoid_loss(*args, bias=torch.tensor([-2.0]), **more)


def without_smoothing(*args: Any, smoothing: float, **more: Any) -> Tensor:
    return nt_xent(*args, **more)


@pytest.mark.parametrize(
    ("ours", "literal"),
    [(info_nce, literal_info_nce), (without_smoothing, literal_nt_xent), (with_bias, literal_sigmoid)],
    ids=["infonce", "ntxent", "siglip"],
)
@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10), st.integers(0, 10**6), st.floats(0.01, 1.0), st.floats(0.2, 1.0), st.booleans(),
    st.sampled_from([None, 0.2, 0.7]), st.sampled_from([0.0, 0.1]), st.integers(1, 4),
)  # fmt: skip
def test_the_losses_equal_literal_loops(
    ours: Callable, literal: Callable, count: int, seed: int, temperature: float, share: float, grouped: bool,
    above: float | None, smoothing: float, chunk: int,
) -> None:  # fmt: skip
    a, b, valid, groups = everything(count, seed, share)
    kept = groups if grouped else None
    expected = literal(
        valid_rows(a, valid), valid_rows(b, valid), temperature,
        criteria(None if kept is None else kept[valid], above), smoothing,
    )  # fmt: skip
    scale = torch.tensor([1 / temperature])
    found = ours(
        a, b, valid, scale=scale, local=slice(0, count), groups=kept, above=above, chunk=chunk, smoothing=smoothing
    )
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_barlow_equals_its_definition() -> None:
    a, b, valid, _ = everything(20, 0, 0.7)
    rows = [z[valid].double().numpy() for z in (a, b)]
    x, y = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in rows)
    c = x.T @ y / len(x)
    total = sum((c[k, m] - 1) ** 2 if k == m else 0.0051 * c[k, m] ** 2 for k in range(4) for m in range(4))
    assert barlow_twins(a, b, valid, local=slice(0, 20)).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("n", [2, 32])
def test_collapsed_embeddings(n: int) -> None:
    """log n, and log(2n - 1) for the stacked rows; the sigmoid loss has a closed form."""
    ones, valid = torch.ones(n, 3), torch.ones(n, dtype=torch.bool)
    one = {"scale": torch.tensor([10.0]), "local": slice(0, n)}
    assert info_nce(ones, ones, valid, **one).item() == pytest.approx(math.log(n), rel=1e-6)
    assert nt_xent(ones, ones, valid, **one).item() == pytest.approx(math.log(2 * n - 1), rel=1e-6)
    # t u.v + b = 0 everywhere at the start, so every one of the n x n questions costs log 2
    found = sigmoid_loss(ones, ones, valid, bias=torch.tensor([-10.0]), **one)
    assert found.item() == pytest.approx(n * math.log(2), rel=1e-6)


@pytest.mark.parametrize(("n", "floor"), [(128, 0.600), (1024, 2.062)])
def test_the_floor_at_a_fixed_temperature_is_that_of_the_simplex(n: int, floor: float) -> None:
    simplex = torch.eye(n) - 1 / n
    loss = info_nce(
        simplex, simplex, torch.ones(n, dtype=torch.bool), scale=torch.tensor([5.0]), local=slice(0, n), chunk=n
    )
    assert loss.item() == pytest.approx(floor, abs=1e-3)


def test_barlow_of_uncorrelated_features_and_of_strangers() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 8, generator=rng).double()
    # orthonormal columns of mean zero: their cross-correlation with themselves is the identity
    columns = torch.linalg.qr(rows - rows.mean(0)).Q.float() * 8
    valid, more = torch.ones(64, dtype=torch.bool), {"local": slice(0, 64)}
    assert barlow_twins(columns, columns, valid, **more).item() == pytest.approx(0.0, abs=1e-6)
    other = columns + 0.3 * torch.randn(64, 8, generator=rng)
    together = barlow_twins(columns, other, valid, **more).item()
    order = torch.randperm(64, generator=rng)
    assert barlow_twins(columns[order], other[order], valid, **more).item() == pytest.approx(together, rel=1e-4)
    assert barlow_twins(columns, other[order], valid, **more).item() > together + 4
    # a gain and an offset of a feature change nothing: no affine map can undo the standardisation
    moved = other * torch.linspace(0.5, 20, 8) - 3
    assert barlow_twins(columns, moved, valid, **more).item() == pytest.approx(together, rel=1e-3)


def test_twins_of_a_group_are_no_negatives() -> None:
    a, b, _, _ = everything(12, 0, 1.0)
    pairs, valid = torch.arange(12) // 2, torch.ones(12, dtype=torch.bool)
    for loss in (info_nce, nt_xent, lambda *args, **more: sigmoid_loss(*args, bias=torch.tensor([-2.0]), **more)):
        moved = b.clone()
        moved[1] = a[0] + 0.3  # record 1, of the same sample as record 0, becomes its hardest negative
        more = {"scale": torch.tensor([5.0]), "local": slice(0, 1)}
        leaf = moved.requires_grad_()
        (masked,) = torch.autograd.grad(loss(a, leaf, valid, groups=pairs, **more), leaf)
        (plain,) = torch.autograd.grad(loss(a, leaf, valid, **more), leaf)
        assert not masked[1].any() and plain[1].any() and masked[2].any()


def test_too_similar_negatives_are_dropped_in_their_own_modality() -> None:
    a, b, _, _ = everything(6, 1, 1.0)
    b[1] = b[0] + 1e-3  # the same material twice, by b alone
    more = {"scale": torch.tensor([5.0]), "local": slice(0, 1), "world": 1}
    leaf, valid = b.requires_grad_(), torch.ones(6, dtype=torch.bool)
    (grad,) = torch.autograd.grad(info_nce(a, leaf, valid, above=0.99, **more), leaf)
    assert grad[0].any() and not grad[1].any() and grad[2].any()


def test_a_plug_in_from_elsewhere() -> None:
    class Distance(PairLoss):
        tempered = False

        class Config(Options):
            kind: str = "distance"

        def forward(
            self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
        ) -> tuple[Tensor, Logs]:
            mine = torch.zeros_like(valid)
            mine[batch.local] = valid[batch.local]
            share = (a_BD[mine] - b_BD[mine]).float().square().sum() + 0.0 * (a_BD[valid].sum() + b_BD[valid].sum())
            return share * batch.world / valid.sum().clamp(min=1), {}

    try:
        PAIR_LOSSES.register("distance")(Distance)
        assert failing(make({"kind": "all_pairs", "pair_loss": "distance"})) == {"degenerate"}  # one row has a distance
    finally:
        PAIR_LOSSES._plugins.pop("distance")
    assert PAIR_LOSSES.kinds() == ["barlow", "infonce", "ntxent", "siglip"]
    with pytest.raises(ConfigError, match="there is no pair loss"):
        PAIR_LOSSES.get("distance")


# Wrong variants: each must be caught by the invariants, or by a value


def normalised(a: Tensor, b: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(a[rows], dim=1), F.normalize(b[rows], dim=1)


def mine_among(rows: Tensor, local: slice) -> Tensor:
    return ((rows >= local.start) & (rows < local.stop)).nonzero().squeeze(1)


def local_mean(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Divide by the valid rows of this rank, the single easiest mistake to make."""
    right = info_nce(a, b, valid, scale=scale, local=batch.local, world=batch.world)
    return right * int(valid.sum()) / (batch.world * max(int(valid[batch.local].sum()), 1))


def missing_as_negatives(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Leave the rows that lack a modality in the denominator."""
    u, v = F.normalize(a, dim=1), F.normalize(b, dim=1)
    mine = valid.nonzero().squeeze(1)
    mine = mine[mine_among(mine, batch.local)]
    if len(mine) == 0:
        return (u.sum() + v.sum() + scale.sum()) * 0.0
    both = [F.cross_entropy(scale * (x[mine] @ y.T), mine, reduction="sum") for x, y in ((u, v), (v, u))]
    return 0.5 * (both[0] + both[1]) * batch.world / int(valid.sum())


def plain_mean(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Divide by all rows, valid or not."""
    right = info_nce(a, b, valid, scale=scale, local=batch.local, world=batch.world)
    return right * valid.sum() / len(valid)


def no_guard(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Take the mean without asking whether there is a row."""
    u, v = normalised(a, b, valid)
    scores, own = scale * (u @ v.T), torch.arange(len(u))
    return 0.5 * (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own))


def detached_columns(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Compare this rank's rows with all, without gradient through the others' (local loss, plain gather)."""
    inside = torch.zeros_like(valid)
    inside[batch.local] = True
    a, b = (torch.where(inside[:, None], z, z.detach()) for z in (a, b))
    return info_nce(a, b, valid, scale=scale, local=batch.local, world=batch.world)


def twice_the_world(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Compute the whole loss on every rank, and scale it like a share."""
    return info_nce(a, b, valid, scale=scale, local=slice(0, len(a)), world=batch.world)


def unmasked_siglip(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Ask of absent rows too whether they belong together."""
    bias = torch.tensor([-10.0])
    return sigmoid_loss(
        a, b, torch.ones_like(valid), scale=scale, bias=bias, local=batch.local, world=batch.world
    )  # fmt: skip


def self_included(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Leave every row among its own candidates: NT-Xent without the exclusion."""
    rows = valid.nonzero().squeeze(1)
    z, n, mine = torch.cat(normalised(a, b, rows)), len(rows), mine_among(rows, batch.local)
    if len(mine) == 0:
        return (z.sum() + scale.sum()) * 0.0
    anchors, partners = torch.cat([mine, mine + n]), torch.cat([mine + n, mine])
    losses = F.cross_entropy(scale * (z[anchors] @ z.T), partners, reduction="sum")
    return 0.5 * losses * batch.world / n


def local_statistics(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch) -> Tensor:
    """Standardise over this rank's rows, as a batch norm that is not synchronised."""
    mask = torch.zeros_like(valid)
    mask[batch.local] = valid[batch.local]
    return barlow_twins(a, b, mask, local=batch.local) * (batch.world * mask.sum() / valid.sum().clamp(min=1))


class Wrong(PairLoss):
    """A pair loss made of a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__(None)
        self.function = function

    def forward(
        self, a_BD: Tensor, b_BD: Tensor, valid: Tensor, scale: Tensor, batch: GlobalBatch
    ) -> tuple[Tensor, Logs]:
        return self.function(a_BD, b_BD, valid, scale, batch), {}


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (local_mean, {"sharding"}),
        (missing_as_negatives, {"padding", "content", "degenerate"}),
        (plain_mean, {"padding", "degenerate"}),
        (no_guard, {"degenerate"}),
        (detached_columns, {"sharding"}),
        (twice_the_world, {"sharding"}),
        (unmasked_siglip, {"padding", "content", "degenerate"}),
        (self_included, {"degenerate"}),
        (local_statistics, {"sharding"}),
    ],
)
def test_wrong_variants_are_caught(wrong: Callable[..., Tensor], caught: set[str]) -> None:
    objective = make({"kind": "all_pairs"})
    objective.losses = nn.ModuleList([Wrong(wrong)])
    assert failing(objective) == caught


def test_wrong_values_are_caught() -> None:
    """What the invariants alone would let pass: a row among its own candidates, at collapse."""
    ones, valid = torch.ones(32, 3), torch.ones(32, dtype=torch.bool)
    batch = GlobalBatch(z={}, present={}, local=slice(0, 32))
    wrong = self_included(ones, ones, valid, torch.ones(1), batch).item()
    assert wrong == pytest.approx(math.log(64), rel=1e-6) and wrong != pytest.approx(math.log(63), abs=1e-3)
    # the local loss without gradient through what was gathered has the right value, which is why it goes unnoticed
    a, b, valid, _ = everything(12, 0, 0.8)
    half = replace(batch, local=slice(0, 6), world=2)
    right = info_nce(a, b, valid, scale=torch.ones(1), local=half.local, world=2)
    assert detached_columns(a, b, valid, torch.ones(1), half).item() == right.item()
