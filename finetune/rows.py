"""Fitting one row of the table: an adaptation by gradient descent, or an estimator on frozen vectors or descriptors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from math import nan

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from finetune.adapt.base import Adaptation
from finetune.config import FinetuneRecipe, RowConfig
from finetune.cross_validation import take
from finetune.data import PARTS, TRAIN, TargetData
from finetune.descriptors import descriptors_of
from finetune.encodings import EncodedRows
from finetune.estimators.base import Estimator
from finetune.estimators.several import fit_targets
from finetune.featurizer import Featurizer, SideBySide
from finetune.fit import Batches, Schedule, fit, predict
from finetune.freeze import freeze
from finetune.heads.base import HEADS
from finetune.late_rows import LateFusionRow
from finetune.metrics import evaluate
from finetune.predictor import Predictor, build_featurizer, build_predictor, read_predictor
from finetune.registry import resolve
from pretrain.export import Export
from shards.errors import ConfigError


@dataclass(frozen=True)
class Outcome:
    """What one seed of a row gave.

    Attributes
    ----------
    validation : dict of str to float
        Metrics.
    predictions, targets : Tensor
        (N, T) on the test part.
    predictor : Predictor, optional
        What was trained; of an estimator None.
    test : dict of str to float
        Metrics of the test part.
    scores : dict of str to float
        What the recipe's head says of the test part beside these; see `Head.further_metrics`.
    """

    validation: dict[str, float]
    predictions: Tensor
    targets: Tensor
    predictor: Predictor | None = None
    test: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RowFitter:
    """Fits rows of a recipe to its data."""

    recipe: FinetuneRecipe
    export: Export
    data: TargetData
    accelerator: Accelerator
    task: str

    def fit(self, row: RowConfig, seed: int) -> Outcome:
        """Fit a row with one seed."""
        plan, head = row.plan(), self.recipe.head_options()
        if isinstance(plan, Adaptation):
            outcome = self._trained(row, plan, seed)
        elif isinstance(plan, Estimator):
            outcome = self._estimated(row, plan, seed)
        else:
            outcome = self._fused(row, plan, seed)
        found = outcome.predictions, outcome.targets
        scores = HEADS.get(head.kind).further_metrics(head, *found)
        return replace(outcome, test=evaluate(self.task, *found), scores=scores)

    def _trained(self, row: RowConfig, adaptation: Adaptation, seed: int) -> Outcome:
        set_seed(seed)
        chosen = self.data.training(row.label_fraction, seed)
        predictor = self._predictor(row, adaptation)
        batches, features = self._batches(row, adaptation, predictor, chosen, seed)
        if getattr(adaptation, "head", None) != "frozen":
            if predictor.head.keeps_rows:
                predictor.head.grouped(self._groups(chosen))
            predictor.head.fit(self.data.parts[TRAIN].learned[chosen], features)
        predictor.to(self.accelerator.device)
        optim, cached = self.recipe.optim, adaptation.cached
        schedule = Schedule(
            groups=adaptation.groups(predictor, optim),
            epochs=optim.frozen_epochs if cached else optim.epochs,
            weight_decay=optim.weight_decay,
            grad_clip=optim.grad_clip,
            accumulate=optim.accumulate,
            begin_epoch=partial(adaptation.begin_epoch, predictor),
            consistency=self.recipe.consistency,
            auxiliary=partial(adaptation.auxiliary, predictor),
        )
        validation = fit(
            predictor, predictor.head, batches["train"], batches["val"], schedule=schedule, accelerator=self.accelerator
        )
        predictions, targets = predict(predictor, predictor.head, batches["test"], self.accelerator)
        adaptation.settle(predictor)
        return Outcome(validation, predictions, targets, predictor)

    def _predictor(self, row: RowConfig, adaptation: Adaptation) -> Predictor:
        """Return a predictor that is ready to be trained."""
        predictor = build_predictor(
            self.export,
            row.modalities,
            self.recipe.head_options(),
            self.data.names,
            adaptation=adaptation,
            fusion=row.fusion,
            delta=self.recipe.deltas,
            pretrained=adaptation.pretrained,
        )
        if row.start is not None:
            transfer(predictor, row.start)
        adaptation.insert(predictor)
        adaptation.prepare(predictor)
        return predictor

    def _batches(
        self, row: RowConfig, adaptation: Adaptation, predictor: Predictor, chosen: Tensor, seed: int
    ) -> tuple[dict[str, Batches], Tensor | None]:
        """Return the batches of every part, and the training features (N, F) where they do not change."""
        twins = self.recipe.consistency is not None
        augments = {name: a for name, a in self.recipe.augment.items() if name in row.modalities}
        streamed = partial(self.data.streamed, row.modalities, seed=seed)
        if not adaptation.cached:
            train = streamed(part=TRAIN, chosen=chosen, augments=augments, twins=twins)
            return {TRAIN: train, **{part: streamed(part=part) for part in PARTS[1:]}}, None
        featurizer = predictor.featurizer
        # whose encoders they are, where not those of the recipe's model
        whose = str(adaptation) if adaptation.own_encoders else row.start
        encoded = self.data.encoded(featurizer, row.modalities, whose)
        features = None
        if not adaptation.own_encoders and isinstance(featurizer.join, SideBySide):
            materials = features_of(featurizer, encoded[TRAIN])
            features = predictor.together(materials[self.data.places(TRAIN, chosen)])
        batches = {part: self.data.cached(encoded, part, seed) for part in PARTS[1:]}
        if augments:
            batches[TRAIN] = streamed(part=TRAIN, chosen=chosen, augments=augments, twins=twins)
        else:
            noise = self.recipe.optim.feature_noise
            batches[TRAIN] = self.data.cached(encoded, TRAIN, seed, chosen=chosen, noise=noise, twins=twins)
        return batches, features

    def _estimated(self, row: RowConfig, estimator: Estimator, seed: int) -> Outcome:
        chosen = self.data.training(row.label_fraction, seed)
        features = {part: np.zeros((len(rows.ids), 0), np.float32) for part, rows in self.data.parts.items()}
        if row.modalities:
            featurizer = freeze(build_featurizer(self.export, row.modalities, pretrained=True))
            encoded = self.data.encoded(featurizer, row.modalities)
            features = {
                part: self.data.features(part, features_of(featurizer, rows).numpy()) for part, rows in encoded.items()
            }
        elif row.descriptors is not None:
            for part in features:
                described = descriptors_of(self.data.dataset, self.data.materials(part), row.descriptors)
                features[part] = self.data.features(part, described)
        fitted = fit_targets(
            estimator,
            features[TRAIN][chosen.numpy()],
            self.data.parts[TRAIN].learned[chosen].numpy(),
            names=self.data.names,
            task=self.task,
            seed=seed,
        )
        return self._outcome({part: fitted.predict(features[part]).value for part in PARTS[1:]})

    def _fused(self, row: RowConfig, plan: LateFusionRow, seed: int) -> Outcome:
        """Fit a branch to each modality, and their weights to out-of-fold predictions within the training part."""
        chosen = self.data.training(row.label_fraction, seed)
        branches: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        for name in row.modalities:
            featurizer = freeze(build_featurizer(self.export, [name], pretrained=True))
            for part, rows in self.data.encoded(featurizer, (name,)).items():
                absent = ~rows.columns[name].present.cpu()
                branches[part][name] = features_of(featurizer, rows).masked_fill(absent[:, None], nan).numpy()
        fitted = plan.fit(
            take(branches[TRAIN], chosen.numpy()),
            self.data.parts[TRAIN].learned[chosen].numpy(),
            groups=self._groups(chosen),
            task=self.task,
            seed=seed,
        )
        return self._outcome({part: plan.predict(fitted, branches[part], task=self.task) for part in PARTS[1:]})

    def _groups(self, chosen: Tensor) -> list[str]:
        """Return what each of some training rows belongs to, by what the split goes by."""
        return [self.data.groups[int(i)] for i in self.data.parts[TRAIN].positions[chosen.numpy()]]

    def _outcome(self, learned: dict[str, Tensor]) -> Outcome:
        """Return the outcome of what an estimator says of the parts that it was not fitted to."""
        predicted = {part: values + self.data.parts[part].offset.nan_to_num() for part, values in learned.items()}
        validation = evaluate(self.task, predicted["val"], self.data.parts["val"].targets)
        return Outcome(validation, predicted["test"], self.data.parts["test"].targets)


@torch.no_grad()
def features_of(featurizer: Featurizer, rows: EncodedRows, *, batch_size: int = 1024) -> Tensor:
    """Return the joined features (N, F) of encoded rows, on the CPU."""
    count = len(next(iter(rows.columns.values())).present)
    device = next(iter(rows.columns.values())).vector.device
    parts = torch.arange(count, device=device).split(batch_size)
    return torch.cat([featurizer(rows.rows(index)).cpu() for index in parts])


def transfer(predictor: Predictor, uri: str) -> None:
    """Start from the weights of another predictor: encoders and join as a whole, of the head what fits.

    What a head fitted to its targets (scales) is not taken over.

    Raises
    ------
    ConfigError
        Where the other predictor has other encoders, modalities or another join.
    """
    other, info, _ = read_predictor(resolve(uri))
    if info.members > 1:
        raise ConfigError(f"'{uri}' is an ensemble", where="rows.*.start", why="there is no one member to start from")
    try:
        predictor.featurizer.load_state_dict(other.featurizer.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"'{uri}' is no predictor to start from: its encoders, modalities or join are others",
            where="rows.*.start",
            why=str(error).splitlines()[-1].strip(),
            do="give the row the modalities and the fusion of that predictor",
        ) from None
    mine, theirs = dict(predictor.head.named_parameters()), dict(other.head.named_parameters())
    with torch.no_grad():
        for name, parameter in mine.items():
            if name in theirs and theirs[name].shape == parameter.shape:
                parameter.copy_(theirs[name])
