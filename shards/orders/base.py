"""The order contract: which samples an epoch visits, in which sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from shards.plugins import Registry
from shards.schema import ModalitySpec, Sample, Strict

EpochOrder = Callable[[int], np.ndarray]


class Samples(Protocol):
    """What orders and streams need of a data set; `shards.reader.Dataset` and `shards.mixture.Mixture` have it."""

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """Specs of the modalities that are read."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Samples a shard."""

    def __getitem__(self, position: int) -> Sample:
        """Read a sample."""

    def presence(self, modality: str) -> np.ndarray:
        """(N,) bool: which samples have a modality."""

    def lengths(self, axis: str) -> np.ndarray:
        """(N,) int64 lengths of a ragged axis (``crystal.atoms``)."""

    def prefetch(self, positions: np.ndarray) -> None:
        """Begin to fetch samples that will be read in this order."""

    def select(self, modalities: Sequence[str]) -> Samples:
        """The same samples with these modalities alone."""


class Order(Strict):
    """An order of samples; its fields are its options in the recipe's table ``[data.order]``.

    Registered by ``@ORDERS.register(kind)``, or found by the entry-point group ``matloom.orders``.
    """

    kind: str

    @abstractmethod
    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Look at the samples once, and return the order of every epoch.

        Parameters
        ----------
        dataset : Samples
            The data set, with the modalities that are trained on.
        positions : ndarray
            (N,) int64, each once.
        seed : int
            Seed of the run.

        Returns
        -------
        callable
            Epoch number to int64 positions: always `length` (N) of them, all taken from ``positions``. A pure function
            of (seed, epoch), so that a run resumes anywhere, and every epoch has the same length.
        """

    def length(self, positions: int) -> int:
        """Return how many samples an epoch over so many positions visits; as many, unless an order says otherwise."""
        return positions


ORDERS: Registry[type[Order]] = Registry(
    "order",
    {name: f"shards.orders.{name}" for name in ("curriculum", "inverse_availability", "sequential", "shuffled")},
)


def present(dataset: Samples, positions: np.ndarray) -> np.ndarray:
    """Return (N, M) bool: which of the samples at ``positions`` has which modality."""
    columns = [dataset.presence(name)[positions] for name in dataset.modalities]
    return np.stack(columns, axis=1) if columns else np.zeros((len(positions), 0), dtype=bool)
