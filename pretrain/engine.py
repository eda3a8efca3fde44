"""DeepSpeed: starting the ranks' process group, one optimizer step, and the engine's own checkpoints.

The only module that imports deepspeed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import safetensors.torch
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn

from pretrain.accumulate import contrast
from pretrain.agreement import together
from pretrain.config import OptimConfig
from pretrain.export import contiguous
from pretrain.gather import mean_over_ranks
from pretrain.gradients import GradientNorms
from pretrain.meeting import meeting
from pretrain.model import MultimodalModel
from pretrain.optimizer import accumulation, learning_rate, parameter_groups
from pretrain.ports import free_port
from pretrain.precision import LossScale
from pretrain.settings import check_settings, offloads, refused, with_fitting_bucket, zero_stage
from pretrain.spans import span
from pretrain.universal import TAG, Origin, universal
from shards.batch import Batch
from shards.errors import CheckpointError
from shards.sealed import flush

REST, SCALE = "rest.safetensors", "scale.json"


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
        with meeting():
            backend = "nccl" if cuda else "gloo"
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return dist.get_rank(), dist.get_world_size(), device


class Engine:
    """A model under DeepSpeed.

    Parameters
    ----------
    model : MultimodalModel
        ``model(batch) -> (z, present)``, this rank's embeddings; ``model.objective`` compares those of all ranks.
    optim : OptimConfig
        Optimizer, clipping, schedule, precision, accumulation.
    batch_size : int
        Global batch size.
    warmup_steps, total_steps : int
        Length of the warm-up and of the run, for the schedule.
    seed : int
        Random numbers of step s on rank r are a function of (seed, s, r), so that a resumed run
        draws what the first one would have drawn.
    settings : mapping
        DeepSpeed keys of the recipe or of ``--deepspeed_config``; they win over what is set here.
    scales : mapping of Parameter to float, optional
        Factors of the learning rate (`pretrain.optimizer.encoder_scales`).

    Attributes
    ----------
    pending : int
        Batches whose gradient waits for the optimizer's step, after `apply`: 0 except within ``optim.accumulate``
        batches. They are lost where a run ends, and must be computed again.
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
        scales: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        check_settings(settings)
        self.optim, self.seed = optim, seed
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        config = {
            "train_micro_batch_size_per_gpu": max(1, batch_size // self.world),
            "gradient_accumulation_steps": 1,
            # DeepSpeed clips at 1.0 where this key is missing
            "gradient_clipping": optim.grad_clip,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            **with_fitting_bucket(settings, sum(p.numel() for p in model.parameters() if p.requires_grad)),
        }
        on_cpu = offloads(settings) and torch.cuda.is_available()
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam if on_cpu else torch.optim.AdamW
        groups = parameter_groups(model, optim.weight_decay, scales)
        with refused():
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=model,
                optimizer=optimizer(groups, lr=optim.lr, betas=optim.betas, weight_decay=0.0),
                config=config,
            )
        self.device = self.engine.device
        self.stage, self.offloads = zero_stage(settings), offloads(settings)
        self.files = self.engine.checkpoint_engine = DurableFiles(self.engine._config)
        # an executable in every checkpoint, whose copy could fail on the first rank alone
        self.engine._copy_recovery_script = lambda path: None
        self.norms = GradientNorms(self.module, self.stage, self.rank, self.world)
        self.scale = LossScale() if optim.precision == "fp16" else None
        self.pending, self._boundary, self._overflow = 0, True, False
        self._squares: Tensor | None = None

    @property
    def module(self) -> MultimodalModel:
        """The model itself; at ZeRO stage 3 its parameters are spread over the ranks, see `whole`."""
        return self.engine.module

    def compute(self, batch: Batch, step: int, flags: Mapping[str, float] | None = None) -> dict[str, float]:
        """Run one global batch, of which ``batch`` is this rank's part, forward and backward.

        The gradient is ready afterwards: `apply` makes the optimizer's step with it, `discard` throws it away.

        Parameters
        ----------
        batch : Batch
            This rank's part.
        step : int
            From 0; says the learning rate and the random numbers, and whether the optimizer's step comes next.
        flags : mapping of str to float, optional
            Values of this rank to average over the ranks together with the loss, so that all ranks decide alike.

        Returns
        -------
        dict of str to float
            The same on all ranks. Means over the ranks: ``loss``, what the objective logs, the flags. ``finite``: 1
            where the loss of every rank and the gradient are finite, else 0. ``grad_norm``: of the global gradient
            before clipping, where the optimizer's step comes next. ``lr``. In fp16 also ``loss_scale`` and
            ``overflow``: 1 where the gradient is too large for the scale, which `apply` deals with; that is finite.
        """
        share, self._boundary = accumulation(self.optim, step, total=self.total_steps)
        lr = learning_rate(self.optim, step, warmup=self.warmup_steps, total=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        torch.manual_seed(hash((self.seed, step, self.rank)) % 2**63)
        loss, logs = contrast(
            self.engine,
            self.module.objective,
            lambda value: self._backward(value * share),
            batch.to(self.device),
            specs=self.module.specs,
            micro_batch=self.optim.micro_batch,
            set_boundary=self.engine.set_gradient_accumulation_boundary,
            boundary=self._boundary,
        )
        self.pending += 1
        mine = {name: torch.tensor(value, device=self.device) for name, value in (flags or {}).items()}
        values = {**mean_over_ranks({"loss": loss, **logs, **mine, **self._measured()}), "lr": lr}
        return self._judged(values)

    def apply(self) -> None:
        """Make the optimizer's step, if this batch was the last one before it."""
        if not self._boundary:
            return
        with span("optimizer"):
            if self._overflow:
                self.discard()
            else:
                self._unscale()
                self.engine.step()
        if self.scale:
            self.scale.update(overflow=self._overflow)
        self._overflow, self.pending = False, 0

    def discard(self) -> None:
        """Throw the gradient away, and that of all batches since the optimizer's last step, as if never computed."""
        self.engine.zero_grad()
        if self.stage:
            self._forget(self.engine.optimizer)
        self.pending = 0

    def gradient_norms(self) -> dict[str, float]:
        """Return the norm of the global gradient of every part of the model; between `compute` and `apply`.

        A part is a modality with its projection, a fusion, or the objective. Every rank calls it. Empty where the
        optimizer's step does not come next.
        """
        if self._squares is None:
            return {}
        squares = self._squares.clone()
        dist.all_reduce(squares)
        norms = squares.sqrt() / (self.scale.value if self.scale else 1.0)
        return {f"grad_norm/{part}": norm for part, norm in zip(self.norms.parts, norms.tolist(), strict=True)}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Make the parameters whole on every rank for a block that reads them; only ZeRO stage 3 has anything to do."""
        parameters = list(self.module.parameters()) if self.stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters, enabled=bool(parameters)):
            yield

    def weights(self) -> dict[str, Tensor]:
        """Return the model's whole state on the first rank, on the CPU, and nothing on the others; all call it."""
        return self._on_first_rank(self.module.state_dict(keep_vars=True))

    def save(self, folder: Path) -> None:
        """Write this rank's part of the engine's state to disk; every rank calls it, between the optimizer's steps.

        Raises
        ------
        CheckpointError
            On all ranks, where one cannot write its part.
        """
        self.files.error = None
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        rest = self._on_first_rank(self._untrained())
        with together("the engine's state cannot be written", where=folder):
            if self.files.error:
                raise self.files.error
            if self.rank == 0:
                Origin(world=self.world, stage=self.stage).write(folder)
                (folder / SCALE).write_text(json.dumps(asdict(self.scale) if self.scale else {}))
                safetensors.torch.save_file(rest, folder / REST)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote, also at another number of ranks; raise `CheckpointError` where it does not fit.

        It has been verified: DeepSpeed's files are pickles, which execute what they say.
        """
        origin, here = Origin.read(folder), Origin(world=self.world, stage=self.stage)
        self.discard()
        hyperparameters = [{**group, "params": None} for group in self.optimizer.param_groups]
        if origin.fits(here, folder):
            self._load(folder, universal=False)
        else:
            with universal(folder, ds_to_universal.main) as copy:
                self._load(copy, universal=True)
        self._put_right(hyperparameters)
        self._load_rest(safetensors.torch.load_file(folder / REST))
        state = json.loads((folder / SCALE).read_text())
        if self.scale and state:
            self.scale = LossScale(**state)

    def _load(self, folder: Path, *, universal: bool) -> None:
        # a key of its configuration, read by `load_checkpoint` alone
        self.engine._config.load_universal_checkpoint = universal
        try:
            path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
        except (AssertionError, RuntimeError, KeyError, ValueError, OSError) as error:
            raise CheckpointError("the engine's checkpoint cannot be loaded", where=folder, why=str(error)) from None
        if path is None:
            raise CheckpointError("the engine's checkpoint is missing", where=folder)

    def _put_right(self, hyperparameters: list[dict[str, Any]]) -> None:
        """Mend what DeepSpeed mixes up when it loads the universal format at stage 3; the recipe's values hold."""
        for group, own in zip(self.optimizer.param_groups, hyperparameters, strict=True):
            # it gives every group those of the first
            group.update({name: value for name, value in own.items() if name != "params"})
        for state in self.optimizer.state.values():
            # it gives all groups one and the same tensor, which each would count up
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"]).clone()
        if self.stage:
            self.engine.optimizer.clip_grad = self.optim.grad_clip

    def _load_rest(self, rest: Mapping[str, Tensor]) -> None:
        for name, tensor in self._untrained().items():
            partitioned = hasattr(tensor, "ds_id")
            with torch.no_grad(), deepspeed.zero.GatheredParameters([tensor], modifier_rank=0, enabled=partitioned):
                if self.rank == 0 or not partitioned:
                    tensor.copy_(rest[name])

    def _untrained(self) -> dict[str, Tensor]:
        """Return what the optimizer does not hold: buffers and frozen parameters."""
        trained = {id(parameter) for parameter in self.module.parameters() if parameter.requires_grad}
        state = self.module.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if id(tensor) not in trained}

    def _on_first_rank(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of whole tensors on the first rank; a parameter at a time, since all may not fit a device."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                if self.rank == 0:
                    found |= contiguous({name: tensor})
        return found

    def _backward(self, loss: Tensor) -> None:
        if self.scale and self.stage:
            self.engine.optimizer.override_loss_scale(self.scale.value)
        elif self.scale:
            loss = loss * self.scale.value
        self.engine.backward(loss)

    def _unscale(self) -> None:
        """Divide the gradient by the loss's scale, where DeepSpeed does not: at stage 0."""
        if self.scale and not self.stage:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.scale.value)

    def _measured(self) -> dict[str, Tensor]:
        """Return this rank's share of the squared norm of the gradient, where that is complete."""
        self._squares = self.norms.squares() if self._boundary else None
        return {} if self._squares is None else {"squares": self._squares.sum()}

    def _judged(self, values: dict[str, float]) -> dict[str, float]:
        """Say whether loss and gradient are finite: what is not on one rank spoils the mean over the ranks."""
        squares = values.pop("squares", None)
        loss, gradient = math.isfinite(values["loss"]), squares is None or math.isfinite(squares)
        if self.scale:
            self._overflow = loss and not gradient and not self.scale.exhausted
            values |= {"loss_scale": self.scale.value, "overflow": float(self._overflow)}
        if squares is not None and gradient:
            values["grad_norm"] = math.sqrt(squares * self.world) / (self.scale.value if self.scale else 1.0)
        return {**values, "finite": float(loss and (gradient or self._overflow))}

    def _forget(self, optimizer: Any) -> None:
        """Empty ZeRO's buffers, as it does itself after an overflow."""
        optimizer.zero_grad(set_to_none=True)
        if self.stage == 3:
            optimizer.averaged_gradients = {}
        else:
            # in place: the parameters hold on to these
            for held in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                held.update(dict.fromkeys(held))
            optimizer.micro_step_id = -1
        if self.offloads:
            optimizer.reset_cpu_buffers()
            optimizer._offload_accumulated_param_ids = set()


class DurableFiles(TorchCheckpointEngine):
    """Writes DeepSpeed's files through to the disk; keeps an error, which raised here would let other ranks wait."""

    error: Exception | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        with self._kept():
            super().makedirs(path, exist_ok=exist_ok)

    def save(self, state_dict: Mapping[str, Any], path: str) -> None:
        """Write one file."""
        with self._kept():
            super().save(state_dict, path)
            flush(Path(path))

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
