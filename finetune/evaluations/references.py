"""What a subset of modalities can give at best: predictors that were trained on it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from finetune.estimators.base import Fitted
from finetune.estimators.linear_probe import LinearProbe
from finetune.evaluations.base import Subject
from finetune.evaluations.rows import Rows, labels_of, only, predictor_of
from finetune.evaluations.seen import check_unseen
from finetune.loading import PropertyModel, device_of, load
from shards.batch import collate
from shards.errors import ConfigError, DataError
from shards.schema import Sample

BATCH = 64
FEWEST = 2


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
    subject : Subject
        Whose predictor is evaluated.
    train : Rows
        Its training rows, on which probes are fitted.

    Raises
    ------
    ConfigError
        Where a predictor is of another target, looks at what is not in its subset, or was trained on another split.
    """

    def __init__(self, uris: Mapping[str, str], subject: Subject, train: Rows) -> None:
        self.model = model = predictor_of(subject)
        self.train = train
        self._encoded: dict[int, tuple[Sequence[Sample], dict[str, np.ndarray]]] = {}
        self._given: dict[frozenset[str], Reference] = {}
        for names, uri in uris.items():
            subset = frozenset(names.split("+"))
            if not subset <= set(model.specs):
                raise ConfigError(f"'{names}' is no subset of {list(model.specs)}", do='references = {"a+b" = "URI"}')
            self._given[subset] = _loaded(uri, subset, subject)

    def of(self, subset: tuple[str, ...]) -> Reference:
        """Return the reference of a subset; a probe is fitted on the training rows that have all of it, or else any."""
        return self._given.get(frozenset(subset)) or self._probe(subset)

    def _probe(self, subset: tuple[str, ...]) -> Reference:
        fitted = [self._column(subset, i) for i in range(len(self.model.info.targets))]
        delta = self.model.info.delta

        def predict(rows: Sequence[Sample]) -> Tensor:
            seen = self._features(rows, subset)
            values = torch.from_numpy(np.stack([column.predict(seen) for column, _ in fitted], axis=1)).float()
            return values + labels_of(rows, delta) if delta else values

        counts = sorted({count for _, count in fitted})
        rows = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        return Reference(f"linear probe on the frozen encoders, {rows} training rows", predict)

    def _column(self, subset: tuple[str, ...], target: int) -> tuple[Fitted, int]:
        """Return the probe of one target, fitted to what the predictor's head learns, and on how many rows."""
        samples, learned = self.train.samples, self.train.learned[:, target].double().numpy()
        known = np.flatnonzero(~np.isnan(learned))
        complete = [i for i in known if samples[i].modalities >= set(subset)]
        some = [i for i in known if samples[i].modalities & set(subset)]
        chosen = complete if len(complete) >= FEWEST else some
        if len(chosen) < FEWEST:
            name = self.model.info.targets[target]
            raise DataError(f"fewer than {FEWEST} training samples have '{name}' and any of {list(subset)}")
        features = self._features(samples, subset)[chosen]
        return LinearProbe().fit(features, learned[chosen], task=self.model.info.task, seed=0), len(chosen)

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


def _loaded(uri: str, subset: frozenset[str], subject: Subject) -> Reference:
    other, model = load(uri), predictor_of(subject)
    wanted = model.info.targets, model.info.task
    if not isinstance(other, PropertyModel) or (other.info.targets, other.info.task) != wanted:
        raise ConfigError(f"'{uri}' is no {model.info.task} of {list(model.info.targets)}")
    if not set(other.specs) <= subset:
        raise ConfigError(f"'{uri}' looks at {list(other.specs)}, not at {sorted(subset)} alone")
    check_unseen(replace(subject, model=other))
    return Reference(uri, lambda samples: other.estimate([only(sample, set(subset)) for sample in samples]).value)
