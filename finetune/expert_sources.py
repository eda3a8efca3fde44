"""Where the experts of a mixture come from: checkpoints by URI, or what a stored mixture says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.data import check_schema
from finetune.files import EXPERTS, PREDICTOR
from finetune.predictor import PredictorInfo, build_featurizer, read_predictor, stored_info, unfilled
from finetune.registry import resolve
from finetune.trained_on import TrainedOn
from pretrain.config import parse_recipe
from pretrain.export import Export, read_export
from pretrain.parts import with_weights
from shards.errors import ConfigError
from shards.reader import Dataset
from shards.schema import ModalitySpec
from shards.sealed import SEAL, sha256


@dataclass(frozen=True, kw_only=True)
class Source:
    """One expert.

    Attributes
    ----------
    uri, seal : str
        Where it came from, and the sha256 of its seal.
    export : Export
        Recipe and schema of its pretrained model.
    info : PredictorInfo, optional
        Of a predictor, whose encoders and join (without its head) are the expert; None of a pretrained model.
    modalities : tuple of str
        What it reads.
    featurizer : Module
        From a batch to its vectors.
    """

    uri: str
    seal: str
    export: Export
    info: PredictorInfo | None
    modalities: tuple[str, ...]
    featurizer: nn.Module

    @classmethod
    def load(cls, uri: str, modalities: Sequence[str]) -> Source:
        """Load an expert for a row that looks at some modalities, with its weights.

        Raises
        ------
        ConfigError
            Where it reads none of them, reads others too, or is itself a mixture.
        """
        folder = resolve(uri)
        seal = sha256(folder / SEAL)
        if not (folder / PREDICTOR).exists():
            export = read_export(folder)
            mine = tuple(name for name in modalities if name in export.specs)
            if not mine:
                raise ConfigError(
                    f"the expert '{uri}' knows none of {list(modalities)}",
                    where="rows.*.strategy.models",
                    why=f"it reads {', '.join(export.specs)}",
                )
            featurizer: nn.Module = build_featurizer(export, mine, pretrained=True)
            return cls(uri=uri, seal=seal, export=export, info=None, modalities=mine, featurizer=featurizer)
        predictor, info, export = read_predictor(folder)
        others = sorted(set(info.modalities) - set(modalities))
        if info.members > 1 or info.adaptation.get("kind") == "experts" or predictor.head.partners != 1:
            raise ConfigError(
                f"'{uri}' cannot be an expert",
                where="rows.*.strategy.models",
                why="it is an ensemble, a mixture of experts or a predictor of pairs",
                do="give predictors of one network each, or pretrained models",
            )
        if others:
            raise ConfigError(
                f"the expert '{uri}' reads '{others[0]}', which the row does not look at",
                where="rows.*.modalities",
                do=f"modalities = {sorted({*modalities, *info.modalities})}",
            )
        featurizer = predictor.featurizer
        return cls(uri=uri, seal=seal, export=export, info=info, modalities=info.modalities, featurizer=featurizer)

    @classmethod
    def stored(cls, table: Mapping[str, Any]) -> Source:
        """Return the expert that `table` describes, without its weights."""
        export = Export(
            recipe=parse_recipe(table["recipe"], where=EXPERTS),
            specs={name: ModalitySpec.model_validate(spec) for name, spec in table["schema"].items()},
            fitted=with_weights(table["fitted"]),
            metrics={},
            weights={},
        )
        info = None if table["predictor"] is None else stored_info(table["predictor"])
        modalities = tuple(table["modalities"])
        if info is None:
            featurizer: nn.Module = build_featurizer(export, modalities, pretrained=False)
        else:
            featurizer = unfilled(info, export).featurizer
        about = {name: str(table[name]) for name in ("uri", "seal")}
        return cls(export=export, info=info, modalities=modalities, featurizer=featurizer, **about)

    def table(self) -> dict[str, Any]:
        """Return all that is needed to build the expert again, but for its weights."""
        return {
            "uri": self.uri,
            "seal": self.seal,
            "recipe": self.export.recipe.resolved(),
            "schema": {name: spec.model_dump(mode="json") for name, spec in self.export.specs.items()},
            "fitted": {name: values for name, values in self.export.fitted.items() if name in self.modalities},
            "predictor": None if self.info is None else vars(self.info),
            "modalities": list(self.modalities),
        }


def check_experts(models: Iterable[str], modalities: Sequence[str], dataset: Dataset) -> dict[str, TrainedOn]:
    """Load every expert of a row once, before anything is trained; return by URI what it was trained on.

    Raises
    ------
    ConfigError, DataError
        Where one cannot be had, or reads other features than the data set holds.
    """
    found: dict[str, TrainedOn] = {}
    for uri in models:
        source = Source.load(uri, modalities)
        check_schema(source.export.specs, dataset, source.modalities)
        found[uri] = TrainedOn.of(source.info or source.export)
    return found
