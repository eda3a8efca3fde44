from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shards.errors import ConfigError, DataError
from tests.unit.finetune.heads.training import build, train, wide

ENERGIES = 40


def peaks(count: int) -> tuple[Tensor, Tensor]:
    """Features (count, 14), and spectra (count, 40): two peaks whose heights are functions of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, generator=generator)
    energy = torch.arange(ENERGIES) * 1.0
    shapes = torch.stack([(-((energy - c) ** 2) / 8).exp() for c in (10.0, 28.0)])
    return wide(x), x[:, :2] @ shapes


def shifted(bins: int) -> Tensor:
    """A peak of one bin, whose integral is 40, moved by some bins: (1, 40)."""
    return ENERGIES * torch.eye(ENERGIES)[10 + bins][None]


def test_a_shift_costs_its_bins_in_the_cumulative_and_the_squared_error_saturates() -> None:
    costs: dict[str, list[float]] = {}
    for loss in ("cdf", "mse"):
        head = build("spectrum", 14, ENERGIES, loss=loss)
        costs[loss] = [head.loss(shifted(bins), shifted(0)).item() for bins in (0, 1, 2, 10)]
    assert costs["cdf"] == pytest.approx([0.0, 1.0, 2.0, 10.0], abs=1e-4)
    assert costs["mse"][0] == 0.0 and costs["mse"][1] == costs["mse"][2] == costs["mse"][3]


@pytest.mark.parametrize("loss", ["mse", "cdf", "kl"])
@pytest.mark.parametrize("rank", [0, 2])
def test_spectra_are_learned_and_never_negative(loss: str, rank: int) -> None:
    x, y = peaks(200)
    head = train(build("spectrum", 14, ENERGIES, loss=loss, rank=rank, hidden=32, dropout=0.0), x, y, steps=150)
    value = head.predict(head(x)).value
    assert (value >= 0).all()
    assert (value - y).abs().mean() < 0.75 * (y.mean(0) - y).abs().mean()


def test_every_loss_is_least_at_the_truth() -> None:
    _, y = peaks(20)
    for loss in ("mse", "cdf", "kl"):
        head = build("spectrum", 14, ENERGIES, loss=loss)
        head.fit(y)
        truth = y / head.unit
        best = head.loss(truth, y).item()
        assert best == pytest.approx(0.0, abs=1e-5)
        for wrong in (1.1 * truth, 0.9 * truth, truth.roll(1, dims=1)):
            assert head.loss(wrong, y).item() > best + 1e-4


@pytest.mark.parametrize("rank", [0, 2])
def test_the_integral_is_kept(rank: int) -> None:
    x, y = peaks(200)
    y = 12 * y / y.sum(1, keepdim=True) / 0.25
    integrals = {}
    for integral in (12.0, None):
        options = {"integral": integral, "spacing": 0.25, "rank": rank}
        head = train(build("spectrum", 14, ENERGIES, hidden=16, **options), x, y, steps=10)
        integrals[integral] = head.predict(head(x)).value.sum(1) * 0.25
    assert torch.allclose(integrals[12.0], torch.full((200,), 12.0), rtol=1e-4)
    # the components of spectra of one integral keep it by themselves, free bins do not
    assert torch.allclose(integrals[None], integrals[12.0], rtol=1e-3) == (rank > 0)


def test_the_basis_spans_the_training_spectra() -> None:
    _, y = peaks(200)
    head = build("spectrum", 14, ENERGIES, rank=2)
    head.fit(y)
    residual = y / head.unit - head.centre
    coefficients = torch.linalg.lstsq(head.basis.T, residual.T).solution
    assert (head.basis.T @ coefficients - residual.T).abs().max() < 1e-3
    # one component less cannot, and coefficients have a variance of one
    assert torch.allclose(coefficients.var(dim=1), torch.ones(2), atol=0.05)
    fewer = torch.linalg.lstsq(head.basis[:1].T, residual.T).solution
    assert (head.basis[:1].T @ fewer - residual.T).abs().max() > 0.1


def test_what_is_no_spectrum_is_refused() -> None:
    with pytest.raises(DataError, match="negative"):
        build("spectrum", 14, ENERGIES).fit(-torch.ones(3, ENERGIES))
    with pytest.raises(ConfigError, match="rank = 41"):
        build("spectrum", 14, ENERGIES, rank=41)


def test_a_spectrum_with_a_gap_weighs_nothing() -> None:
    _, y = peaks(4)
    head = build("spectrum", 14, ENERGIES)
    raw = torch.rand(4, ENERGIES, requires_grad=True)
    y[1, 3] = float("nan")
    head.loss(raw, y).backward()
    assert raw.grad is not None and not raw.grad[1].any() and raw.grad[0].any()
