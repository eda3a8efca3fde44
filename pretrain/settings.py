"""Which DeepSpeed keys a user may set, and which are the recipe's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.errors import ConfigError

OWNED = {
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "amp",
    "torch_autocast",
    "data_types",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "checkpoint",
}
STAGES = (0, 1, 2, 3)


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of DeepSpeed's settings."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def offloads(settings: Mapping[str, Any]) -> bool:
    """Say whether the optimizer works on the CPU, away from the accelerator."""
    return _device(settings, "offload_optimizer") == "cpu"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what is the recipe's, and what the engine cannot do, or raise `ConfigError`."""
    owned = OWNED & set(settings)
    if owned:
        raise ConfigError(
            f"DeepSpeed's {sorted(owned)} cannot be set here",
            why="batch size, optimizer, schedule, clipping, precision and checkpoints are the recipe's",
            do="set them in [data], [optim] and [checkpoint]",
        )
    stage = zero_stage(settings)
    if stage not in STAGES:
        raise ConfigError(f"there is no ZeRO stage {stage!r}", do=f"zero_optimization.stage = one of {STAGES}")
    for name, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        device = _device(settings, name)
        if device not in ("none", "cpu"):
            raise ConfigError(f"zero_optimization.{name} cannot go to '{device}'", do='device = "cpu"')
        if device == "cpu" and stage not in stages:
            raise ConfigError(
                f"zero_optimization.{name} does nothing at ZeRO stage {stage}",
                do=f"zero_optimization.stage = one of {stages}, or leave it out",
            )


def _device(settings: Mapping[str, Any], name: str) -> str:
    return (settings.get("zero_optimization", {}).get(name) or {}).get("device", "none")
