"""The optimizer of a run: parameter groups, the schedule of the learning rate, the precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, *, warmup: int, total: int) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then half a cosine to ``min_lr``.

    Parameters
    ----------
    config : OptimConfig
        Peak and final rate.
    step, warmup, total : int
        The step, the number of steps of the warm-up, and of the run.
    """
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def autocast_type(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """Return the type that the encoders run in, or None for float32."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if config.precision == "bf16" or (config.precision == "auto" and has_bf16) else None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices decay, vectors and scalars (biases, norms, temperature) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
