"""Accelerate's view of ranks and devices, with DeepSpeed behind it or without."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, KwargsHandler

from finetune.config import FinetuneRecipe
from shards.errors import ConfigError


def start_accelerator(recipe: FinetuneRecipe) -> Accelerator:
    """Return accelerate's view of ranks and devices; under its DeepSpeed plug-in, with what that must know."""
    # staged unfreezing leaves parameters out at first: their gradients must not be waited for
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    has_gpu = torch.cuda.is_available()
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if not has_gpu and deepspeed:
        # accelerate's own start would have DeepSpeed compile an extension, which takes minutes
        from pretrain.engine import start_process_group

        start_process_group()
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # without `cpu`, accelerate takes the ranks of a CPU launch for strangers; with it, it leaves DeepSpeed out
    accelerator = Accelerator(cpu=not has_gpu and not deepspeed, kwargs_handlers=handlers)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        if recipe.optim.accumulate > 1:
            raise ConfigError(
                "batches are not accumulated under DeepSpeed here",
                where="optim.accumulate",
                do="raise optim.batch_size",
            )
        micro = max(1, recipe.optim.batch_size // accelerator.num_processes)
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": micro,
            "train_batch_size": micro * accelerator.num_processes,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": recipe.optim.grad_clip,
        }
    return accelerator
