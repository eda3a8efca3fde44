"""A small engine whose three encoders have EQUAL sizes, and batches in which ranks lack different modalities.

With unequal sizes a rank that skips an encoder crashes ZeRO; with equal ones ZeRO silently mixes up their gradients,
and this is what must be caught. Heavy imports are lazy: ranks import this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pretrain.engine import Engine
    from shards.batch import Batch

BATCH, STEPS = 12, 3
NAMES = "abc"


def recipe(objective: str = "anchored", **optim: Any) -> dict[str, Any]:
    encoder = {"kind": "vector", "hidden": 8, "dim": 6}
    table = {"kind": objective, "temperature": {"init": 0.3}}
    return {
        "name": "equality",
        "data": {"path": "none", "batch_size": BATCH},
        "modalities": {name: {"encoder": encoder} for name in NAMES},
        "projection": {"dim": 5},
        "objective": {**table, "anchor": "a"} if objective == "anchored" else table,
        "optim": {"lr": 1e-2, "epochs": 1, "warmup_epochs": 0, "grad_clip": 0.0, "precision": "fp32", **optim},
    }


def samples(steps: int = STEPS) -> list[list[Any]]:
    """Global batches; in each one another modality is absent from one whole half."""
    from shards.schema import Sample

    rng = np.random.default_rng(0)
    batches = []
    for step in range(steps):
        absent, half = (("b", 0), ("c", 1), ("a", 0))[step % 3]
        batch = []
        for row in range(BATCH):
            names = [name for name in NAMES if rng.random() < 0.75]
            names = [name for name in names if not (name == absent and (row < BATCH // 2) == (half == 0))]
            arrays = {name: {"values": rng.normal(size=6).astype(np.float32)} for name in names}
            batch.append(Sample(id=str(row), arrays=arrays))
        batches.append(batch)
    return batches


def specs() -> dict[str, Any]:
    from tests.synthetic import ToyVector

    return {name: ToyVector(step=name).spec(name) for name in NAMES}


def parts(steps: int = STEPS) -> list[Batch]:
    """This rank's part of every batch."""
    import torch.distributed as dist

    from shards.batch import collate
    from shards.order import rank_slice

    mine = rank_slice(BATCH, dist.get_rank(), dist.get_world_size())
    return [collate(batch[mine], specs()) for batch in samples(steps)]


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """DeepSpeed settings; at stage 3 no parameter is small enough to stay whole."""
    third = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage, **third, **more}}


def engine(
    settings: dict[str, Any],
    objective: str = "anchored",
    *,
    steps: int = STEPS,
    frozen: float | None = None,
    **optim: Any,
) -> Engine:
    """Return a new engine; with ``frozen`` encoder c is, and that was added to its weights and its buffers."""
    import torch

    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from pretrain.model import MultimodalModel
    from pretrain.optimizer import autocast_type

    _, _, device = start_process_group()
    config = parse_recipe(recipe(objective, **optim), where="toy")
    fitted = {name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in NAMES}
    torch.manual_seed(0)
    model = MultimodalModel(config, specs(), fitted, autocast_type(config.optim, device))
    if frozen is not None:
        model.encoders["c"].requires_grad_(False)
        for value in model.encoders["c"].state_dict().values():
            value += frozen
    return Engine(
        model, config.optim, batch_size=BATCH, warmup_steps=0, total_steps=steps, seed=0, settings=settings
    )  # fmt: skip


def whole(engine: Engine) -> dict[str, np.ndarray]:
    """Every parameter, whole, on every rank."""
    with engine.whole():
        return {name: value.detach().float().numpy().copy() for name, value in engine.module.named_parameters()}
