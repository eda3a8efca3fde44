"""`matloom leaderboard`: files of public leaderboards, validated before anybody uploads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.options import DATA, Data, Uri

leaderboard_app = typer.Typer(help="Write and validate files of public leaderboards.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--out", help="Folder of the files.")]
Metadata = Annotated[Path, typer.Option(help="TOML with what the leaderboard wants to know of model and authors.")]
TASK = "AI-SinglePropertyPrediction-PROPERTY-DATASET-test-mae"


@leaderboard_app.command("jarvis")
def jarvis(
    uri: Uri,
    task: Annotated[str, typer.Option(help=TASK)],
    benchmark: Annotated[Path, typer.Option(help="DATASET_PROPERTY.json.zip of the leaderboard.")],
    metadata: Metadata,
    data: Data = DATA,
    out: Folder = Path("leaderboard/jarvis"),
) -> None:
    """JARVIS-Leaderboard: predictions of exactly the test ids of a benchmark."""
    from finetune.leaderboards.entries import predict_ids
    from finetune.leaderboards.jarvis import Task, read_benchmark, validate_contribution, write_contribution
    from shards.recipes import read_tables

    parsed = Task.parse(task)
    parts = read_benchmark(benchmark, parsed, typer.echo)
    predictions = predict_ids(_predictor(uri), _dataset(data), list(parts[parsed.part]))
    path = write_contribution(out, parsed, predictions, read_tables(metadata))
    mae = validate_contribution(out, parsed, parts)
    typer.echo(f"{path}: {len(predictions)} predictions, MAE {mae:.6g}; add a run.sh that reproduces them")


@leaderboard_app.command("jarvis-split")
def jarvis_split(
    folder: Annotated[Path, typer.Argument(help="Folder of shards whose sample ids are those of the leaderboard.")],
    name: Annotated[str, typer.Argument(help="Name of the new split.")],
    task: Annotated[str, typer.Option(help=TASK)],
    benchmark: Annotated[Path, typer.Option(help="DATASET_PROPERTY.json.zip of the leaderboard.")],
) -> None:
    """Add the division of a JARVIS benchmark to a data set."""
    from finetune.leaderboards.jarvis import Task, import_split, read_benchmark

    parsed = Task.parse(task)
    split = import_split(folder, name, read_benchmark(benchmark, parsed, typer.echo), parsed)
    typer.echo(f"{name}: " + ", ".join(f"{part} {len(ids)}" for part, ids in split.ids.items()))


@leaderboard_app.command("matbench")
def matbench(
    uris: Annotated[list[str], typer.Argument(help="One predictor a fold, in the order of the folds.")],
    task: Annotated[str, typer.Option(help="matbench_dielectric, ...")],
    folds: Annotated[Path, typer.Option(help="matbench_v0.1_validation.json of the package matbench.")],
    metadata: Metadata,
    data: Data = DATA,
    out: Folder = Path("leaderboard/matbench"),
) -> None:
    """Matbench v0.1: the record of one task, every fold by the predictor that was trained on its training part."""
    from finetune.leaderboards.entries import labels_of, predict_ids
    from finetune.leaderboards.matbench import read_folds, record, task_type, validate_submission, write_submission
    from shards.errors import ConfigError
    from shards.recipes import read_tables

    ids, dataset, info = read_folds(folds, task), _dataset(data), read_tables(metadata)
    if len(uris) != len(ids):
        raise ConfigError(f"{len(uris)} predictors for {len(ids)} folds", do="give one a fold")
    predictions, targets, parameters = {}, {}, {}
    for uri, (fold, test) in zip(uris, ids.items(), strict=True):
        model = _predictor(uri)
        predictions[fold] = predict_ids(model, dataset, test)
        if task_type(task) == "classification":
            predictions[fold] = {name: float(value > 0.5) for name, value in predictions[fold].items()}
        targets[fold] = labels_of(dataset, model.info.targets[0], test)
        parameters[fold] = {"model": uri, "strategy": model.info.strategy, "modalities": list(model.info.modalities)}
    tables = record(task, predictions, targets, parameters=parameters, metadata={"algorithm": info.get("algorithm")})
    path = write_submission(out, tables, info)
    scores = validate_submission(out, task, ids)
    typer.echo(f"{path}: {len(ids)} folds, " + ", ".join(f"{name} {value:.6g}" for name, value in scores.items()))


@leaderboard_app.command("discovery")
def discovery(
    uri: Uri,
    family: Annotated[str, typer.Option(help="Folder of the model's family, lower-case with underscores.")],
    metadata: Metadata,
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "chemical_system",
    part: Annotated[str, typer.Option(help="The part that holds the WBM test set.")] = "test",
    out: Folder = Path("leaderboard/matbench-discovery"),
) -> None:
    """Matbench-Discovery: formation energies of the test set, and the model's YAML."""
    from finetune.leaderboards.discovery import validate_submission, write_submission
    from finetune.leaderboards.entries import labels_of, predict_ids
    from shards.recipes import read_tables

    model, dataset = _predictor(uri), _dataset(data)
    ids = [dataset.ids[int(position)] for position in dataset.positions(split, part)]
    count = sum(parameter.numel() for parameter in model.predictor.parameters())
    predictions = predict_ids(model, dataset, ids)
    path, described = write_submission(out, family, predictions, read_tables(metadata), parameters=count)
    mae = validate_submission(described, ids, labels_of(dataset, model.info.targets[0], ids))
    typer.echo(f"{path}: {len(ids)} predictions, MAE {mae:.6g} eV/atom\n{described}")


def _predictor(uri: str) -> Any:
    """Load a predictor of one property."""
    from finetune.loading import PropertyModel, load
    from shards.errors import ConfigError

    model = load(uri)
    if not isinstance(model, PropertyModel) or len(model.info.targets) != 1:
        raise ConfigError(f"'{uri}' is no predictor of one property", do="matloom finetune, then use its result")
    return model


def _dataset(data: str) -> Any:
    from shards.locate import locate
    from shards.reader import Dataset

    return Dataset(locate(data))
