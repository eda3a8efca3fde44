"""Encoders that start from the weights of an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pretrain.config import Recipe
from pretrain.export import Export, read_export
from pretrain.model import MultimodalModel
from shards.errors import CheckpointError, ConfigError
from shards.schema import ModalitySpec

# of an encoder's options those that do not change what it computes when it is used
TRAINING_ONLY = {"dropout", "freeze"}


def fitted_of_export(recipe: Recipe, modality: str, spec: ModalitySpec) -> dict[str, Any]:
    """Return what the exported encoder of a modality was fitted to, or raise where this recipe's would be another.

    Parameters
    ----------
    recipe : Recipe
        ``modalities.NAME.weights`` names the export.
    modality : str
        Which of them.
    spec : ModalitySpec
        The modality as stored in the data set.
    """
    export, where = _export(recipe, modality)
    theirs, ours = export.recipe.encoder(modality).model_dump(), recipe.encoder(modality).model_dump()
    differ = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and key not in TRAINING_ONLY]
    if differ:
        raise ConfigError(
            f"the exported encoder of '{modality}' is another one",
            where=where,
            why=", ".join(f"{key} = {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differ),
            do=f"modalities.{modality}.encoder = the table in its recipe.json",
        )
    stored = export.specs[modality].model_dump(mode="json")
    differ = [key for key, value in spec.model_dump(mode="json").items() if stored[key] != value]
    if differ:
        raise ConfigError(
            f"the exported encoder of '{modality}' reads other data",
            where=where,
            why=f"its {', '.join(differ)} differ: {[stored[key] for key in differ]}",
        )
    return export.fitted[modality]


def load_starting_weights(model: MultimodalModel, recipe: Recipe) -> list[str]:
    """Load the weights that ``modalities.NAME.weights`` name into a new model; returns what was loaded, in words."""
    found = []
    for name, config in recipe.modalities.items():
        if config.weights is None:
            continue
        export, where = _export(recipe, name)
        try:
            model.encoders[name].load_state_dict(_below(export.weights, f"encoders.{name}."))
        except RuntimeError as error:
            raise CheckpointError(
                f"the exported encoder of '{name}' does not fit", where=where, why=str(error)
            ) from None
        parts = "encoder and projection" if _load_projection(model, recipe, export, name) else "encoder"
        found.append(f"{parts} of '{name}' from {config.weights}")
    return found


def _load_projection(model: MultimodalModel, recipe: Recipe, export: Export, name: str) -> bool:
    """Load a projection of the same shape; one that all share belongs to no modality."""
    state = _below(export.weights, f"projections.{name}.")
    if name not in model.projections or recipe.projection.shared or export.recipe.projection.shared:
        return False
    mine: nn.Module = model.projections[name]
    same = {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in mine.state_dict().items()}
    if same and recipe.projection.kind == export.recipe.projection.kind:
        mine.load_state_dict(state)
        return True
    return False


def _export(recipe: Recipe, modality: str) -> tuple[Export, str]:
    """Read and verify the export that a modality starts from."""
    folder, where = Path(str(recipe.modalities[modality].weights)), f"modalities.{modality}.weights"
    if not folder.is_dir():
        raise ConfigError(f"there is no exported model at {folder}", where=where)
    export = read_export(folder)
    if modality not in export.specs:
        raise ConfigError(
            f"the exported model has no modality '{modality}'",
            where=where,
            why=f"{folder} has {', '.join(export.specs)}",
        )
    return export, where


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
