"""Exported models: a sealed folder of safetensors, resolved recipe, schema and card; no pickle.

This is what the registry holds and what others load; an engine checkpoint is for resuming one's own run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from pretrain.config import Recipe, parse_recipe
from pretrain.evaluate import Row
from pretrain.export_files import CARD, FITTED, METRICS, RECIPE, SCHEMA, WEIGHTS
from pretrain.model import MultimodalModel
from pretrain.parts import Fitted, with_weights
from shards.errors import CheckpointError
from shards.quoting import markdown
from shards.schema import ModalitySpec
from shards.sealed import sealing, verify


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an exported pretraining model is made of."""

    recipe: Recipe
    specs: dict[str, ModalitySpec]
    fitted: Fitted
    metrics: dict[str, Any]
    weights: dict[str, Tensor]

    def build(self) -> MultimodalModel:
        """Build the model with its weights, in evaluation mode."""
        try:
            model = MultimodalModel(self.recipe, self.specs, self.fitted)
        except (KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            raise CheckpointError("no model can be built from this recipe", why=repr(error)) from None
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError("the weights do not fit the recipe", why=str(error)) from None
        return model.eval()


def write_export(
    folder: Path,
    model: MultimodalModel,
    recipe: Recipe,
    fitted: Fitted,
    *,
    step: int,
    data_name: str,
    data_sha256: str,
    data_contents: Sequence[str],
    validation: list[Row],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a sealed export; one at ``folder`` is replaced when the new one is complete.

    ``weights`` is the model's whole state (`Engine.weights`), for one whose parameters are spread over the ranks; by
    default that of ``model``.
    """
    weights = model.state_dict() if weights is None else weights
    data = {"data": data_name, "data_sha256": data_sha256, "data_contents": list(data_contents)}
    metrics = {"step": step, **data, "validation": validation}
    with sealing(folder) as stage:
        safetensors.torch.save_file(contiguous(weights), stage / WEIGHTS)
        write_json(stage / RECIPE, recipe.resolved())
        write_json(stage / SCHEMA, {name: spec.model_dump(mode="json") for name, spec in model.specs.items()})
        write_json(stage / FITTED, fitted)
        write_json(stage / METRICS, metrics)
        count = sum(weights[name].numel() for name, _ in model.named_parameters())
        (stage / CARD).write_text(model_card(model, count, recipe, metrics))


def read_export(folder: Path) -> Export:
    """Verify the hashes of an export, then read it; raise `CheckpointError` naming the file that is wrong."""
    verify(folder, error=CheckpointError)
    try:
        tables = read_tables_of(folder, (RECIPE, SCHEMA, FITTED, METRICS))
        specs = {name: ModalitySpec.model_validate(spec) for name, spec in tables[SCHEMA].items()}
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, ValidationError, SafetensorError) as error:
        raise CheckpointError("this is no exported model of matloom", where=folder, why=str(error)) from None
    return Export(
        recipe=parse_recipe(tables[RECIPE], where=str(folder / RECIPE)),
        specs=specs,
        fitted=with_weights(tables[FITTED]),
        metrics=tables[METRICS],
        weights=weights,
    )


def read_tables_of(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return JSON files of an export; raise `ValueError` where one holds no table."""
    tables = {}
    for name in names:
        try:
            tables[name] = json.loads((folder / name).read_text())
        except RecursionError:
            raise ValueError(f"{name} is nested too deeply") from None
        if not isinstance(tables[name], dict):
            raise ValueError(f"{name} holds no table")
    if FITTED in tables and not all(isinstance(values, dict) for values in tables[FITTED].values()):
        raise ValueError(f"{FITTED} holds something that is no table of a modality")
    return tables


def contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU copies that share no memory, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; keys stay in order, since the order of a recipe's modalities has a meaning."""
    path.write_text(json.dumps(value, indent=1))


def model_card(model: MultimodalModel, parameters: int, recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """Return a Markdown card: what the model is, what it reads, what it was trained on, how good it is."""
    lines = [
        f"# {markdown(recipe.name)}",
        "",
        f"Contrastive pretraining (`{recipe.objective_options().kind}`) on `{markdown(metrics['data'])}`, "
        f"{parameters:,} parameters, step {metrics['step']}, seed {recipe.seed}.",
        f"Data set manifest sha256 `{metrics['data_sha256']}`.",
        "",
        "| modality | kind | encoder | feature step |",
        "|---|---|---|---|",
    ]
    for name, spec in model.specs.items():
        feature = markdown(json.dumps(spec.feature))
        lines.append(f"| {markdown(name)} | {spec.kind} | {recipe.encoder(name).kind} | `{feature}` |")
    lines += ["", "Retrieval on the validation part (chance beside it):", ""]
    lines += ["| query | target | n | recall@1 | chance | median rank |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {markdown(row['query'])} | {markdown(row['target'])} | {row['n']} | {row['recall_at_1']:.2f} "
        f"| {row['chance_at_1']:.3f} | {row['median_rank']:.0f} |"
        for row in metrics["validation"]
    ]
    lines += [
        "",
        "Use: `from finetune import load; load(uri).embed(structure)`. Embeddings are unit vectors; compare them by",
        "cosine similarity. Trained on the materials named above: expect less outside of their chemistry.",
        "",
    ]
    return "\n".join(lines)
