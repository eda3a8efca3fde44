"""The optimizer of a run: parameter groups, the schedule of the learning rate, accumulated batches, the precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from pretrain.config import ModalityConfig, OptimConfig
from pretrain.encoders.base import Encoder

Scales = dict[nn.Parameter, float]


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


def accumulation(config: OptimConfig, step: int, *, total: int) -> tuple[float, bool]:
    """Return the share of a step's gradient in the optimizer's step, and whether that comes right after it.

    Steps (from 0) are taken together in runs of ``accumulate``; the last run of all may be shorter.
    """
    first = step - step % config.accumulate
    last = min(first + config.accumulate, max(total, step + 1)) - 1
    return 1 / (last - first + 1), step == last


def autocast_type(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """Return the type that the encoders run in, or None for float32."""
    if config.precision == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]


def encoder_scales(encoders: nn.ModuleDict, modalities: Mapping[str, ModalityConfig]) -> Scales:
    """Return the factors of the learning rate of the encoders' parameters, where they are not 1."""
    scales: Scales = {}
    for name, encoder in encoders.items():
        config = modalities[name]
        scales |= dict.fromkeys(encoder.parameters(), config.lr_scale)
        for below, stage in enumerate(reversed(cast(Encoder, encoder).stages())):
            scales |= dict.fromkeys(stage, config.lr_scale * config.layer_decay**below)
    return {parameter: scale for parameter, scale in scales.items() if scale != 1}


def parameter_groups(
    model: nn.Module, weight_decay: float, scales: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, Any]]:
    """Return AdamW's groups: matrices decay, vectors and scalars (biases, norms, temperature) do not.

    Parameters
    ----------
    model : Module
        What is trained; parameters that need no gradient are left out.
    weight_decay : float
        Of the matrices.
    scales : mapping of Parameter to float, optional
        Factors of the learning rate, 1 where there is none; each group carries its own as ``lr_scale``.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (scales or {}).get(parameter, 1.0), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": group, "weight_decay": weight_decay if matrices else 0.0, "lr_scale": scale}
        for (scale, matrices), group in groups.items()
    ]
