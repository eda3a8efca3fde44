"""Whole samples: modality dropout and the variations of each modality, seeded by (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import xxhash
from numpy.typing import ArrayLike

from shards.augment.config import Augment
from shards.augment.values import augment, centred, cropped
from shards.errors import ConfigError, suggest
from shards.schema import ModalitySpec, Sample, Value

DROPOUT = 1


class Augmenter:
    """What is done to a sample between the reader and the batch.

    The draws of a modality depend on (seed, epoch, sample id, modality) and on nothing else: not on the
    rank, the worker, the batch or the other modalities. A modality without strengths is not touched; a
    sample without any comes back as the same object.

    Parameters
    ----------
    specs : mapping of str to ModalitySpec
        The modalities of the samples.
    augments : mapping of str to Augment
        Strengths by modality.
    seed : int
        Seed of all draws, from 0.
    scales : mapping of str to (mapping of str to array), optional
        ``scales[modality][field]``: standard deviations over the training part, for every modality with
        ``gaussian_noise``.
    keep : collection of str
        Modalities that may never be dropped: the anchor of an objective.
    training : bool
        False, in evaluation: no draw at all; only what changes shapes has its counterpart without
        chance, the central crop of pictures.

    Attributes
    ----------
    specs : dict of str to ModalitySpec
        The specs of the values that come out, the same in training and evaluation.

    Raises
    ------
    ConfigError
        For strengths of an unknown modality, strengths that do nothing to one, dropout of one that is to be
        kept, and noise without scales.
    """

    def __init__(
        self,
        specs: Mapping[str, ModalitySpec],
        augments: Mapping[str, Augment],
        *,
        seed: int = 0,
        scales: Mapping[str, Mapping[str, ArrayLike]] | None = None,
        keep: Collection[str] = (),
        training: bool = True,
    ) -> None:
        self.seed, self.training = seed, training
        self.scales = {
            name: {field: np.asarray(values) for field, values in fields.items()}
            for name, fields in (scales or {}).items()
        }
        self.augments = {name: config for name, config in augments.items() if config.varies or config.drops}
        for name, config in self.augments.items():
            if name not in specs:
                raise ConfigError(f"there is no modality '{name}' to augment", why=suggest(name, specs))
            config.check(specs[name])
            where = f"modalities.{name}.augment"
            if config.drops and name in keep:
                raise ConfigError(f"the modality '{name}' is the anchor, which is never dropped", where=where)
            if training and config.gaussian_noise and name not in self.scales:
                raise ConfigError(f"'gaussian_noise' of '{name}' needs its standard deviations", where=where)
        self.specs = {name: cropped(spec, augments.get(name, Augment())) for name, spec in specs.items()}

    def __call__(self, sample: Sample, epoch: int = 0, view: int = 0) -> Sample:
        """Return the sample as an epoch sees it.

        Parameters
        ----------
        sample : Sample
            As stored; it is not changed.
        epoch : int
            Counted from 0.
        view : int
            Which of several independent variations.
        """
        dropped = self._dropped(sample, epoch, view) if self.training else set()
        arrays = {name: value for name, value in sample.arrays.items() if name not in dropped}
        text = {name: value for name, value in sample.text.items() if name not in dropped}
        touched = bool(dropped)
        for name, config in self.augments.items():
            value = arrays.get(name, text.get(name))
            if value is None or not config.varies:
                continue
            changed = self._changed(sample.id, name, value, epoch, view)
            touched = touched or changed is not value
            if isinstance(changed, str):
                text[name] = changed
            else:
                arrays[name] = dict(changed)
        return replace(sample, arrays=arrays, text=text) if touched else sample

    def _changed(self, sample_id: str, name: str, value: Value, epoch: int, view: int) -> Value:
        if not self.training:
            return centred(self.specs[name], value, self.augments[name])
        rng = np.random.default_rng(self._key(sample_id, name, epoch, view))
        return augment(self.specs[name], value, rng, self.augments[name], self.scales.get(name))

    def _dropped(self, sample: Sample, epoch: int, view: int) -> set[str]:
        """Return the modalities that the sample goes without; one at least stays."""
        surplus = {}
        for name, config in self.augments.items():
            probability = config.drop_probability(epoch)
            if probability and name in sample.modalities:
                drawn = np.random.default_rng([*self._key(sample.id, name, epoch, view), DROPOUT]).random()
                if drawn < probability:
                    surplus[name] = drawn / probability
        if surplus and surplus.keys() == sample.modalities:
            # given that all were drawn, these are uniform on [0, 1): each modality is as likely to stay
            del surplus[max(surplus, key=surplus.__getitem__)]
        return set(surplus)

    def _key(self, sample_id: str, name: str, epoch: int, view: int) -> list[int]:
        text = f"{name}\0{sample_id}" + (f"\0{view}" if view else "")
        return [self.seed, epoch, xxhash.xxh64_intdigest(text.encode())]
