"""The model with fusions: every kind and a tree, under objectives that read a fusion in one view and in two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.encoders.layers import Block
from pretrain.fusion.base import FUSIONS
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from pretrain.objectives.ntxent import nt_xent
from shards.batch import Batch, rows_of
from shards.errors import ConfigError
from tests.fused_models import KINDS, NAMES, SPECS, TREE, batch, fusions, model, samples

COMM = {"kind": "comm"}
ANCHORED = {"kind": "anchored", "anchor": "joint"}
every_kind = pytest.mark.parametrize("kind", [*KINDS, "tree"])


def loss_of(net: MultimodalModel, part: Batch) -> torch.Tensor:
    return net.objective(gather_batch(*net(part)))[0]


def test_every_kind_is_here() -> None:
    assert set(KINDS) == set(FUSIONS.kinds())


@every_kind
@pytest.mark.parametrize("objective", [COMM, ANCHORED], ids=lambda table: table["kind"])
def test_a_model_learns_through_every_fusion(kind: str, objective: dict[str, Any]) -> None:
    net, part = model(objective, fusions(kind)), batch(samples(10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_of(net, part)
        loss.backward()
        losses.append(float(loss))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name


@every_kind
def test_absent_modalities_and_empty_batches_reach_every_parameter(kind: str) -> None:
    """Otherwise ZeRO would hang, or mix up gradients, where ranks hold different modalities."""
    net = model(COMM, fusions(kind))
    lacking = [replace(sample, arrays={n: v for n, v in sample.arrays.items() if n != "b"}) for sample in samples(5)]
    for part in (batch(lacking), batch([replace(sample, arrays={}) for sample in samples(3)]), batch([])):
        net.zero_grad()
        z, present = net(part)
        assert all(value.shape == (len(part.ids), 5) for value in z.values())
        sum(value.square().sum() for value in z.values()).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert not present["joint:b"].any()


@every_kind
def test_a_row_does_not_depend_on_the_batch(kind: str) -> None:
    net, whole = model(COMM, fusions(kind)).eval(), batch(samples(7))
    z, present = net(whole)
    for row in range(7):
        alone, there = net(rows_of(whole, SPECS, row, row + 1))
        for name in z:
            torch.testing.assert_close(alone[name][0], z[name][row], atol=1e-6, rtol=1e-5)
            assert there[name][0] == present[name][row]


@every_kind
def test_a_modality_through_its_fusion_is_embedded_as_in_training(kind: str) -> None:
    net, part = model(COMM, fusions(kind)).eval(), batch(samples(8))
    z, present = net(part)
    for name in NAMES:
        torch.testing.assert_close(
            net.embed(name, part.inputs[name]), z[f"joint:{name}"][present[f"joint:{name}"]], atol=1e-6, rtol=1e-5
        )


@every_kind
def test_where_one_modality_is_there_the_fusion_is_that_of_it_alone(kind: str) -> None:
    net, part = model(COMM, fusions(kind)).eval(), batch(samples(12, share=0.4))
    z, present = net(part)
    count = sum(present[f"joint:{name}"].int() for name in NAMES)
    assert (count == 1).sum() >= 3
    for name in NAMES:
        only = present[f"joint:{name}"] & (count == 1)
        torch.testing.assert_close(z["joint"][only], z[f"joint:{name}"][only])
    both = count > 1
    for name in NAMES:
        assert ((z["joint"] - z[f"joint:{name}"])[both & present[f"joint:{name}"]].norm(dim=1) > 1e-4).all()


def test_a_tree_runs_each_fusion_once_for_what_it_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    net, part = model(ANCHORED, TREE), batch(samples(6))
    calls = []
    for name, fusion in net.fusions.items():
        fusion.register_forward_hook(lambda *args, name=name: calls.append(name))
    net(part)
    assert calls == ["spectra", "joint"]


def test_half_precision() -> None:
    for kind in [*KINDS, "tree"]:
        part = batch(samples(8))
        full = loss_of(model(COMM, fusions(kind)).eval(), part)
        half = loss_of(model(COMM, fusions(kind), autocast=torch.bfloat16).eval(), part)
        assert half.dtype == torch.float32
        assert float(half) == pytest.approx(float(full), abs=0.15), kind


# CoMM


@every_kind
def test_a_modality_that_is_masked_out_has_no_gradient(kind: str) -> None:
    net, part = model(COMM, fusions(kind)), batch(samples(8))
    z, _ = net(part)
    net.zero_grad()
    (z["joint:a"] * torch.randn(5)).sum().backward(retain_graph=True)
    read = {n for n in NAMES for p in net.encoders[n].parameters() if p.grad is not None and p.grad.any()}
    assert read == {"a"}
    net.zero_grad()
    (z["joint"] * torch.randn(5)).sum().backward()
    assert all(any(p.grad.any() for p in net.encoders[n].parameters()) for n in NAMES)


def test_a_mask_that_is_lost_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap of the published code: the mask does not reach the transformer's attention."""

    def adapters_of_b() -> bool:
        net, part = model(COMM, fusions("token_transformer")), batch(samples(8))
        (net(part)[0]["joint:a"] * torch.randn(5)).sum().backward()
        return any(bool(p.grad.any()) for p in net.fusions["joint"].adapters.maps["b"].parameters())

    assert not adapters_of_b()
    original = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, mask=None: original(self, x))
    assert adapters_of_b()


def test_one_modality_without_augmentation_gives_the_loss_of_an_embedding_with_itself() -> None:
    net = model(COMM, {"joint": {"kind": "token_transformer", "dim": 8, "heads": 2}}, ("a",)).eval()
    first = replace(batch(samples(9), ("a",)), twin=None)
    part = replace(first, twin=first)
    z, present = net(part)
    itself = nt_xent(z["joint"], z["joint"], present["joint"], scale=torch.tensor([10.0]), local=slice(0, 9))
    assert float(loss_of(net, part)) == pytest.approx(float(itself), rel=1e-5)


def test_the_views_can_be_exchanged() -> None:
    net, part = model(COMM, fusions("token_transformer")).eval(), batch(samples(9))
    exchanged = replace(part.twin, twin=replace(part, twin=None))
    assert float(loss_of(net, exchanged)) == pytest.approx(float(loss_of(net, part)), rel=1e-5)


# Recipes


def test_cross_attention_between_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not depend on the query"):
        model(
            COMM, {"v": {"kind": "concat", "inputs": ["a"]}, "joint": {"kind": "cross_attention", "inputs": ["v", "c"]}}
        )


def test_an_input_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no modality and no fusion above it"):
        model(COMM, {"joint": {"kind": "concat", "inputs": ["a", "b", "d"]}})
