"""The training loop: batches that are taken together, noise on features, two variations predicted alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.consistency import Consistency
from finetune.encodings import Column, EncodedRows
from finetune.fit import Batches, Example, Schedule, fit
from finetune.heads.base import HEADS, Head
from shards.errors import DataError

HUGE = 1e9


def linear_head(width: int, **options: Any) -> Head:
    torch.manual_seed(0)
    table = {"kind": "regression", "hidden": 16, "dropout": 0.0, "loss": "mse", **options}
    return HEADS.get("regression")(HEADS.options(table), width, ("y_ev",))


def slices(x: Tensor, y: Tensor, size: int, twin: Tensor | None = None, offset: Tensor | None = None) -> Batches:
    def batches(epoch: int) -> Iterator[Example]:
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            yield Example(
                x[part], y[part], None if offset is None else offset[part], None if twin is None else twin[part]
            )

    return batches


def trained(
    head: nn.Module, train: Batches, validation: Batches, *, epochs: int = 4, lr: float = 0.01, **options: Any
) -> dict[str, float]:
    schedule = Schedule(
        groups=[{"params": list(head.parameters()), "lr": lr}],
        epochs=epochs, weight_decay=0.0, grad_clip=HUGE, **options,
    )  # fmt: skip
    return fit(head, head, train, validation, schedule=schedule, accelerator=Accelerator(cpu=True))


@pytest.mark.parametrize("size", [4, 5])
def test_batches_taken_together_are_one_batch_also_where_labels_are_missing(size: int) -> None:
    """The mean is over all known targets: a mean of the batches' means would give a batch with few of them too much."""
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    y[[0, 1, 2, 7]] = float("nan")
    heads = [linear_head(3), linear_head(3)]
    trained(heads[0], slices(x, y, 10), slices(x, y, 10))
    trained(heads[1], slices(x, y, size), slices(x, y, 10), accumulate=3)
    for one, several in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.allclose(one, several, atol=1e-5)


def test_a_run_that_is_cut_short_takes_a_step_of_its_own() -> None:
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    head = linear_head(3)
    before = [p.detach().clone() for p in head.parameters()]
    trained(head, slices(x, y, 5), slices(x, y, 10), accumulate=100, epochs=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))


def test_a_difference_is_learned_and_the_known_part_added_back() -> None:
    """Delta-ML: the hard part is common to both levels; n = 60 of it cannot be learned, the difference is linear."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(160, 4, generator=rng)
    low = 10 * torch.sin(40 * x.sum(dim=1, keepdim=True))
    y = low + x @ torch.tensor([[1.0], [-1.0], [0.5], [0.0]])
    errors = {}
    for name, offset in (("direct", None), ("difference", low)):
        head = linear_head(4)
        head.layers = nn.Linear(4, 1)
        head.fit(y[:60] if offset is None else (y - low)[:60])
        train = slices(x[:60], y[:60], 20, offset=None if offset is None else offset[:60])
        test = slices(x[60:], y[60:], 100, offset=None if offset is None else offset[60:])
        errors[name] = trained(head, train, test, epochs=200, lr=0.05)["mae"]
    assert errors["difference"] < 0.15 and errors["direct"] > 20 * errors["difference"]


def noisy_rows(x: Tensor) -> tuple[EncodedRows, dict[str, Any]]:
    rows = EncodedRows({"a": Column(torch.ones(len(x)).bool(), x)})
    return rows, {"a": rows.columns["a"].deviations()}


def test_training_a_linear_model_on_noise_is_ridge_with_a_penalty_for_each_feature() -> None:
    """Bishop, Neural Comput. 7, 108 (1995): noise adds n (f sigma_j)^2 w_j^2. Three wrong variants are far."""
    f, draws = 0.5, 3000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator) * torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])
    x = x - x.mean(dim=0)
    y = x @ torch.tensor([20.0, -5.0, 1.0, 0.5, 0.1]) + torch.randn(40, generator=generator)
    rows, deviations = noisy_rows(x)
    sigma = x.std(dim=0, unbiased=False)

    def solved(inputs: list[Tensor]) -> Tensor:
        gram = torch.stack([z.T @ z for z in inputs]).mean(dim=0)
        return torch.linalg.solve(gram, torch.stack([z.T @ y for z in inputs]).mean(dim=0))

    def drawn(scale: Tensor, keys: range) -> list[Tensor]:
        table = {"a": (scale, None)}
        return [rows.noisy(f, table, key).columns["a"].vector for key in keys]

    ridge = torch.linalg.solve(x.T @ x + torch.diag(len(x) * (f * sigma) ** 2), x.T @ y)

    def far(weights: Tensor) -> float:
        return float(((weights - ridge) * sigma).norm() / (ridge * sigma).norm())

    assert torch.allclose(deviations["a"][0], sigma)
    assert far(solved(drawn(deviations["a"][0], range(draws)))) < 0.02
    assert far(solved([x])) > 0.1, "no noise"
    assert far(solved(drawn(sigma.mean().expand(5), range(draws)))) > 0.1, "one deviation for all features"
    assert far(solved(drawn(deviations["a"][0], range(1)) * draws)) > 0.1, "drawn once"


def test_noise_depends_on_its_key_and_absent_rows_do_not_count() -> None:
    x = torch.randn(50, 3)
    rows, deviations = noisy_rows(x)
    once, again, other = (rows.noisy(0.1, deviations, key).columns["a"].vector for key in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    half = Column(torch.arange(50) < 25, torch.where((torch.arange(50) < 25)[:, None], x, 0.0))
    assert torch.allclose(half.deviations()[0], x[:25].std(dim=0, unbiased=False))


@pytest.mark.parametrize("task", ["regression", "classification", "multiclass"])
def test_identical_variations_cost_nothing_and_pull_nowhere(task: str) -> None:
    raw = torch.randn(6, 3, requires_grad=True)
    term = Consistency().distance(task, raw, raw.clone())
    term.backward()
    assert term.item() == pytest.approx(0.0, abs=1e-6)
    assert raw.grad is not None and torch.allclose(raw.grad, torch.zeros_like(raw), atol=1e-6)


def test_the_second_variation_has_no_gradient_and_classes_are_compared_by_divergence() -> None:
    raw, other = (torch.randn(6, 1, requires_grad=True) for _ in range(2))
    term = Consistency().distance("classification", raw, other)
    term.backward()
    assert raw.grad is not None and other.grad is None
    p, q = (torch.distributions.Bernoulli(logits=logits.detach()) for logits in (other, raw))
    assert term.item() == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item(), rel=1e-4)


def test_the_strength_rises_as_published() -> None:
    rising = Consistency(weight=2.0, ramp_epochs=10)
    assert rising.strength(0) == pytest.approx(2 * np.exp(-5))
    assert [rising.strength(e) for e in range(12)] == sorted(rising.strength(e) for e in range(12))
    assert rising.strength(10) == rising.strength(99) == 2.0
    assert Consistency(weight=2.0, ramp_epochs=0).strength(0) == 2.0


def nuisance(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A signal and features that say nothing; two variations differ in the latter."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(rows, 1, generator=generator)
    views = [torch.cat([signal, torch.randn(rows, 4, generator=generator)], dim=1) for _ in range(2)]
    return views[0], views[1], signal


def test_a_nuisance_matters_the_less_the_stronger_the_term_and_unlabelled_rows_lower_the_error() -> None:
    x, twin, y = nuisance(200, 0)
    few = y.clone()
    few[10:] = float("nan")
    test, test_twin, y_test = nuisance(300, 1)
    sensitivity, errors = [], []
    for weight, rows in ((0.0, 200), (0.1, 200), (1.0, 200), (1.0, 10)):
        head = linear_head(5)
        head.layers = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 1))
        head.fit(few)
        train = slices(x[:rows], few[:rows], 50, twin=twin[:rows])
        values = trained(
            head, train, slices(test, y_test, 300), epochs=100,
            consistency=Consistency(weight=weight, ramp_epochs=0),
        )  # fmt: skip
        with torch.no_grad():
            sensitivity.append((head(test) - head(test_twin)).abs().mean().item())
        errors.append(values["mae"])
    assert sensitivity[0] > sensitivity[1] > sensitivity[2]
    assert errors[2] < 0.7 * errors[0]
    assert errors[2] < 0.8 * errors[3], "the same term without the unlabelled rows helps less"


def test_a_validation_part_of_one_class_is_refused() -> None:
    """Its AUROC is undefined: no epoch could win, and what would be left are the weights of before the training."""
    x, y = torch.randn(8, 3), torch.tensor([[0.0], [1.0]] * 4)
    head = HEADS.get("classification")(HEADS.options({"kind": "classification", "hidden": 4}), 3, ("is_metal",))
    with pytest.raises(DataError, match="auroc of the validation part is undefined"):
        trained(head, slices(x, y, 8), slices(x, torch.zeros(8, 1), 8))
