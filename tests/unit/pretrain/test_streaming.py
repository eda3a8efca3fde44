"""Sums over a matrix that is never held equal those over one that is, with their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.objectives.streaming import Region, log_sum_exp, sigmoid_sum

Grads = list[Tensor]


def unit(count: int, seed: int, dim: int = 4) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def dropped(region: Region, candidates: Tensor) -> Tensor:
    """The definition, entry by entry: True where candidate j is none of anchor i's."""
    count = len(candidates)
    mask = torch.zeros(count, count, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            if i == j:
                mask[i, j] = region.exclude_self
            else:
                same = region.groups is not None and bool(region.groups[i] == region.groups[j])
                near = region.above is not None and float(candidates[i] @ candidates[j]) > region.above
                mask[i, j] = same or near
    return mask


def plain_log_sum_exp(x: Tensor, y: Tensor, scale: Tensor, region: Region) -> tuple[Tensor, Tensor, Tensor]:
    logits = scale * (x @ y.T)
    both = [(logits, dropped(region, y.detach())), (logits.T, dropped(region, x.detach()))]
    lse = torch.stack([s.masked_fill(m, -math.inf).logsumexp(1) for s, m in both])
    mean = torch.stack([s.masked_fill(m, 0).sum(1) / (~m).sum(1) for s, m in both])
    mine = region.mine
    return lse[:, mine], logits.diagonal()[mine], (logits.diagonal() - mean)[:, mine]


def plain_sigmoid_sum(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, region: Region) -> Tensor:
    logits = scale * (x @ y.T) + bias
    signs = 2 * torch.eye(len(x)).double() - 1
    mask = dropped(region, x.detach()) | dropped(region, y.detach())
    return -F.logsigmoid(signs * logits).masked_fill(mask, 0.0).sum(1)[region.mine]


def gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Grads:
    """Of a weighted sum of what is finite: an anchor without candidates has no log-sum-exp."""
    rng, total = torch.Generator().manual_seed(3), torch.zeros((), dtype=torch.float64)
    for output in outputs:
        weights = torch.randn(output.shape, generator=rng).double()
        total = total + (weights * output.masked_fill(~output.isfinite(), 0.0)).sum()
    return list(torch.autograd.grad(total, inputs))


@st.composite
def regions(draw: st.DrawFn) -> tuple[int, Region]:
    count = draw(st.integers(1, 11))
    first = draw(st.integers(0, count - 1))
    groups = torch.tensor([draw(st.integers(0, 3)) for _ in range(count)]) if draw(st.booleans()) else None
    above = draw(st.sampled_from([None, 0.1, 0.6]))
    mine = slice(first, draw(st.integers(first + 1, count)))
    return count, Region(mine=mine, chunk=draw(st.integers(1, 5)), groups=groups, above=above)


cases = given(regions(), st.integers(0, 10**6), st.sampled_from([0.005, 0.05, 0.2, 1.0]))


@settings(deadline=None, max_examples=60)
@cases
def test_log_sum_exps_equal_those_of_the_whole_matrix(case: tuple[int, Region], seed: int, temperature: float) -> None:
    count, region = case
    inputs = (unit(count, seed), unit(count, seed + 1), torch.tensor([1 / temperature]).double())
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    ours = log_sum_exp(*inputs[:2], scale=inputs[2], region=region, gaps=True)
    expected = plain_log_sum_exp(*inputs, region)
    for one, other in zip([*ours, *gradients(ours, inputs)], [*expected, *gradients(expected, inputs)], strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@cases
def test_rows_alone_without_themselves(case: tuple[int, Region], seed: int, temperature: float) -> None:
    count, region = case
    region = Region(mine=region.mine, chunk=region.chunk, groups=region.groups, above=region.above, exclude_self=True)
    inputs = (unit(count, seed).requires_grad_(), torch.tensor([1 / temperature]).double().requires_grad_())
    x, scale = inputs
    ours = log_sum_exp(x, x, scale=scale, region=region, both=False)[0][:1]
    expected = plain_log_sum_exp(x, x, scale, region)[0][:1]
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-9)
    if not expected.isfinite().all():
        assert all(grad.isfinite().all() for grad in gradients((ours,), inputs)), "no candidate, no NaN"
        return
    for one, other in zip(gradients((ours,), inputs), gradients((expected,), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@cases
def test_sigmoid_sums_equal_those_of_the_whole_matrix(case: tuple[int, Region], seed: int, temperature: float) -> None:
    count, region = case
    values = (unit(count, seed), unit(count, seed + 1), torch.tensor([1 / temperature]), torch.tensor([-3.0]))
    inputs = tuple(tensor.double().requires_grad_() for tensor in values)
    x, y, scale, bias = inputs
    ours = sigmoid_sum(x, y, scale=scale, bias=bias, region=region)
    expected = plain_sigmoid_sum(x, y, scale, bias, region)
    # torch's softplus is linear from 20 on, where it is off by 2e-9
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-8)
    for one, other in zip(gradients((ours,), inputs), gradients((expected,), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-9)


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 1, 0, 2, 1, 3, 2])])
@pytest.mark.parametrize("mine", [slice(0, 7), slice(2, 5)])
def test_gradients_by_differences(mine: slice, groups: Tensor | None) -> None:
    region = Region(mine=mine, chunk=2, groups=groups)
    x, y = unit(7, 0).requires_grad_(), unit(7, 1).requires_grad_()
    scale = torch.tensor([3.0]).double().requires_grad_()
    bias = torch.tensor([-1.0]).double().requires_grad_()
    assert gradcheck(lambda x, y, s: log_sum_exp(x, y, scale=s, region=region, gaps=True), (x, y, scale))
    assert gradcheck(lambda x, y, s, b: sigmoid_sum(x, y, scale=s, bias=b, region=region), (x, y, scale, bias))


def opposites() -> tuple[Tensor, Tensor]:
    """One column is far from every row: beside the largest logit of a row, its own are nothing."""
    x = F.normalize(torch.ones(6, 4) + 0.1 * unit(6, 0).float(), dim=1)
    y = x.clone()
    y[-1] = -0.5
    return x, y


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.002])
def test_a_small_temperature_does_not_underflow(temperature: float) -> None:
    x, y = opposites()
    scale, region = torch.tensor([1 / temperature]), Region(mine=slice(0, 6), chunk=2)
    expected = plain_log_sum_exp(x.double(), y.double(), scale.double(), region)[0]
    ours = log_sum_exp(x, y, scale=scale, region=region)[0]
    torch.testing.assert_close(ours, expected.float(), atol=1e-3, rtol=1e-5)
    # the wrong variant: the largest possible logit in place of a running maximum
    shifted = (scale * (x @ y.T) - scale).exp().sum(0).log() + scale
    assert torch.allclose(shifted, expected[1].float(), atol=1e-3) == (temperature > 0.02)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("mine", [slice(0, 256), slice(64, 128)])
def test_no_tensor_is_larger_than_a_chunk(mine: slice, chunk: int) -> None:
    groups = torch.arange(256) // 2
    region = Region(mine=mine, chunk=chunk, groups=groups, above=0.9)
    x, y = unit(256, 0).requires_grad_(), unit(256, 1).requires_grad_()
    scale, bias = torch.ones(1).double().requires_grad_(), torch.ones(1).double().requires_grad_()
    with Largest() as largest:
        lse, positive, gap = log_sum_exp(x, y, scale=scale, region=region, gaps=True)
        total = lse.sum() + positive.sum() + gap.sum()
        (total + sigmoid_sum(x, y, scale=scale, bias=bias, region=region).sum()).backward()
    assert largest.elements <= max(chunk * 256, x.numel())
    with Largest() as full:
        plain = scale * (x @ y.T)
        plain.logsumexp(1).sum().backward()
    assert full.elements == 256 * 256, "what the matrix itself would show"
