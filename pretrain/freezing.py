"""Frozen parts of a model: no gradient, no dropout, no statistics that move."""

from __future__ import annotations

from torch import nn

from pretrain.config import Recipe
from pretrain.model import MultimodalModel
from shards.errors import ConfigError


def freeze_parts(model: MultimodalModel, recipe: Recipe) -> None:
    """Freeze what ``modalities.NAME.freeze`` says, for good: the model's `train` leaves it in evaluation mode."""
    parts: list[nn.Module] = []
    for name, config in recipe.modalities.items():
        if config.freeze == "none":
            continue
        parts.append(model.encoders[name])
        if config.freeze == "all" and name in model.projections:
            if recipe.projection.shared:
                raise ConfigError(
                    f"the projection of '{name}' cannot be frozen alone",
                    where=f"modalities.{name}.freeze",
                    why="all modalities share one projection",
                    do=f"modalities.{name}.freeze = 'encoder'",
                )
            parts.append(model.projections[name])
    for part in parts:
        part.requires_grad_(False)
    model.frozen = tuple(parts)
    model.train(model.training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("nothing is left to train", where="modalities", why="every part of the model is frozen")
