"""`load(uri)`: a registered model, verified and ready to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.prediction import Prediction
from finetune.predictor import PREDICTOR, Predictor, PredictorInfo, read_predictor
from finetune.registry import resolve
from pretrain.data import as_evaluated
from pretrain.export import Export, read_export
from pretrain.model import MultimodalModel
from shards.augment import Augmenter
from shards.batch import collate, collate_modality
from shards.chunks import to_sample
from shards.errors import ConfigError, DataError, suggest
from shards.features import feature
from shards.formats.structure import read_structure
from shards.schema import ModalitySpec, Sample
from shards.sources.base import Record
from shards.sources.structures import structure_record

# a pymatgen Structure is a sequence too, of sites
SEVERAL = (list, tuple)


@dataclass(frozen=True)
class Foundation:
    """A pretrained model: embeds materials into the space that its modalities share.

    Attributes
    ----------
    export : Export
        Recipe, schema and metrics of the model.
    model : MultimodalModel
        The network, frozen.
    """

    export: Export
    model: MultimodalModel

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that the model reads."""
        return list(self.model.specs)

    def embed(self, materials: Any, modality: str | None = None, *, batch_size: int = 64) -> np.ndarray:
        """Embed one material, or a list of them, by one of their modalities.

        Parameters
        ----------
        materials : Sample, Record, pymatgen Structure, path of a structure file, or a list of these
            What to embed.
        modality : str, optional
            Default: the first modality of the model that the (first) material has.
        batch_size : int
            Rows that are encoded together.

        Returns
        -------
        ndarray
            (D,) for one material, (N, D) for a list: float32 unit vectors, comparable across
            modalities by their dot product.

        Raises
        ------
        DataError
            Where a material lacks the modality.
        """
        single = not isinstance(materials, SEVERAL)
        several = [materials] if single else list(materials)
        if modality is None:
            modality = self._first_modality(several[0]) if several else self.modalities[0]
        if modality not in self.model.specs:
            raise ConfigError(f"the model has no modality '{modality}'", why=suggest(modality, self.modalities))
        # no other feature step runs: it would cost time, and might refuse what this one can do
        samples = [to_known_sample(m, {modality: self.model.specs[modality]}) for m in several]
        rows = [self._embed(samples[i : i + batch_size], modality) for i in range(0, len(samples), batch_size)]
        vectors = torch.cat(rows).numpy() if rows else np.zeros((0, self.export.recipe.projection.dim), np.float32)
        return vectors[0] if single else vectors

    def _first_modality(self, material: Any) -> str:
        for name, spec in self.model.specs.items():
            if name in to_known_sample(material, {name: spec}).modalities:
                return name
        raise DataError("the material has none of the model's modalities", why=f"those are {self.modalities}")

    @torch.no_grad()
    def _embed(self, samples: Sequence[Sample], modality: str) -> Tensor:
        values, spec = [], self.model.specs[modality]
        seen = as_evaluated(self.export.recipe, {modality: spec})
        for sample in samples:
            value = seen(sample).value(modality)
            if value is None:
                raise DataError(f"the material has no modality '{modality}'", where=sample.id)
            values.append(value)
        inputs = collate_modality(spec, values)
        return F.normalize(self.model.embed(modality, inputs).float(), dim=1)


@dataclass(frozen=True)
class PropertyModel:
    """A fine-tuned model: predicts one property.

    Attributes
    ----------
    info : PredictorInfo
        Target with its unit, modalities, metrics.
    """

    info: PredictorInfo
    predictor: Predictor
    specs: Mapping[str, ModalitySpec]
    as_evaluated: Augmenter

    def predict(self, materials: Any) -> np.ndarray | float:
        """Predict the target, in its unit, for one material or a list of them.

        Parameters
        ----------
        materials : Sample, Record, pymatgen Structure, path of a structure file, or a list of these
            Each needs at least one of the model's modalities.

        Returns
        -------
        float, or ndarray (N,); (N, T) where there are several targets
        """
        single = not isinstance(materials, SEVERAL)
        samples = [to_known_sample(m, self.specs) for m in ([materials] if single else materials)]
        values = self.estimate(samples).value.numpy()
        values = values[:, 0] if len(self.info.targets) == 1 else values
        return values[0] if single else values

    def estimate(self, samples: Sequence[Sample], *, batch_size: int = 64) -> Prediction:
        """Predict for N samples; see `Prediction` for what comes with the values."""
        for sample in samples:
            if not sample.modalities & set(self.specs):
                raise DataError(f"the material has none of the modalities {sorted(self.specs)}", where=sample.id)
        seen = [self.as_evaluated(sample) for sample in samples]
        parts = [seen[i : i + batch_size] for i in range(0, len(seen), batch_size)]
        return Prediction.join([self.predictor.predict(collate(part, self.specs)) for part in parts])


def load(uri: str) -> Foundation | PropertyModel:
    """Load a model by URI, verifying every file against its sealed hash.

    Parameters
    ----------
    uri : str
        ``models:/name@alias``, ``models:/name/version``, or a local folder.

    Returns
    -------
    Foundation or PropertyModel
        What was exported by pretraining, or by fine-tuning.

    Raises
    ------
    RegistryError, CheckpointError
        Where there is no such model, or a file of it is damaged.
    """
    folder = resolve(uri)
    if (folder / PREDICTOR).exists():
        predictor, info, export = read_predictor(folder)
        specs = {name: export.specs[name] for name in info.modalities}
        return PropertyModel(info, predictor, specs, as_evaluated(export.recipe, specs))
    return _foundation(folder)


def load_foundation(uri: str) -> Foundation:
    """Load a pretrained model; see `load`."""
    folder = resolve(uri)
    if (folder / PREDICTOR).exists():
        raise ConfigError(f"'{uri}' is a fine-tuned predictor, a pretrained model is needed", do="give its foundation")
    return _foundation(folder)


def _foundation(folder: Path) -> Foundation:
    export = read_export(folder)
    model = export.build()
    model.requires_grad_(False)
    return Foundation(export, model)


def to_known_sample(material: Any, specs: Mapping[str, ModalitySpec]) -> Sample:
    """Turn what a user has into a sample with as many of the modalities as it can give.

    Feature steps are those of the model's training data, from its schema.
    """
    if isinstance(material, Sample):
        return material
    if not isinstance(material, Record):
        structure = material if hasattr(material, "lattice") else read_structure(material)
        name = str(material) if isinstance(material, str) and "\n" not in material else "query"
        material = structure_record(structure, name)
    return to_sample(material, {name: feature(spec.feature) for name, spec in specs.items()})
