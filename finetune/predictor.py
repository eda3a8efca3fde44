"""A predictor: encoders of a pretrained model, joined over the modalities that a sample has, and a head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finetune.heads.base import HEADS, Head
from finetune.prediction import Prediction
from pretrain.config import parse_recipe
from pretrain.encoders.base import Encoder
from pretrain.export import CARD, FITTED, RECIPE, SCHEMA, WEIGHTS, Export, contiguous, write_json
from pretrain.parts import build_encoder, with_weights
from shards.batch import Batch, move, placeholder
from shards.errors import CheckpointError, ConfigError, suggest
from shards.plugins import Options
from shards.schema import ModalitySpec
from shards.sealed import sealing, verify

PREDICTOR = "predictor.json"


class Featurizer(nn.Module):
    """The vectors of several encoders side by side; a learned vector stands in for a missing modality.

    Parameters
    ----------
    encoders : mapping of str to Encoder
        Modality to its encoder.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.specs = {name: encoder.spec for name, encoder in encoders.items()}
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(encoder.dim)) for name, encoder in encoders.items()}
        )
        self.width = sum(encoder.dim for encoder in encoders.values())

    def forward(self, batch: Batch) -> Tensor:
        """Return features (B, F)."""
        parts = []
        for name, encoder in self.encoders.items():
            mask = batch.present[name]
            rows = self.missing[name].expand(len(mask), -1)
            if name in batch.inputs:
                vectors = encoder(batch.inputs[name]).vector.to(rows.dtype)
                rows = rows.index_copy(0, mask.nonzero().squeeze(1), vectors)
            elif self.training:
                # all ranks must build the same graph; see pretrain.model
                dummy = encoder(move(placeholder(self.specs[name]), rows.device)).vector
                rows = rows + 0.0 * dummy.sum().to(rows.dtype)
            parts.append(rows)
        return torch.cat(parts, dim=1)


class Predictor(nn.Module):
    """A featurizer and a head; ``forward`` gives raw outputs, ``predict`` the target in its unit."""

    def __init__(self, featurizer: Featurizer, head: Head) -> None:
        super().__init__()
        self.featurizer, self.head = featurizer, head

    def forward(self, batch: Batch) -> Tensor:
        """Return the head's raw outputs (B, ...)."""
        return self.head(self.featurizer(batch))

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Return predictions for B rows in the targets' units."""
        return self.head.predict(self(batch))


@dataclass(frozen=True, kw_only=True)
class PredictorInfo:
    """What a stored predictor says of itself.

    Attributes
    ----------
    targets : tuple of str
        Label names (with units).
    task : str
        See `finetune.heads.base.Head`.
    modalities : tuple of str
        What it looks at.
    head : dict
        The head's options.
    foundation, foundation_seal : str
        URI of the pretrained model that it came from, and the sha256 of its seal.
    strategy : str
        How it was trained; see `finetune.config.RowConfig`.
    metrics : dict
        Validation metrics of the registered seed.
    """

    targets: tuple[str, ...]
    task: str
    modalities: tuple[str, ...]
    head: dict[str, Any]
    foundation: str
    foundation_seal: str
    strategy: str
    metrics: dict[str, Any]


def build_featurizer(export: Export, modalities: Sequence[str], *, pretrained: bool) -> Featurizer:
    """Return the featurizer over some modalities of a pretrained model, with its weights or with random ones."""
    for name in modalities:
        if name not in export.specs:
            raise ConfigError(f"the model has no modality '{name}'", why=suggest(name, export.specs))
    if pretrained:
        model = export.build()
        return Featurizer({name: cast(Encoder, model.encoders[name]) for name in modalities})
    return Featurizer(
        {name: build_encoder(export.recipe, export.specs[name], export.fitted.get(name, {})) for name in modalities}
    )


def write_predictor(folder: Path, predictor: Predictor, export: Export, info: PredictorInfo) -> None:
    """Write a sealed predictor: the weights it uses, the pretrained model's recipe, and its own description."""
    kept = set(info.modalities)
    with sealing(folder) as stage:
        safetensors.torch.save_file(contiguous(predictor.state_dict()), stage / WEIGHTS)
        write_json(stage / RECIPE, export.recipe.resolved())
        specs = {name: spec.model_dump(mode="json") for name, spec in export.specs.items()}
        write_json(stage / SCHEMA, specs)
        write_json(stage / FITTED, {name: values for name, values in export.fitted.items() if name in kept})
        write_json(stage / PREDICTOR, vars(info))
        (stage / CARD).write_text(_card(info))


def read_predictor(folder: Path) -> tuple[Predictor, PredictorInfo, Export]:
    """Verify a stored predictor, then build it in evaluation mode; the export is that of its model, without weights."""
    verify(folder, error=CheckpointError)
    try:
        tables = {name: json.loads((folder / name).read_text()) for name in (RECIPE, SCHEMA, FITTED, PREDICTOR)}
        stored = tables[PREDICTOR]
        stored.update({name: tuple(stored[name]) for name in ("targets", "modalities")})
        info = PredictorInfo(**stored)
        specs = {name: ModalitySpec.model_validate(spec) for name, spec in tables[SCHEMA].items()}
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError("this is no predictor of matloom", where=folder, why=str(error)) from None
    recipe = parse_recipe(tables[RECIPE], where=str(folder / RECIPE))
    export = Export(recipe=recipe, specs=specs, fitted=with_weights(tables[FITTED]), metrics={}, weights={})
    featurizer = build_featurizer(export, info.modalities, pretrained=False)
    predictor = Predictor(featurizer, build_head(HEADS.options(info.head), featurizer.width, info.targets))
    try:
        predictor.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError("the weights do not fit the recipe", where=folder, why=str(error)) from None
    return predictor.eval(), info, export


def build_head(options: Options, width: int, targets: tuple[str, ...]) -> Head:
    """Return a new head over ``width`` features."""
    return HEADS.get(options.kind)(options, width, targets)


def _card(info: PredictorInfo) -> str:
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(info.metrics.items()))
    targets = ", ".join(f"`{name}`" for name in info.targets)
    return (
        f"# {', '.join(info.targets)}\n\nPredicts {targets} from {', '.join(info.modalities)} ({info.strategy}), "
        f"on top of `{info.foundation}` (seal {info.foundation_seal}).\n\n| metric | value |\n|---|---|\n{metrics}\n"
    )
