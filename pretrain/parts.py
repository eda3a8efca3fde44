"""The parts of a model: encoders, fusions and projections, built as a recipe says and fitted to training values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from pretrain.config import ProjectionConfig, Recipe
from pretrain.encoders.base import ENCODERS, Encoder
from pretrain.encoders.mlp import perceptron
from pretrain.fusion.base import FUSIONS, Fusion, Width
from shards.augment import centred, cropped
from shards.errors import ConfigError, suggest
from shards.schema import ModalitySpec, Value

Fitted = dict[str, dict[str, Any]]


def projection(width: int, config: ProjectionConfig) -> nn.Module:
    """Return the module that maps a vector (R, width) to the shared space (R, dim)."""
    if config.kind == "none":
        if width != config.dim:
            raise ConfigError(
                f"a vector of width {width} cannot be an embedding of width {config.dim}",
                where="projection.kind",
                do="give the encoder or fusion that dim, or take projection.kind = 'linear'",
            )
        return nn.Identity()
    if config.kind == "linear":
        return nn.Linear(width, config.dim)
    return perceptron((width, *[config.hidden] * (config.layers - 1), config.dim), dropout=config.dropout)


def build_projections(widths: Mapping[str, int], config: ProjectionConfig) -> dict[str, nn.Module]:
    """Return a projection for every embedding, or one for all."""
    if not config.shared:
        return {name: projection(width, config) for name, width in widths.items()}
    if len(set(widths.values())) > 1:
        raise ConfigError(
            f"one projection cannot read vectors of widths {dict(widths)}",
            where="projection.shared",
            do="give the encoders and fusions the same dim",
        )
    return dict.fromkeys(widths, projection(next(iter(widths.values())), config))


def build_fusions(recipe: Recipe, encoders: Mapping[str, Encoder]) -> dict[str, Fusion]:
    """Return the recipe's fusions, each after those that it joins."""
    recipe.joined()
    widths = {name: Width(encoder.dim, encoder.gives_tokens) for name, encoder in encoders.items()}
    fusions: dict[str, Fusion] = {}
    for name in recipe.fusions:
        options = recipe.fusion(name)
        plugin = FUSIONS.get(options.kind)
        fusions[name] = plugin(options, {part: widths[part] for part in options.inputs})
        widths[name] = Width(fusions[name].dim, plugin.gives_tokens)
    for name, encoder in encoders.items():
        encoder.tokens_wanted = any(name in fusion.inputs for fusion in fusions.values())
    return fusions


def refuse_unread(recipe: Recipe, bases: Iterable[str]) -> None:
    """Refuse parts of a recipe that no loss reaches: they would never learn."""
    read = set(bases)
    for name in reversed(recipe.fusions):
        if name in read:
            read |= set(recipe.fusion(name).inputs)
    for name in (*recipe.modalities, *recipe.fusions):
        if name not in read:
            raise ConfigError(
                f"the objective reads '{name}' neither directly nor through a fusion",
                where=f"{'modalities' if name in recipe.modalities else 'fusions'}.{name}",
                do="remove it, or choose an objective that reads it",
            )


def check_modalities(recipe: Recipe, specs: Mapping[str, ModalitySpec]) -> None:
    """Raise `ConfigError` where the recipe names a modality that the data set lacks or its encoder cannot read."""
    for name in recipe.modalities:
        if name not in specs:
            raise ConfigError(
                f"the data set has no modality '{name}'", where=f"modalities.{name}", why=suggest(name, specs)
            )
        options = recipe.encoder(name)
        encoder = ENCODERS.get(options.kind)
        if specs[name].kind not in encoder.reads:
            raise ConfigError(
                f"encoder '{options.kind}' cannot read modality '{name}' of kind '{specs[name].kind}'",
                where=f"modalities.{name}.encoder",
                why=f"it reads {', '.join(sorted(encoder.reads))}",
            )


def fit_encoders(recipe: Recipe, specs: Mapping[str, ModalitySpec], values: Callable[[str], Iterable[Value]]) -> Fitted:
    """Fit what the encoders must know before they are built; one with starting weights knows what those were fitted to.

    Parameters
    ----------
    recipe, specs
        As in `MultimodalModel`.
    values : callable
        Modality name to an iterable over its TRAINING values, as stored.
    """
    # exports hold models, which are made of what is here
    from pretrain.starting import fitted_of_export

    fitted = {}
    for name, config in recipe.modalities.items():
        if config.weights is not None:
            fitted[name] = fitted_of_export(recipe, name, specs[name])
            continue
        options = recipe.encoder(name)
        spec, seen = cropped(specs[name], config.augment), partial(centred, specs[name], config=config.augment)
        fitted[name] = ENCODERS.get(options.kind).fit(spec, options, map(seen, values(name)))
    return fitted


def with_weights(fitted: Mapping[str, Mapping[str, Any]]) -> Fitted:
    """Return fitted values of a model whose weights will be loaded: no encoder needs to fetch any of its own."""
    return {name: {**values, "weights_follow": True} for name, values in fitted.items()}


def build_encoder(recipe: Recipe, spec: ModalitySpec, fitted: Mapping[str, Any]) -> Encoder:
    """Return a modality's encoder, as the recipe says, with new weights.

    ``spec`` is that of the stored values; the encoder reads what a crop leaves of them.
    """
    options = recipe.encoder(spec.name)
    return ENCODERS.get(options.kind)(cropped(spec, recipe.modalities[spec.name].augment), options, fitted)
