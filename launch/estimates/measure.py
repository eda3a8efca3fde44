"""The child of `launch.calibrate`: real steps of a recipe on one rank, measured.

python -m launch.estimates.measure FOLDER
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pretrain.build import Parts
    from pretrain.config import Recipe
    from pretrain.plan import Plan
    from shards.batch import Batch
    from shards.mixture import Mixture
    from shards.reader import Dataset

# optimizer steps before those that count: buffers are made, pages touched, kernels chosen
WARM_UP = 2
# the loss is compared at this many times the rank's own columns
WIDER = 8
# distance of the quartiles of a normal distribution, in standard deviations
QUARTILES_OF_ONE_SIGMA = 1.349


def main(folder: Path) -> None:
    """Do what ``task.json`` in a folder says, and write ``measured.json`` there, or ``failed.json``."""
    from launch.calibrate import FAILED, FOUND, TASK, end_with_the_parent
    from shards.errors import MatloomError

    began = time.perf_counter()
    end_with_the_parent(folder)
    task = json.loads((folder / TASK).read_text())
    try:
        found = measure(task["recipe"], task["settings"], task["world"], task["steps"], folder, began)
    except MatloomError as error:
        kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "shards.errors")
        said = {"kind": next(kinds), "what": error.what, "where": str(error.where) if error.where else None}
        (folder / FAILED).write_text(json.dumps({**said, "why": error.why, "do": error.do}))
        sys.exit(error.exit_code)
    (folder / FOUND).write_text(json.dumps(found))


def measure(
    tables: Mapping[str, Any], settings: Mapping[str, Any], world: int, steps: int, folder: Path, began: float
) -> dict[str, Any]:
    """Train ``steps`` optimizer steps as rank 0 of ``world`` would, alone, and return the fields of a `Work`."""
    import torch

    from pretrain.automatic import settings_for
    from pretrain.build import build
    from pretrain.config import parse_recipe
    from pretrain.engine import start_process_group
    from pretrain.fitting import fit
    from pretrain.model import MultimodalModel
    from pretrain.plan import make_plan
    from pretrain.setup import noise_scales, open_on_all_ranks

    recipe = parse_recipe(tables, where="the calibration")
    _, _, device = start_process_group()
    dataset = open_on_all_ranks(recipe)
    fitted = fit(recipe, dataset)
    model = MultimodalModel(recipe, dataset.modalities, fitted)
    plan = make_plan(recipe, dataset, model, world=world, settings=settings)
    keys, _ = settings_for(
        recipe, settings, world=world, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps, device=device
    )
    # what they say of the batch is meant for all ranks, and settled by now
    recipe = recipe.model_copy(update={"deepspeed": {}})
    scales = noise_scales(recipe, dataset, {})
    parts = build(
        recipe, dataset, fitted, scales, settings=keys, resumed=False, device=device, report=lambda line: None
    )
    started = time.perf_counter() - began
    seen, batch, busy = _steps(recipe, parts, device, world, steps)
    found = {
        **_of_plan(recipe, plan, keys, on_cpu=device.type == "cpu"),
        **seen,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "steps": steps,
        "embeddings": len(parts.model.names),
        "sample": _sample_bytes(dataset),
        "validation": len(parts.validation.positions),
        "busy": busy if device.type == "cpu" else 0.0,
        "start": started,
    }
    found |= _of_embeddings(parts, batch, device)
    return {**found, "save": _save_seconds(parts, fitted, folder)}


def _of_plan(recipe: Recipe, plan: Plan, keys: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
    """Return what is known without a step."""
    from pretrain.memory import buffers_of
    from pretrain.settings import zero_stage

    stage, zero, buffers = zero_stage(keys), keys.get("zero_optimization", {}), buffers_of(keys)
    # the engine's default at stage 3 alone; gloo exchanges nothing while the CPU computes
    overlaps = zero.get("overlap_comm", stage == 3) and stage and not on_cpu
    epochs, every = recipe.optim.epochs, recipe.evaluation.every_epochs
    return {
        "name": recipe.name,
        "rows": plan.rank_rows,
        "pieces": -(-plan.rank_rows // plan.micro_batch),
        "accumulate": recipe.optim.accumulate,
        "dim": recipe.projection.dim,
        "trained": plan.trained,
        "weights": plan.weights,
        "activations": plan.memory.activations,
        "average": recipe.optim.ema is not None,
        "stage": stage,
        "bucket": buffers.bucket if overlaps else 0,
        "buffers": buffers.model_dump(),
        "samples": plan.samples,
        "total_steps": plan.total_steps,
        "epochs": epochs,
        "evaluations": -(-epochs // every),
        "checkpoint_every": recipe.checkpoint.every_steps,
    }


def _steps(
    recipe: Recipe, parts: Parts, device: torch.device, world: int, steps: int
) -> tuple[dict[str, Any], Batch, float]:
    """Make the steps; returns what they took, a batch, and the cores that were busy."""
    from torch.utils.flop_counter import FlopCounterMode

    from pretrain.feed import Feed
    from shards.stream import BatchStream

    every = recipe.optim.accumulate
    whole = parts.training
    stream = BatchStream(
        whole.dataset, whole.positions, batch_size=whole.batch_size, seed=recipe.seed, rank=0, world=world,
        order=recipe.data.training_order(), budget=recipe.data.budget, augmenter=whole.augmenter, views=whole.views,
        workers=whole.workers,
    )  # fmt: skip
    feed = Feed(stream, lambda: False, lambda: None)
    counter = FlopCounterMode(display=False)
    taken: list[dict[str, float]] = []
    wall = cpu = 0.0
    for step, (batch, waited) in enumerate(feed.batches(0, (WARM_UP + steps) * every)):
        assert batch is not None
        if step == 0:
            with counter:
                _step(parts, batch, step, waited, device)
            continue
        if step == WARM_UP * every:
            wall, cpu = time.perf_counter(), time.process_time()
        taken.append(_step(parts, batch, step, waited, device))
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    taken = taken[WARM_UP * every - 1 :]
    # the optimizer's step belongs to all of its batches
    groups = [taken[first : first + every] for first in range(0, len(taken), every)]
    means = [{name: statistics.fmean(one[name] for one in group) for name in group[0]} for group in groups]
    spent = {name: statistics.median(mean[name] for mean in means) for name in means[0]}
    total = [sum(mean.values()) for mean in means]
    # so that the parts add up to the median step, not to a sum of medians
    spent["rest"] = max(0.0, spent["rest"] + statistics.median(total) - sum(spent.values()))
    assert batch is not None
    return {"spent": spent, "spread": _spread(total), "operations": counter.get_total_flops()}, batch, busy


def _step(parts: Parts, batch: Batch, step: int, waited: float, device: torch.device) -> dict[str, float]:
    """Make one step of `pretrain.train.Trainer` and return its seconds by part."""
    from pretrain.spans import Spans

    began = time.perf_counter()
    with Spans() as spans:
        parts.engine.compute(batch, step)
        parts.engine.apply()
        if parts.average and not parts.engine.pending:
            with parts.engine.whole():
                parts.average.update(parts.model)
        _wait(device)
    seconds = spans.seconds
    forward = sum(value for name, value in seconds.items() if name.startswith(("encode/", "fuse/")))
    found = {"data": waited, "forward": forward, **{name: seconds[name] for name in ("backward", "loss", "optimizer")}}
    whole = time.perf_counter() - began
    return {**found, "rest": max(0.0, whole - sum(found.values()) + waited)}


def _spread(seconds: Sequence[float]) -> float:
    """Return the standard deviation that the quartiles say: a step that something else held up counts little."""
    if len(seconds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4)
    return (high - low) / QUARTILES_OF_ONE_SIGMA


def _of_embeddings(parts: Parts, batch: Batch, device: torch.device) -> dict[str, float]:
    """Return the seconds of the loss for one more column, and those of evaluating a sample."""
    import torch

    batch = batch.to(device)
    with parts.engine.whole(), torch.no_grad():
        z, present = parts.model(batch)
        parts.model.eval()
        evaluate = _least_seconds(lambda: parts.model.encode(batch), device, 3)
        parts.model.train()
    rows = max(1, len(batch.ids))

    def compare(world: int) -> Callable[[], None]:
        from pretrain.objectives.base import GlobalBatch

        everybody = {name: value.detach().repeat(world, 1).requires_grad_() for name, value in z.items()}
        gathered = GlobalBatch(
            z=everybody, present={name: mask.repeat(world) for name, mask in present.items()},
            local=slice(0, rows), world=world, groups=torch.arange(world * rows, device=device),
        )  # fmt: skip

        def run() -> None:
            loss, _ = parts.model.objective(gathered)
            torch.autograd.grad(loss, list(everybody.values()), allow_unused=True)

        return run

    few, many = (_least_seconds(compare(world), device, 9) for world in (1, WIDER))
    return {"loss_per_column": max(0.0, many - few) / ((WIDER - 1) * rows), "evaluate": evaluate / rows}


def _least_seconds(run: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the shortest of several runs after a first: what takes milliseconds is at the mercy of others."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        run()
        _wait(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])


def _save_seconds(parts: Parts, fitted: Any, folder: Path) -> float:
    from pretrain.checkpoint import Checkpoints

    began = time.perf_counter()
    extra = parts.average.state_dict() if parts.average else None
    Checkpoints(folder / "checkpoints", keep=1).save(parts.engine, 1, {}, fitted, extra=extra)
    return time.perf_counter() - began


def _sample_bytes(dataset: Dataset | Mixture) -> float:
    """Return the mean bytes of a sample's members that a run reads; of a mix, over all samples of its data sets."""
    members = [member.dataset for member in getattr(dataset, "members", ())] or [dataset]
    names = ["meta", *(name for name, spec in dataset.modalities.items() if spec.fields)]
    whole = sum(int(part.sizes(name).clip(min=0).sum()) for part in members for name in names)
    return whole / sum(len(part) for part in members)


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
