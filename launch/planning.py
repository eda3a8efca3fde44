"""``--dry-run`` of pretraining: the plan of a run, worked out on this host and shown."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.estimates.run import RunTime
    from launch.estimates.work import Work
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
    return make_plan(recipe, dataset, model, world=world, settings=settings)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would be.

    Attributes
    ----------
    commands : dict of str to list of str
        What is started: on each host, and as each rank.
    environment : dict of str to str
        Of the ranks, as it may be shown.
    plan : Plan
        Batches, steps, parameters, memory.
    disk : Disk
        Of the checkpoints.
    work : Work, optional
        What some steps took, where they were made.
    time : RunTime, optional
        What the run would take.
    """

    commands: Mapping[str, Sequence[str]]
    environment: Mapping[str, str]
    plan: Plan
    disk: Disk
    work: Work | None = None
    time: RunTime | None = None

    def as_table(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            **self.plan.as_table(),
            "command": list(self.commands["each rank"]),
            "commands": {name: list(words) for name, words in self.commands.items()},
            "environment": dict(self.environment),
            "disk": vars(self.disk),
            "calibration": self.work.model_dump() if self.work else None,
            "time": self.time.as_table() if self.time else None,
        }


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run's folder will hold.

    Attributes
    ----------
    checkpoint, kept, export : int
        Of one checkpoint; how many lie there at most: the newest, the best, and one that is being written; of the
        exported model.
    needed, free : int
        Bytes in all, and those that are free there.
    folder : str
        The nearest folder that exists.
    """

    checkpoint: int
    kept: int
    export: int
    needed: int
    free: int
    folder: str


def dry_run(
    recipe: Recipe,
    *,
    hosts: Mapping[str, int],
    commands: Mapping[str, Sequence[str]],
    out: Path,
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
    calibrate: int,
) -> DryRun:
    """Work out a run, and make some of its steps where the time is asked for.

    Parameters
    ----------
    recipe, settings
        As of `plan_run`.
    hosts : mapping of str to int
        Ranks by host.
    commands : mapping of str to sequence of str
        What is started; ``each rank`` is the command of a rank.
    out : Path
        Folder of the run.
    environment : mapping of str to str
        Of the ranks, with its secrets.
    calibrate : int
        Optimizer steps to make; 0: no time is estimated.
    """
    from launch.hosts.redaction import Redactor, redacted

    hide = Redactor({**os.environ, **environment})
    world, most = sum(hosts.values()), max(hosts.values())
    plan = plan_run(recipe, world=world, settings=settings)
    work = time = None
    if calibrate:
        work, time = timed(recipe, settings, world=world, most=most, hosts=len(hosts), steps=calibrate)
    return DryRun(
        commands={name: [hide(word) for word in words] for name, words in commands.items()},
        environment=redacted(environment),
        plan=plan,
        disk=disk_of(recipe, plan, out),
        work=work,
        time=time,
    )


def timed(
    recipe: Recipe, settings: Mapping[str, Any], *, world: int, most: int, hosts: int, steps: int
) -> tuple[Work, RunTime]:
    """Make ``steps`` optimizer steps as one of ``most`` ranks of a host, and estimate the run of ``world`` ranks."""
    from launch.calibrate import calibrate, measure_link
    from launch.estimates.run import run_time, this_host

    work = calibrate(recipe, settings, world=world, here=most, steps=steps)
    link = measure_link() if most > 1 else None
    cores = (os.cpu_count() or 1) if work.busy else 0
    return work, run_time(work, this_host(work, link, ranks=most, hosts=hosts), world, cores=cores)


def disk_of(recipe: Recipe, plan: Plan, out: Path) -> Disk:
    """Return what the folder of a run will hold, and what is free there."""
    folder = next(path for path in [out, *out.absolute().parents] if path.exists())
    kept = recipe.checkpoint.keep + recipe.checkpoint.keep_best + 1
    # the weights in float32 once more: best/
    export = 4 * sum(plan.parameters.values())
    return Disk(
        checkpoint=plan.checkpoint,
        kept=kept,
        export=export,
        needed=kept * plan.checkpoint + export,
        free=shutil.disk_usage(folder).free,
        folder=str(folder),
    )


def show_dry_run(found: DryRun, *, as_json: bool) -> None:
    """Print it."""
    import typer

    if as_json:
        typer.echo(json.dumps(found.as_table(), indent=1))
        return
    for name, words in found.commands.items():
        typer.echo(f"{name}: {shlex.join(words)}")
    for name, value in found.environment.items():
        typer.echo(f"  {name}={shlex.quote(value)}")
    print_plan(found.plan)
    print_disk(found.disk)
    if found.work and found.time:
        print_time(found.work, found.time, found.plan)


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
    held = plan.as_table()["memory"]
    host = held.pop("host")
    if host:
        held["of the host, beside that"] = host
    memory = [{"memory of a rank": name, "GiB": size / GIB} for name, size in held.items()]
    console.print(table("memory, estimated", memory))
    console.print(f"a checkpoint takes about {plan.checkpoint / GIB:.3f} GiB", highlight=False)
    for note in plan.notes:
        console.print(note, highlight=False)


def print_disk(disk: Disk) -> None:
    """Show what the folder will hold."""
    from launch.tables import console
    from pretrain.meters import GIB

    console.print(
        f"checkpoints: at most {disk.kept} of {disk.checkpoint / GIB:.3f} GiB, an export of {disk.export / GIB:.3f}: "
        f"{disk.needed / GIB:.3f} GiB, {disk.free / GIB:.1f} free at {disk.folder}",
        highlight=False,
    )
    if disk.needed > disk.free:
        console.print("[bold red]the disk is too small[/bold red]")


def print_time(work: Work, time: RunTime, plan: Plan) -> None:
    """Show what some steps took, and what the run would."""
    from launch.tables import console, table

    step = work.spent.total
    rows = [
        {"part": name, "ms": 1e3 * value, "%": 100 * value / step} for name, value in work.spent.model_dump().items()
    ]
    console.print(table(f"a step of one rank alone on {work.device}, median of {work.steps} optimizer steps", rows))
    console.print(
        f"{1e3 * step:.1f} ms, one standard deviation {1e3 * work.spread:.1f} ms; "
        f"on {plan.world} ranks {1e3 * time.step:.1f} ms: {plan.batch_size / time.step:.1f} samples/s",
        highlight=False,
    )
    console.print(
        f"time: about {span(time.total)} (steps {span(time.steps)} +- {span(time.total_error)}, "
        f"evaluations {span(time.evaluations)}, checkpoints {span(time.checkpoints)}, start {span(time.start)})",
        highlight=False,
    )


def span(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
