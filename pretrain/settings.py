"""Which DeepSpeed keys a user may set, and which are the recipe's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from shards.errors import ConfigError, suggest

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
# DeepSpeed takes any other key too and does nothing about it
KNOWN = {
    "aio",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "comet",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "timers",
    "wall_clock_breakdown",
    "wandb",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
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
    for name in sorted(set(settings) - KNOWN):
        raise ConfigError(f"'{name}' is no DeepSpeed key that can be set here", do=suggest(name, KNOWN))
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


@contextmanager
def refused() -> Iterator[None]:
    """Turn DeepSpeed's complaints about the keys of a table of its settings into a `ConfigError`."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(f"DeepSpeed does not take '{name}'", where=error.title, why=wrong["msg"]) from None


def _device(settings: Mapping[str, Any], name: str) -> str:
    return (settings.get("zero_optimization", {}).get(name) or {}).get("device", "none")
