"""The pretraining model: one encoder and one projection a modality, and the objective over the global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pretrain.config import ProjectionConfig, Recipe
from pretrain.encoders.base import ENCODERS, Encoder
from pretrain.gather import gather_rows
from pretrain.objectives.base import OBJECTIVES
from shards.augment import centred, cropped
from shards.batch import Batch, Inputs, move, placeholder
from shards.errors import ConfigError, suggest
from shards.schema import ModalitySpec, Value

Fitted = dict[str, dict[str, Any]]


class MultimodalModel(nn.Module):
    """Encoders, projections and the objective.

    Parameters
    ----------
    recipe : Recipe
        Says which encoder reads which modality, and the objective.
    specs : mapping of str to ModalitySpec
        The modalities' specs as stored, from the data set or from an export.
    fitted : mapping
        What the encoders' `fit` returned, by modality.
    autocast : torch.dtype, optional
        Encoders and projections run under autocast to this type; the objective stays in float32.
    """

    def __init__(
        self,
        recipe: Recipe,
        specs: Mapping[str, ModalitySpec],
        fitted: Mapping[str, Mapping[str, Any]],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.specs = {name: specs[name] for name in recipe.modalities}
        self.autocast = autocast
        encoders = {name: build_encoder(recipe, spec, fitted.get(name, {})) for name, spec in self.specs.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict(
            {name: projection(encoder.dim, recipe.projection) for name, encoder in encoders.items()}
        )
        options = recipe.objective_options()
        self.objective = OBJECTIVES.get(options.kind)(options, list(self.specs))

    def embed(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the projected embeddings (R, D) of R present rows, not normalised."""
        device_type = next(self.parameters()).device.type
        with torch.autocast(device_type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.projections[modality](self.encoders[modality](inputs).vector)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return (b, D) embeddings of every modality; rows where it is absent are zero.

        Every encoder runs, in the same order on every rank, on at least one row: where the local
        batch has none, on a placeholder whose result is multiplied by zero. Otherwise a rank would
        miss a part of the graph and ZeRO would hang or silently mix up gradients.
        """
        z = {}
        for name in self.specs:
            mask = batch.present[name]
            if name in batch.inputs:
                vectors = self.embed(name, batch.inputs[name]).float()
                empty = vectors.new_zeros(len(mask), vectors.shape[1])
                z[name] = empty.index_copy(0, mask.nonzero().squeeze(1), vectors)
            else:
                spec = cast(Encoder, self.encoders[name]).spec
                dummy = self.embed(name, move(placeholder(spec), mask.device)).float()
                z[name] = dummy.new_zeros(len(mask), dummy.shape[1]) + 0.0 * dummy.sum()
        return z

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this rank's share of the loss of the global batch, and values to log."""
        z, present, local, world = gather_rows(self.encode(batch), batch.present)
        return self.objective(z, present, local, world)


def projection(width: int, config: ProjectionConfig) -> nn.Module:
    """Return the module that maps an encoder's vector (R, width) to the shared space (R, dim)."""
    if config.kind == "linear":
        return nn.Linear(width, config.dim)
    return nn.Sequential(
        nn.Linear(width, config.hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, config.dim),
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
    """Fit what the encoders must know before they are built.

    Parameters
    ----------
    recipe, specs
        As in `MultimodalModel`.
    values : callable
        Modality name to an iterable over its TRAINING values, as stored.
    """
    fitted = {}
    for name, config in recipe.modalities.items():
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
