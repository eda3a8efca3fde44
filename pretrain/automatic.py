"""DeepSpeed's settings as users bring them from Hugging Face: "auto", and keys whose value the recipe says already.

``transformers`` fills "auto" from its training arguments, and refuses values that contradict them; here the recipe is
what both come from. What DeepSpeed alone is concerned with gets its own default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pretrain.config import OptimConfig, Recipe
from pretrain.deepspeed_keys import SETTABLE
from pretrain.optimizer import autocast_type
from pretrain.precision import SMALLEST, LossScale
from pretrain.settings import OWNED, check_names, check_settings
from shards.errors import ConfigError

AUTO = "auto"
# torch.optim.AdamW's
EPSILON = 1e-8
Table = Mapping[str, Any]
# no number of a recipe comes near
FAR = 1e300
# what no recipe says otherwise
FIXED: Table = {
    "data_types": {"grad_accum_dtype": "fp32"},
    "checkpoint": {
        "tag_validation": "Warn",
        "load_universal": False,
        "use_node_local_storage": False,
        "parallel_write": {"pipeline_stage": False},
    },
    # instead of optim.checkpoint_activations, which DeepSpeed's own does not equal
    "activation_checkpointing": {
        "partition_activations": False,
        "number_checkpoints": None,
        "contiguous_memory_optimization": False,
        "synchronize_checkpoint_boundary": False,
        "profile": False,
        "cpu_checkpointing": False,
    },
}


def recipe_settings(
    optim: OptimConfig, *, batch_size: int, world: int, warmup_steps: int, total_steps: int, precision: str
) -> dict[str, Any]:
    """Return what the recipe says, in DeepSpeed's words.

    Parameters
    ----------
    optim : OptimConfig
        Optimizer, schedule, clipping, accumulation.
    batch_size : int
        Of all ranks together.
    world, warmup_steps, total_steps : int
        Ranks, and length of warm-up and run.
    precision : str
        ``fp32``, ``bf16`` or ``fp16``.
    """
    adam = {"lr": optim.lr, "betas": list(optim.betas), "eps": EPSILON, "weight_decay": optim.weight_decay}
    # of WarmupCosineLR, and what transformers calls the ends of the warm-up
    cosine = {
        "total_num_steps": total_steps,
        "warmup_num_steps": warmup_steps,
        "cos_min_ratio": optim.min_lr / optim.lr,
    }
    warmup = {"warmup_type": "linear", "warmup_min_ratio": 0.0, "warmup_min_lr": 0.0, "warmup_max_lr": optim.lr}
    return {
        "train_batch_size": batch_size * optim.accumulate,
        "train_micro_batch_size_per_gpu": max(1, batch_size // world),
        "gradient_accumulation_steps": optim.accumulate,
        "gradient_clipping": optim.grad_clip,
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True, "adam_w_mode": True}},
        "scheduler": {"type": "WarmupCosineLR", "params": {**cosine, **warmup}},
        **_precision(precision),
        **FIXED,
    }


def _precision(precision: str) -> dict[str, Any]:
    low = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    scale = LossScale()
    return {
        "fp16": {
            "enabled": precision == "fp16",
            "auto_cast": False,
            "loss_scale": 0,
            "initial_scale_power": int(math.log2(scale.value)),
            "loss_scale_window": scale.window,
            "hysteresis": 1,
            "consecutive_hysteresis": False,
            "min_loss_scale": SMALLEST,
            "fp16_master_weights_and_grads": False,
        },
        "bf16": {
            "enabled": precision == "bf16",
            "immediate_grad_update": False,
            "check_grad_overflow": True,
            "bf16_master_weights_and_grads": False,
            "bf16_optimizer_states": False,
        },
        "torch_autocast": {"enabled": low is not None, "dtype": low, "lower_precision_safe_modules": None},
        "amp": {"enabled": False, "opt_level": None},
    }


def settings_for(
    recipe: Recipe, settings: Table, *, world: int, warmup_steps: int, total_steps: int, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a run for the engine, and a line on every "auto" in them; see `resolved`."""
    lowest = autocast_type(recipe.optim, device)
    says = recipe_settings(
        recipe.optim,
        batch_size=recipe.data.batch_size,
        world=world,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        precision={None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[lowest],
    )
    return resolved(recipe.deepspeed, settings, says)


def resolved(deepspeed: Table, settings: Table, says: Table) -> tuple[dict[str, Any], list[str]]:
    """Return the settings for the engine, and a line on every "auto", or raise `ConfigError`.

    Parameters
    ----------
    deepspeed : mapping
        The recipe's own.
    settings : mapping
        Those of ``--deepspeed_config``, which win.
    says : mapping
        From `recipe_settings`.

    Returns
    -------
    settings : dict
        Without "auto", and without what is the recipe's.
    lines : list of str
        ``train_batch_size: auto -> 64``.
    """
    given = {**deepspeed, **settings}
    known = {**SETTABLE, **says}
    check_names(given, known)
    lines: list[str] = []
    kept = {}
    for name, value in given.items():
        if name in OWNED:
            lines += _agreed(name, value, says[name])
        else:
            kept[name] = _filled(name, value, deepspeed.get(name), SETTABLE[name], lines)
    check_settings(kept)
    return kept, lines


def _agreed(path: str, value: Any, own: Any) -> Iterator[str]:
    """Yield a line on every "auto"; refuse what differs from the recipe."""
    if value is None:
        # as if it were not there
        return
    if value == AUTO:
        yield f"{path}: {AUTO} -> {_shown(own)}"
    elif isinstance(own, dict):
        if "enabled" in own and not own["enabled"] and value.get("enabled", False) in (False, AUTO):
            # what is off does nothing, however it is set
            value = {name: v for name, v in value.items() if name == "enabled" or v == AUTO}
        for name, inner in value.items():
            yield from _agreed(f"{path}.{name}", inner, own[name])
    elif not _equal(value, own):
        raise ConfigError(
            f"DeepSpeed's {path} is {_shown(value)}, but {_shown(own)} by the recipe",
            why="batch size, optimizer, schedule, clipping, precision and checkpoints are the recipe's",
            do=f'leave it out or say "auto", or change the recipe ({_place(path)})',
        )


def _filled(path: str, value: Any, recipe: Any, default: Any, lines: list[str]) -> Any:
    """Return a value with every "auto" in it replaced by the recipe's, or else DeepSpeed's default."""
    if value == AUTO:
        found = recipe if recipe is not None and recipe != AUTO else default
        lines.append(f"{path}: {AUTO} -> {_shown(found)}")
        return found
    if isinstance(value, Mapping) and isinstance(default, dict):
        below = recipe if isinstance(recipe, Mapping) else {}
        return {name: _filled(f"{path}.{name}", v, below.get(name), default[name], lines) for name, v in value.items()}
    return value


def _equal(value: Any, own: Any) -> bool:
    if isinstance(value, bool) or isinstance(own, bool) or value is None or own is None:
        return value is own
    if isinstance(value, str) and isinstance(own, str):
        return value.lower() == own.lower()
    if isinstance(value, (list, tuple)) and isinstance(own, (list, tuple)):
        return len(value) == len(own) and all(map(_equal, value, own))
    if not (isinstance(value, (int, float)) and isinstance(own, (int, float))):
        return False
    # an integer may be larger than any float
    return value == own or (abs(value) < FAR and math.isclose(value, own, rel_tol=1e-9))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _place(path: str) -> str:
    """Say where in a recipe a key of DeepSpeed's is decided."""
    places = {
        "train_batch_size": "data.batch_size, optim.accumulate",
        "train_micro_batch_size_per_gpu": "data.batch_size, which is that of all ranks",
        "gradient_accumulation_steps": "optim.accumulate",
        "gradient_clipping": "optim.grad_clip",
        "checkpoint": "[checkpoint]",
        "activation_checkpointing": "optim.checkpoint_activations",
        "fp16": "optim.precision",
        "bf16": "optim.precision",
        "amp": "optim.precision",
        "torch_autocast": "optim.precision",
    }
    return places.get(path.partition(".")[0], "[optim]")
