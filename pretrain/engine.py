"""DeepSpeed: starting the ranks' process group, one optimizer step, and the engine's own checkpoints.

The only module that imports deepspeed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from pretrain.accumulate import contrast
from pretrain.config import OptimConfig
from pretrain.gather import mean_over_ranks
from pretrain.model import MultimodalModel
from pretrain.optimizer import learning_rate, parameter_groups
from pretrain.ports import free_port
from pretrain.spans import span
from shards.batch import Batch
from shards.errors import CheckpointError, ConfigError

TAG = "engine"
OWNED = {
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "data_types",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
}


def start_process_group() -> tuple[int, int, torch.device]:
    """Join the process group of the launcher, or make one of a single rank.

    Returns
    -------
    rank, world : int
        This rank and the number of ranks.
    device : torch.device
        This rank's device.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # the launcher leaves every rank all cores, and they would trample on each other
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"])))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    if not dist.is_initialized():
        if not cuda:
            # else the first start compiles shared-memory collectives for one to three minutes, and a build that
            # was killed leaves a lock on which later runs hang; gloo does without
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return dist.get_rank(), dist.get_world_size(), device


class Engine:
    """A model under DeepSpeed.

    Parameters
    ----------
    model : MultimodalModel
        ``model(batch) -> (z, present)``, this rank's embeddings; ``model.objective`` compares those of all ranks.
    optim : OptimConfig
        Optimizer, clipping and schedule.
    batch_size : int
        Global batch size.
    warmup_steps, total_steps : int
        Length of the warm-up and of the run, for the schedule.
    seed : int
        Random numbers of step s on rank r are a function of (seed, s, r), so that a resumed run
        draws what the first one would have drawn.
    settings : mapping
        DeepSpeed keys of the recipe or of ``--deepspeed_config``; they win over what is set here.
    """

    def __init__(
        self,
        model: MultimodalModel,
        optim: OptimConfig,
        *,
        batch_size: int,
        warmup_steps: int,
        total_steps: int,
        seed: int,
        settings: Mapping[str, Any],
    ) -> None:
        _refuse_own_keys(settings)
        self.optim, self.seed = optim, seed
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        config = {
            "train_micro_batch_size_per_gpu": max(1, batch_size // self.world),
            "gradient_accumulation_steps": 1,
            # DeepSpeed clips at 1.0 where this key is missing
            "gradient_clipping": optim.grad_clip,
            "steps_per_print": 10**9,
            **settings,
        }
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optim.weight_decay), lr=optim.lr, betas=optim.betas, weight_decay=0.0
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.device = self.engine.device

    @property
    def module(self) -> MultimodalModel:
        """The model itself."""
        return self.engine.module

    def compute(self, batch: Batch, step: int, flags: Mapping[str, float] | None = None) -> dict[str, float]:
        """Run one global batch, of which ``batch`` is this rank's part, forward and backward.

        The gradient is ready afterwards: `apply` makes the optimizer's step with it, `discard` throws it away.

        Parameters
        ----------
        batch : Batch
            This rank's part.
        step : int
            From 0; says the learning rate and the random numbers.
        flags : mapping of str to float, optional
            Values of this rank to average over the ranks together with the loss, so that all ranks decide alike.

        Returns
        -------
        dict of str to float
            Means over the ranks: ``loss``, what the objective logs, the flags; and ``lr``.
        """
        lr = learning_rate(self.optim, step, warmup=self.warmup_steps, total=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(hash((self.seed, step, self.rank)) % 2**63)
        loss, logs = contrast(self.engine, self.module.objective, self.engine.backward, batch.to(self.device))
        mine = {name: torch.tensor(value, device=self.device) for name, value in (flags or {}).items()}
        return {**mean_over_ranks({"loss": loss, **logs, **mine}), "lr": lr}

    def apply(self) -> None:
        """Make the optimizer's step."""
        with span("optimizer"):
            self.engine.step()

    def save(self, folder: Path) -> None:
        """Write this rank's part of the engine's state; every rank calls it."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        dist.barrier()

    def load(self, folder: Path) -> None:
        """Load what `save` wrote at the same number of ranks, or raise `CheckpointError`."""
        try:
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        except (AssertionError, RuntimeError, KeyError) as error:
            raise CheckpointError("the engine's checkpoint cannot be loaded", where=folder, why=str(error)) from None
        if path is None:
            raise CheckpointError("the engine's checkpoint is missing", where=folder)


def _refuse_own_keys(settings: Mapping[str, Any]) -> None:
    owned = OWNED & set(settings)
    if owned:
        raise ConfigError(
            f"DeepSpeed's {sorted(owned)} cannot be set here",
            why="batch size, optimizer, schedule, clipping and precision are the recipe's [data] and [optim]",
            do="set them there",
        )
    if settings.get("zero_optimization", {}).get("stage", 0) == 3:
        raise ConfigError(
            "ZeRO stage 3 is not supported",
            why="it partitions the parameters, which validation and export read whole",
            do="zero_optimization = { stage = 2 }",
        )
