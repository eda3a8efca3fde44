"""`load(uri)`: a registered model, verified and ready to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.files import PREDICTOR
from finetune.materials import Material, read_material, several, to_known_sample
from finetune.predicted import Predicted, Predictions
from finetune.prediction import Prediction
from finetune.predictor import AnyPredictor, PredictorInfo, read_predictor
from finetune.registry import resolve
from pretrain.data import as_evaluated
from pretrain.export import Export, read_export
from pretrain.model import MultimodalModel
from shards.augment import Augmenter
from shards.batch import Batch, collate, collate_modality, move, placeholder
from shards.errors import CheckpointError, ConfigError, DataError, suggest
from shards.schema import ModalitySpec, Sample
from shards.sealed import SEAL, sha256

M = TypeVar("M", bound="Loaded")


@dataclass(frozen=True)
class Loaded:
    """What `load` returns: a network and the sealed folder that it came from."""

    @property
    def folder(self) -> Path:
        """The sealed folder."""
        found = getattr(self, "source", None)
        if found is None:
            raise ConfigError("this model was not loaded from a sealed folder", do="write it, and load it again")
        return found

    @property
    def seal(self) -> str:
        """Identity of the model: the sha256 of its seal."""
        return sha256(self.folder / SEAL)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write safetensors, config and model card into a sealed folder, as `finetune.hub.HubModel` does."""
        from finetune.hub import HubModel

        HubModel(str(self.folder)).save_pretrained(folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face hub; options are those of ``huggingface_hub.ModelHubMixin.push_to_hub``."""
        from finetune.hub import HubModel

        return HubModel(str(self.folder)).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls: type[M], uri: str) -> M:
        """Load a model of this class; see `load`."""
        model = load(uri)
        if not isinstance(model, cls):
            raise ConfigError(f"'{uri}' is a {type(model).__name__}, no {cls.__name__}", do="finetune.load(uri)")
        return model


@dataclass(frozen=True)
class Foundation(Loaded):
    """A pretrained model: embeds materials into the space that its modalities share.

    Attributes
    ----------
    export : Export
        Recipe, schema and metrics of the model.
    model : MultimodalModel
        The network, frozen.
    source : Path, optional
        Sealed folder that it came from.
    """

    export: Export
    model: MultimodalModel
    source: Path | None = None

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that the model reads."""
        return list(self.model.specs)

    def embed(self, materials: Any, modality: str | None = None, *, batch_size: int = 64) -> np.ndarray:
        """Embed one material, or a list of them, by one of their modalities.

        Parameters
        ----------
        materials : object, or several
            What to embed; see `finetune.materials`.
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
        found = several(materials)
        given = [materials] if found is None else found
        if modality is None:
            modality = self._first_modality(given) if given else self.modalities[0]
        if modality not in self.model.specs:
            raise ConfigError(f"the model has no modality '{modality}'", why=suggest(modality, self.modalities))
        # no other feature step runs: it would cost time, and might refuse what this one can do
        spec = {modality: self.model.specs[modality]}
        samples = [to_known_sample(m, spec, id=str(i)) for i, m in enumerate(given)]
        rows = [self._embed(samples[i : i + batch_size], modality) for i in range(0, len(samples), batch_size)]
        vectors = torch.cat(rows).numpy() if rows else np.zeros((0, self.export.recipe.projection.dim), np.float32)
        return vectors[0] if found is None else vectors

    def _first_modality(self, given: list[Any]) -> str:
        """Return the first modality that the first material has; what was read of the material takes its place."""
        given[0] = read_material(given[0], self.model.specs)
        for name, spec in self.model.specs.items():
            if name in to_known_sample(given[0], {name: spec}).modalities:
                return name
        raise _nothing_known(given[0], self.modalities)

    @torch.no_grad()
    def _embed(self, samples: Sequence[Sample], modality: str) -> Tensor:
        values, spec = [], self.model.specs[modality]
        seen = as_evaluated(self.export.recipe, {modality: spec})
        for sample in samples:
            value = seen(sample).value(modality)
            if value is None:
                raise DataError(f"the material has no modality '{modality}'", where=sample.id)
            values.append(value)
        inputs = move(collate_modality(spec, values), device_of(self.model))
        return F.normalize(self.model.embed(modality, inputs).float(), dim=1).cpu()


@dataclass(frozen=True)
class PropertyModel(Loaded):
    """A fine-tuned model: predicts one property, or several.

    Attributes
    ----------
    info : PredictorInfo
        Targets with their units, modalities, metrics.
    source : Path, optional
        Sealed folder that it came from.
    """

    info: PredictorInfo
    predictor: AnyPredictor
    specs: Mapping[str, ModalitySpec]
    as_evaluated: Augmenter
    source: Path | None = None

    def predict(self, materials: Any, *, batch_size: int = 64) -> Predicted | dict[str, Predicted] | Predictions:
        """Predict the targets, in their units, for one material or several.

        Parameters
        ----------
        materials : object, or several
            Each needs at least one of the model's modalities; see `finetune.materials`.
        batch_size : int
            Rows that are predicted together.

        Returns
        -------
        Predicted, or dict of str to Predicted
            Of one material; a dict by target where there are several.
        Predictions
            Of several materials, in their order.
        """
        found = several(materials)
        given = [materials] if found is None else found
        samples = [to_known_sample(m, self.specs, id=str(i)) for i, m in enumerate(given)]
        ids = [sample.id for sample in samples]
        predictions = Predictions(ids, self.info, self.estimate(samples, batch_size=batch_size))
        return predictions[0] if found is None else predictions

    def check(self, sample: Sample) -> None:
        """Raise `DataError` for a sample that lacks what the model needs."""
        if not sample.modalities & set(self.specs):
            raise _nothing_known(sample, self.specs)
        if lacking := [name for name in self.info.delta if name not in sample.labels]:
            raise DataError(
                f"the material lacks the label '{lacking[0]}', which the predictor corrects",
                where=sample.id,
                do=f'give {{..., "labels": {{"{lacking[0]}": ...}}}}',
            )

    def estimate(self, samples: Sequence[Sample], *, batch_size: int = 64, calibrated: bool = True) -> Prediction:
        """Predict for N samples; see `Prediction` for what comes with the values.

        ``calibrated``: with the intervals of the predictor's calibration, where it has one.
        """
        for sample in samples:
            self.check(sample)
        seen = [self.as_evaluated(sample) for sample in samples]
        parts = [seen[i : i + batch_size] for i in range(0, len(seen), batch_size)]
        device = device_of(self.predictor)
        batches = (collate(part, self.specs, self.info.delta) for part in parts)
        none = [] if parts else [_placeholders(self.as_evaluated.specs, self.info.delta)]
        rows = [self.predictor.predict(batch.to(device)).map(Tensor.cpu) for batch in chain(batches, none)]
        prediction = Prediction.join(rows).map(lambda part: part[: len(samples)])
        stored = self.info.calibration
        if stored is None or not calibrated:
            return prediction
        from finetune.calibration import Calibration

        return Calibration.model_validate(stored).apply(prediction)


def device_of(network: torch.nn.Module) -> torch.device:
    """Return where a network's parameters are."""
    return next(network.parameters()).device


def _placeholders(specs: Mapping[str, ModalitySpec], labels: tuple[str, ...]) -> Batch:
    """Return one dummy row: what is predicted for no material has the columns that any prediction has."""
    here = torch.ones(1, dtype=torch.bool)
    return Batch(
        ids=[""],
        present=dict.fromkeys(specs, here),
        inputs={name: placeholder(spec) for name, spec in specs.items()},
        labels=torch.zeros(1, len(labels)),
        label_names=labels,
        groups=torch.zeros(1, dtype=torch.int64),
    )


def _nothing_known(material: Sample | Material, wanted: Sequence[str] | Mapping[str, Any]) -> DataError:
    """Return the error for a material that has none of a model's modalities."""
    name = material.id if isinstance(material, Sample) else material.record.id
    return DataError(
        f"the material has none of the modalities {sorted(wanted)}", where=name, do="give what the model reads"
    )


def load(uri: str) -> Foundation | PropertyModel:
    """Load a model by URI, verifying every file against its sealed hash.

    Parameters
    ----------
    uri : str
        ``models:/name@alias``, ``models:/name/version``, a local folder, or ``hf://org/name`` of the Hugging Face hub.

    Returns
    -------
    Foundation or PropertyModel
        What was exported by pretraining, or by fine-tuning.

    Raises
    ------
    RegistryError, CheckpointError
        Where there is no such model, or a file of it is damaged.
    """
    try:
        return _read(resolve(uri, hashed=False))
    except CheckpointError:
        # a damaged copy in the cache is fetched anew; anything else is refused again
        return _read(resolve(uri))


def load_foundation(uri: str) -> Foundation:
    """Load a pretrained model; see `load`."""
    folder = resolve(uri)
    if (folder / PREDICTOR).exists():
        raise ConfigError(f"'{uri}' is a fine-tuned predictor, a pretrained model is needed", do="give its foundation")
    return _foundation(folder)


def _read(folder: Path) -> Foundation | PropertyModel:
    """Read a sealed folder, in which every file is hashed."""
    if (folder / PREDICTOR).exists():
        predictor, info, export = read_predictor(folder)
        specs = {name: export.specs[name] for name in info.modalities}
        seen = as_evaluated(export.recipe, specs)
        if predictor.head.partners == 2:
            from finetune.pair_model import PairModel

            return PairModel(info, predictor, specs, seen, folder)
        return PropertyModel(info, predictor, specs, seen, folder)
    return _foundation(folder)


def _foundation(folder: Path) -> Foundation:
    export = read_export(folder)
    model = export.build()
    model.requires_grad_(False)
    return Foundation(export, model, folder)
