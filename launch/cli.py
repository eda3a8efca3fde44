"""The command line. Every command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.evaluate_cli import evaluate
from launch.export_cli import export
from launch.guard import guarded
from launch.launch_cli import launch_app
from launch.leaderboard_cli import leaderboard_app
from launch.options import Config, DryRun, Json, Out, Set
from launch.registry_cli import registry_app
from launch.run_cli import ResumeCommand, pretrain
from launch.search_cli import discover, search
from launch.shards_cli import shards_app
from launch.use_cli import embed, predict

app = typer.Typer(
    name="matloom",
    help="Pretrain multimodal foundation models of materials, and put them to use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Show and explain recipes.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(registry_app, name="registry")
app.add_typer(config_app, name="config")
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(launch_app, name="launch")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    accelerators: Annotated[int, typer.Option(min=0, help="Ranks; 0 = all GPUs, or up to 2 on a CPU.")] = 0,
) -> None:
    """Run everything once on the embedded data: shards, pretraining, registry, fine-tuning, use."""
    from launch.demo import run_demo

    run_demo(out, accelerators=accelerators)


app.command(cls=ResumeCommand)(pretrain)


@app.command()
def sync(out: Annotated[Path, typer.Argument(help="Folder of a run that has ended.")]) -> None:
    """Deliver to MLflow what a run kept while the server was away."""
    from pretrain.tracking import FOLDER
    from pretrain.tracking import sync as deliver
    from shards.errors import ConfigError

    if not any(out.glob(f"{FOLDER}*")):
        raise ConfigError("this folder holds no journal of a run", where=out, do="matloom sync runs/NAME")
    done = deliver(out, report=typer.echo)
    typer.echo("everything is delivered" if done else "MLflow has not got everything yet")
    raise typer.Exit(0 if done else 5)


@app.command()
def finetune(config: Config, set_: Set = [], out: Out = None, dry_run: DryRun = False) -> None:  # noqa: B006
    """Fine-tune a registered model, and compare it with scratch, probe and trivial predictors."""
    from finetune.config import load_finetune_recipe
    from launch.start import finetune_command, run

    load_finetune_recipe(config, set_)
    options = ["--config", str(config), *[part for item in set_ for part in ("--set", item)]]
    options += ["--out", str(out)] if out else []
    command = finetune_command(options)
    if dry_run:
        typer.echo(" ".join(command))
        return
    raise typer.Exit(run(command))


for command in (predict, embed, export, search, discover, evaluate):
    app.command()(command)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, accelerator, compiler, memory, disk, registry."""
    from launch.doctor import examine
    from launch.findings import as_json as plain
    from launch.findings import as_lines, failures

    findings = examine()
    typer.echo(json.dumps(plain(findings), indent=1) if as_json else "\n".join(as_lines(findings)))
    raise typer.Exit(2 if failures(findings) else 0)


@config_app.command("show")
def config_show(config: Config, set_: Set = []) -> None:  # noqa: B006
    """Print a recipe with every default written out."""
    from pretrain.config import load_recipe

    typer.echo(json.dumps(load_recipe(config, set_).resolved(), indent=1))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of recipes, and the options of every plug-in that they may name."""
    from finetune.adapt.base import ADAPTATIONS
    from finetune.config import FinetuneRecipe
    from finetune.estimators.base import ESTIMATORS
    from finetune.evaluations.base import EVALUATIONS
    from finetune.heads.base import HEADS
    from pretrain.config import Recipe
    from pretrain.encoders.base import ENCODERS
    from pretrain.fusion.base import FUSIONS
    from pretrain.objectives.base import OBJECTIVES
    from pretrain.objectives.pair_losses import PAIR_LOSSES
    from shards.build_recipe import BuildRecipe
    from shards.features import FEATURES
    from shards.orders import ORDERS
    from shards.sources import SOURCES

    tables = {
        "build recipe": BuildRecipe.model_json_schema(),
        "sources": {kind: SOURCES.get(kind).model_json_schema() for kind in SOURCES.kinds()},
        "feature steps": {step: FEATURES.get(step).model_json_schema() for step in FEATURES.kinds()},
        "recipe": Recipe.model_json_schema(),
        "orders": {kind: ORDERS.get(kind).model_json_schema() for kind in ORDERS.kinds()},
        "encoders": {kind: ENCODERS.get(kind).Config.model_json_schema() for kind in ENCODERS.kinds()},
        "fusions": {kind: FUSIONS.get(kind).Config.model_json_schema() for kind in FUSIONS.kinds()},
        "pair losses": {kind: PAIR_LOSSES.get(kind).Config.model_json_schema() for kind in PAIR_LOSSES.kinds()},
        "objectives": {kind: OBJECTIVES.get(kind).Config.model_json_schema() for kind in OBJECTIVES.kinds()},
        "finetuning recipe": FinetuneRecipe.model_json_schema(),
        "heads": {kind: HEADS.get(kind).Config.model_json_schema() for kind in HEADS.kinds()},
        "adaptations": {kind: ADAPTATIONS.get(kind).model_json_schema() for kind in ADAPTATIONS.kinds()},
        "estimators": {kind: ESTIMATORS.get(kind).model_json_schema() for kind in ESTIMATORS.kinds()},
        "evaluations": {kind: EVALUATIONS.get(kind).model_json_schema() for kind in EVALUATIONS.kinds()},
    }
    typer.echo(json.dumps(tables, indent=1))


def main() -> None:
    """Run the command line; ``--debug`` anywhere shows the traceback of an error."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.exit(guarded(app, debug=debug))


if __name__ == "__main__":
    main()
