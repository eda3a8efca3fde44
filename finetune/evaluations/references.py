"""What a subset of modalities can give at best: predictors that were trained on it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.evaluations.rows import Rows, only
from finetune.loading import PropertyModel, device_of, load
from shards.batch import collate
from shards.errors import ConfigError, DataError
from shards.schema import Sample

STRENGTHS = np.logspace(-3, 4, 8)
FOLDS = 3
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """A predictor of a subset: ``name`` says what it is; called with N samples it gives values (N, T)."""

    name: str
    predict: Callable[[Sequence[Sample]], Tensor]

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Predict."""
        return self.predict(samples)


class References:
    """References by subset: predictors where they are given, else linear probes on a predictor's frozen encoders.

    Parameters
    ----------
    uris : mapping of str to str
        Modalities joined by + to the URI of a predictor that was trained on these alone.
    model : PropertyModel
        What is evaluated.
    train : Rows
        Its training rows, on which probes are fitted.

    Raises
    ------
    ConfigError
        Where a predictor is of another target, or looks at what is not in its subset.
    """

    def __init__(self, uris: Mapping[str, str], model: PropertyModel, train: Rows) -> None:
        self.model, self.train = model, train
        self._encoded: dict[int, tuple[Sequence[Sample], dict[str, np.ndarray]]] = {}
        self._given: dict[frozenset[str], Reference] = {}
        for names, uri in uris.items():
            subset = frozenset(names.split("+"))
            if not subset <= set(model.specs):
                raise ConfigError(f"'{names}' is no subset of {list(model.specs)}", do='references = {"a+b" = "URI"}')
            self._given[subset] = _loaded(uri, subset, model)

    def of(self, subset: tuple[str, ...]) -> Reference:
        """Return the reference of a subset; a probe is fitted on the training rows that have all of it, or else any."""
        return self._given.get(frozenset(subset)) or self._probe(subset)

    def _probe(self, subset: tuple[str, ...]) -> Reference:
        samples = self.train.samples
        complete = [i for i, sample in enumerate(samples) if sample.modalities >= set(subset)]
        some = [i for i, sample in enumerate(samples) if sample.modalities & set(subset)]
        chosen = complete if len(complete) >= 2 else some
        if len(chosen) < 2:
            raise DataError(f"fewer than 2 training samples have any of {list(subset)}")
        features, task = self._features(samples, subset)[chosen], self.model.info.task
        columns = [_fitted(features, column.double().numpy(), task) for column in self.train.targets[chosen].T]

        def predict(rows: Sequence[Sample]) -> Tensor:
            seen = self._features(rows, subset)
            return torch.from_numpy(np.stack([column(seen) for column in columns], axis=1)).float()

        return Reference(f"linear probe on the frozen encoders, {len(chosen)} training rows", predict)

    def _features(self, samples: Sequence[Sample], subset: tuple[str, ...]) -> np.ndarray:
        """Return the vectors of a subset side by side (N, F); every sample is encoded once for all subsets."""
        if id(samples) not in self._encoded:
            # the list is kept, so that its id stays its own
            self._encoded[id(samples)] = samples, encoder_vectors(self.model, samples)
        found = self._encoded[id(samples)][1]
        return np.concatenate([found[name] for name in subset], axis=1)


@torch.no_grad()
def encoder_vectors(model: PropertyModel, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Return the encoders' vectors (N, D_m) of each modality, zero where it is absent."""
    encoders = model.predictor.featurizer.encoders
    parts: dict[str, list[Tensor]] = {name: [] for name in model.specs}
    for start in range(0, len(samples), BATCH):
        rows = [model.as_evaluated(sample) for sample in samples[start : start + BATCH]]
        batch = collate(rows, model.specs).to(device_of(model.predictor))
        for name, blocks in parts.items():
            encoder, present = encoders[name], batch.present[name]
            block = torch.zeros(len(present), int(encoder.dim))  # type: ignore[arg-type]
            if name in batch.inputs:
                block[present.cpu()] = encoder(batch.inputs[name]).vector.float().cpu()
            blocks.append(block)
    return {name: torch.cat(blocks).numpy() for name, blocks in parts.items()}


def _fitted(features: np.ndarray, targets: np.ndarray, task: str) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a standardised linear model to the known targets, its strength by cross-validation within the rows."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = ~np.isnan(targets)
    features, targets = features[known], targets[known]
    if task == "regression":
        return make_pipeline(StandardScaler(), RidgeCV(STRENGTHS)).fit(features, targets).predict
    counts = np.unique(targets, return_counts=True)[1]
    enough = len(counts) > 1 and counts.min() >= FOLDS
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    search = GridSearchCV(linear, {"logisticregression__C": 1 / STRENGTHS}, cv=FOLDS)
    fitted = (search if enough else DummyClassifier()).fit(features, targets)
    # a class; as a probability of class 1 it is 0 or 1
    return fitted.predict


def _loaded(uri: str, subset: frozenset[str], model: PropertyModel) -> Reference:
    other = load(uri)
    if not isinstance(other, PropertyModel) or other.info.targets != model.info.targets:
        raise ConfigError(f"'{uri}' is no predictor of {list(model.info.targets)}")
    if not set(other.specs) <= subset:
        raise ConfigError(f"'{uri}' looks at {list(other.specs)}, not at {sorted(subset)} alone")
    return Reference(uri, lambda samples: other.estimate([only(sample, set(subset)) for sample in samples]).value)
