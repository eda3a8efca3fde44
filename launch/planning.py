"""``--dry-run`` of pretraining: the plan of a run, worked out on this host and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.config import Recipe
    from pretrain.plan import Plan


def plan_run(recipe: Recipe, *, world: int, settings: Mapping[str, Any]) -> Plan:
    """Open the data, build the model on the CPU and work out the run.

    Parameters
    ----------
    recipe : Recipe
        What is to be trained.
    world : int
        Number of ranks.
    settings : mapping
        DeepSpeed's keys that win over the recipe's.
    """
    from pretrain.data import open_data
    from pretrain.fitting import fit
    from pretrain.model import MultimodalModel
    from pretrain.parts import check_modalities
    from pretrain.plan import make_plan
    from shards.locate import locate

    names = list(recipe.modalities)
    dataset = open_data(recipe.data, names, locate)
    check_modalities(recipe, dataset.modalities)
    dataset = dataset.select(names)
    model = MultimodalModel(recipe, dataset.modalities, fit(recipe, dataset))
    return make_plan(recipe, dataset, model, world=world, settings={**recipe.deepspeed, **settings})


def print_plan(plan: Plan) -> None:
    """Show a plan."""
    from launch.tables import console, table
    from pretrain.meters import GIB

    rows = f"{plan.rank_rows} rows a rank"
    if plan.micro_batch < plan.rank_rows:
        rows += f", {plan.micro_batch} encoded at a time"
    if plan.accumulate > 1:
        rows += f", {plan.accumulate} batches an optimizer step"
    console.print(f"{plan.world} ranks, batch {plan.batch_size}: {rows}", highlight=False)
    console.print(
        f"{plan.samples:,} training samples, {plan.epochs} epochs of {plan.epoch_steps:,} steps: "
        f"{plan.total_steps:,} steps, {plan.warmup_steps:,} of them warm-up",
        highlight=False,
    )
    coverage = [{"modality": name, "present %": 100 * share} for name, share in plan.coverage.items()]
    console.print(table("coverage of the training samples", coverage))
    pairs = [{"pair": pair, "samples with both": count} for pair, count in plan.pairs.items()]
    if pairs:
        console.print(table("pairs", pairs))
    parts = [{"part": name, "parameters": count} for name, count in plan.parameters.items()]
    console.print(table(f"parameters: {plan.trained:,} learn", parts))
    memory = [{"memory of a rank": name, "GiB": size / GIB} for name, size in plan.as_table()["memory"].items()]
    console.print(table("memory, estimated", memory))
    console.print(f"a checkpoint takes about {plan.checkpoint / GIB:.3f} GiB", highlight=False)
    for note in plan.notes:
        console.print(note, highlight=False)
