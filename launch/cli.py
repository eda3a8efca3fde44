"""The command line. Every command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from launch.guard import guarded
from launch.shards_cli import shards_app

app = typer.Typer(
    name="matloom",
    help="Pretrain multimodal foundation models of materials, and put them to use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Show and explain recipes.", no_args_is_help=True)
app.add_typer(shards_app, name="shards")
app.add_typer(config_app, name="config")


class ResumeCommand(TyperCommand):
    """A command whose ``--resume`` may stand alone, or before ``auto``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out what a lone ``--resume`` means."""
        words = [
            "--resume=always" if word == "--resume" and following != "auto" else word
            for word, following in zip(args, [*args[1:], ""], strict=True)
        ]
        return super().parse_args(ctx, words)


Config = Annotated[Path, typer.Argument(help="Recipe, TOML.")]
Set = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/NAME).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print the command.")]
Uri = Annotated[str, typer.Argument(help="models:/name@alias, models:/name/version, or a folder.")]
Structures = Annotated[list[Path], typer.Argument(help="CIF, POSCAR or JSON files.")]
Data = Annotated[str, typer.Option(help="Folder of shards, or embedded:NAME.")]
DATA = "embedded:dft_crystals"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    accelerators: Annotated[int, typer.Option(min=0, help="Ranks; 0 = all GPUs, or up to 2 on a CPU.")] = 0,
) -> None:
    """Run everything once on the embedded data: shards, pretraining, registry, fine-tuning, use."""
    from launch.demo import run_demo

    run_demo(out, accelerators=accelerators)


@app.command(cls=ResumeCommand)
def pretrain(
    config: Config,
    set_: Set = [],  # noqa: B006  typer copies it
    out: Out = None,
    resume: Annotated[
        Literal["always", "auto"] | None,
        typer.Option(
            metavar="[auto]",
            help="Continue from the newest good checkpoint; auto: start where there has never been one.",
        ),
    ] = None,
    deepspeed_config: Annotated[
        Path | None,
        typer.Option(
            "--deepspeed-config", "--deepspeed_config", exists=True, help="DeepSpeed JSON that wins over the recipe."
        ),
    ] = None,
    accelerators: Annotated[int, typer.Option(min=0, help="Ranks on this host; 0 = all GPUs, or 1 on a CPU.")] = 0,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print command, steps, coverage, parameters and memory; train nothing."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Pretrain on this host through DeepSpeed's launcher, and see that no process outlives the run."""
    from launch.start import deepspeed_command, environment, ranks_here
    from launch.supervise import Supervisor
    from pretrain.config import load_recipe

    recipe = load_recipe(config, set_)
    options = ["--config", str(config), *[part for item in set_ for part in ("--set", item)]]
    options += ["--out", str(out)] if out else []
    options += ["--resume", resume] if resume else []
    options += ["--deepspeed_config", str(deepspeed_config)] if deepspeed_config else []
    world = accelerators or ranks_here(most_on_cpu=1)
    command = deepspeed_command(options, world)
    if dry_run:
        from launch.planning import plan_run, print_plan
        from shards.recipes import read_tables

        settings = read_tables(deepspeed_config) if deepspeed_config else {}
        plan = plan_run(recipe, world=world, settings=settings)
        if as_json:
            typer.echo(json.dumps({"command": command, **plan.as_table()}, indent=1))
        else:
            typer.echo(" ".join(command))
            print_plan(plan)
        return
    raise typer.Exit(Supervisor(command, environment(), out or Path("runs") / recipe.name).run())


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


@app.command()
def predict(
    uri: Uri,
    structures: Structures,
    as_json: Json = False,
) -> None:
    """Predict a property of crystal structures."""
    from finetune.loading import PropertyModel, load
    from finetune.units import describe
    from shards.errors import ConfigError

    model = load(uri)
    if not isinstance(model, PropertyModel):
        raise ConfigError(
            f"'{uri}' is a pretrained model without a head", do="matloom finetune, then predict with its result"
        )
    name, unit = describe(model.info.target)
    rows = [{"file": str(path), "property": name, "value": model.predict(path), "unit": unit} for path in structures]
    _show(rows, as_json, lambda row: f"{row['file']}: {row['property']} = {row['value']:.4f} {row['unit']}".rstrip())


@app.command()
def embed(
    uri: Uri,
    structures: Structures,
    out: Annotated[Path, typer.Option(help="Result, .npy with one row a file.")] = Path("embeddings.npy"),
) -> None:
    """Write the unit embedding vectors of crystal structures."""
    import numpy as np

    from finetune.loading import load_foundation
    from shards.errors import ConfigError

    vectors = load_foundation(uri).embed(list(structures))
    try:
        with out.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError("the result cannot be written", where=out, why=error.strerror) from None
    typer.echo(f"{out}: {vectors.shape[0]} x {vectors.shape[1]}")


@app.command()
def search(
    uri: Uri,
    query: Annotated[Path, typer.Argument(help="A structure file, or a CSV of a density of states.")],
    data: Data = DATA,
    among: Annotated[str, typer.Option(help="Modality of the candidates.")] = "crystal",
    k: Annotated[int, typer.Option("-k", min=1, help="Number of hits.")] = 10,
    as_json: Json = False,
) -> None:
    """Find the materials of a data set that are nearest to a CIF or to a DOS."""
    from finetune.loading import load_foundation
    from finetune.search import search as run_search

    hits = run_search(load_foundation(uri), query, data=data, among=among, k=k)
    rows = [{"id": h.id, "similarity": h.similarity, **h.tags, "labels": h.labels} for h in hits]

    def line(row: dict[str, Any]) -> str:
        gap = row["labels"].get("band_gap_ev")
        shown = "" if gap is None else f"  gap {gap:.2f} eV"
        return f"{row['similarity']:.3f}  {row['id']:24} {row.get('formula', ''):10} {row.get('prototype', '')}{shown}"

    _show(rows, as_json, line)


@app.command()
def evaluate(
    uri: Uri,
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "chemical_system",
    part: Annotated[str, typer.Option(help="Part of the split.")] = "test",
    as_json: Json = False,
) -> None:
    """Measure cross-modal retrieval on held-out materials, for every ordered pair of modalities."""
    from finetune.evaluate import retrieval_table
    from finetune.loading import load_foundation
    from shards.locate import locate
    from shards.reader import Dataset

    rows = retrieval_table(load_foundation(uri), Dataset(locate(data)), split=split, part=part)
    _show(
        rows,
        as_json,
        lambda r: (
            f"{r['query']:>15} -> {r['target']:15} n {r['n']:4}  recall@1 {r['recall_at_1']:.2f} "
            f"(chance {r['chance_at_1']:.3f})  @5 {r['recall_at_5']:.2f}  @10 {r['recall_at_10']:.2f}  "
            f"median rank {r['median_rank']:.0f}"
        ),
    )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, accelerator, compiler, memory, disk, registry."""
    from launch.doctor import as_json as plain
    from launch.doctor import examine

    findings = examine()
    marks = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}
    _show(
        plain(findings),
        as_json,
        lambda r: f"{marks[r['status']]}  {r['name']:20} {r['value']}" + (f"  -> {r['do']}" if r["do"] else ""),
    )
    raise typer.Exit(2 if any(finding.status == "missing" for finding in findings) else 0)


@config_app.command("show")
def config_show(config: Config, set_: Set = []) -> None:  # noqa: B006
    """Print a recipe with every default written out."""
    from pretrain.config import load_recipe

    typer.echo(json.dumps(load_recipe(config, set_).resolved(), indent=1))


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of recipes, and the options of every plug-in that they may name."""
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
    }
    typer.echo(json.dumps(tables, indent=1))


def _show(rows: list[dict[str, Any]], as_json: bool, line: Any) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(line(row))


def main() -> None:
    """Run the command line; ``--debug`` anywhere shows the traceback of an error."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.exit(guarded(app, debug=debug))


if __name__ == "__main__":
    main()
