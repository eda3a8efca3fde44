from __future__ import annotations

import torch
from torch import nn

from finetune.freeze import freeze


def network() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    return trunk, nn.Sequential(trunk, nn.Linear(4, 1))


def step(whole: nn.Module) -> None:
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.1, weight_decay=0.1)
    whole.train()
    whole(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()


def test_frozen_means_bitwise_frozen_batch_statistics_included() -> None:
    trunk, whole = network()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    freeze(trunk)
    step(whole)
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())
    x = torch.randn(8, 3)
    assert torch.equal(trunk(x), trunk(x)), "dropout is off"


def test_without_freezing_weights_and_statistics_move() -> None:
    trunk, whole = network()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    step(whole)
    assert not any(
        torch.equal(before[n], v) for n, v in trunk.state_dict().items() if "running" in n or "0.weight" in n
    )


def test_gradients_still_flow_through_to_the_input() -> None:
    trunk, whole = network()
    freeze(trunk)
    x = torch.randn(8, 3, requires_grad=True)
    whole(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
