"""A short training loop for heads on fixed features."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.heads.base import HEADS, Head


def build(kind: str, width: int, targets: int = 1, **options: object) -> Head:
    """Return a new head, the same whenever it is called."""
    torch.manual_seed(0)
    names = tuple(f"t{i}" for i in range(targets))
    return HEADS.get(kind)(HEADS.options({"kind": kind, **options}), width, names)


def wide(x: Tensor) -> Tensor:
    """Return features (N, 2 F + 8) from which the LayerNorm of a head takes nothing away: as wide as embeddings are."""
    constant = torch.full((len(x), 4), 3.0)
    return torch.cat([x, -x, constant, -constant], dim=1)


def train(head: Head, x: Tensor, y: Tensor, *, steps: int, lr: float = 1e-2, batch: int = 64, fit: bool = True) -> Head:
    """Train a head on features (N, F) and targets (N, T), with the rate falling to zero; return it for evaluation."""
    torch.manual_seed(0)
    if fit:
        head.fit(y, x)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    for _ in range(steps):
        chosen = torch.randperm(len(x))[:batch]
        optimizer.zero_grad()
        head.loss(head(x[chosen]), y[chosen]).backward()
        optimizer.step()
        schedule.step()
    return head.eval()
