"""Attention by rows is attention, exactly where numbers are exact and closely in bfloat16, and holds no weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pretrain.encoders import attention
from pretrain.encoders.attention import RowAttention, attend
from pretrain.encoders.layers import Block


def qkv(dtype=torch.float64, length=7):
    torch.manual_seed(0)
    return [torch.randn(3, 2, length, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


def formula(q, k, v, scale=0.5):
    return torch.softmax(q @ k.mT * scale, dim=-1) @ v


def test_values_and_gradients_are_the_formulas():
    q, k, v = qkv()
    torch.testing.assert_close(RowAttention.apply(q, k, v), formula(q, k, v))
    assert torch.autograd.gradcheck(RowAttention.apply, (q, k, v))
    assert not torch.allclose(RowAttention.apply(q, k, v), formula(q, k, v, scale=1.0))


def test_no_weights_are_kept_for_the_way_back():
    kept = []
    q, k, v = qkv(length=50)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        RowAttention.apply(q, k, v)
        by_rows = max(kept)
        kept.clear()
        formula(q, k, v)
    assert by_rows == q.numel() < max(kept) == 3 * 2 * 50 * 50


@pytest.mark.parametrize("known", [True, False])
def test_a_block_under_autocast_is_near_the_one_in_float32(known, monkeypatch):
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: known)
    torch.manual_seed(0)
    block, x = Block(32, heads=2, head_dim=16, mlp_dim=32, dropout=0.0), torch.randn(2, 300, 32)
    exact = block(x)
    gradient = torch.autograd.grad(exact.square().sum(), block.qkv.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(x)
    assert (rounded - exact).norm() / exact.norm() < 0.02
    other = torch.autograd.grad(rounded.float().square().sum(), block.qkv.weight)[0]
    assert F.cosine_similarity(gradient.flatten(), other.flatten(), dim=0) > 0.99


def test_masks_short_rows_and_float32_stay_with_torch(monkeypatch):
    monkeypatch.setattr(attention, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(RowAttention, "apply", lambda *_: pytest.fail("by rows"))
    for q, k, v in (qkv(torch.float32, 300), qkv(torch.bfloat16, 20)):
        attend(q, k, v)
    q, k, v = qkv(torch.bfloat16, 300)
    attend(q, k, v, torch.ones(3, 1, 1, 300, dtype=torch.bool))
