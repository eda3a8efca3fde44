"""Several data sets as one, drawn by weight with exact counts."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import SerializeAsAny

from shards.errors import ConfigError, DataError, suggest
from shards.order import endless
from shards.orders.base import EpochOrder, Order, Samples
from shards.reader import Dataset
from shards.schema import ModalitySpec, Sample


@dataclass(frozen=True, kw_only=True)
class Member:
    """One data set of a mixture.

    Attributes
    ----------
    name : str
        Its name in the mixture, the first part of its samples' ids.
    dataset : Dataset
        Its samples.
    weight : float
        Its share of an epoch, relative to the other members' weights.
    """

    name: str
    dataset: Dataset
    weight: float


class Mixture:
    """Several data sets, read like one `Dataset`: the members' samples one after the other.

    Sample ids are ``NAME/id``, so that they stay unique. A modality that a member lacks is absent from its samples.
    A part of a split is that part of every member's own split of the name.

    Parameters
    ----------
    members : sequence of Member
        At least one; names differ, and modalities of one name have equal specs.
    modalities : sequence of str, optional
        Read these alone; every one of them is in at least one member. Default: all.

    Raises
    ------
    ConfigError
        Where two members have one name.
    DataError
        Where a modality differs from member to member; the message names the difference.
    """

    def __init__(self, members: Sequence[Member], modalities: Sequence[str] | None = None) -> None:
        names = [member.name for member in members]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"two data sets of the mix are called '{name}'", why="ids are NAME/id", do="give one a 'name'"
                )
        self.modalities = _common_modalities(members, modalities)
        self.members = [replace(m, dataset=m.dataset.select(_shared(self.modalities, m.dataset))) for m in members]
        self.name = "+".join(names)
        self.location = " + ".join(member.dataset.location for member in members)
        self.sha256 = "+".join(member.dataset.sha256 for member in members)
        self.contents = tuple(content for member in members for content in member.dataset.contents)
        self.ids = [f"{member.name}/{sample_id}" for member in members for sample_id in member.dataset.ids]
        self.shard_sizes = [size for member in members for size in member.dataset.shard_sizes]
        self.starts = [0, *itertools.accumulate(len(member.dataset) for member in members)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Sample:
        """Read the sample at ``position``."""
        number = bisect_right(self.starts, position) - 1
        member = self.members[number]
        sample = member.dataset[position - self.starts[number]]
        return replace(sample, id=f"{member.name}/{sample.id}")

    def select(self, modalities: Sequence[str]) -> Mixture:
        """Return the same samples with these modalities alone."""
        return Mixture(self.members, modalities)

    def positions(self, split: str, part: str) -> np.ndarray:
        """Return the positions of one part of every member's split, ascending."""
        own = [member.dataset.positions(split, part) for member in self.members]
        return np.concatenate([start + positions for start, positions in zip(self.starts, own, strict=False)])

    def presence(self, modality: str) -> np.ndarray:
        """Return (N,) bool: which samples have a modality."""
        return self._column(modality, lambda dataset: dataset.presence(modality))

    def lengths(self, axis: str) -> np.ndarray:
        """Return (N,) int64 lengths of a ragged axis (``crystal.atoms``), 0 where the modality is absent."""
        return self._column(axis.partition(".")[0], lambda dataset: dataset.lengths(axis))

    def prefetch(self, positions: np.ndarray) -> None:
        """Begin to fetch samples that will be read in this order."""
        for member, start, own in self.divided(positions):
            member.dataset.prefetch(own - start)

    def divided(self, positions: np.ndarray) -> Iterator[tuple[Member, int, np.ndarray]]:
        """Yield each member, where it starts, and those of the positions that are its own, in their order."""
        number = np.searchsorted(self.starts, positions, side="right") - 1
        for i, member in enumerate(self.members):
            yield member, self.starts[i], positions[number == i]

    def _column(self, modality: str, read: Callable[[Dataset], np.ndarray]) -> np.ndarray:
        """Join a column of the members' indices, zeros where a member lacks the modality."""
        held = [modality in member.dataset.manifest.modalities for member in self.members]
        if not any(held):
            known = {name for member in self.members for name in member.dataset.manifest.modalities}
            raise DataError(f"no data set of the mix has a modality '{modality}'", why=suggest(modality, known))
        columns = [read(m.dataset) if has else None for m, has in zip(self.members, held, strict=True)]
        dtype = next(column.dtype for column in columns if column is not None)
        return np.concatenate(
            [
                np.zeros(len(member.dataset), dtype) if column is None else column
                for member, column in zip(self.members, columns, strict=True)
            ]
        )


def _shared(modalities: Mapping[str, ModalitySpec], dataset: Dataset) -> list[str]:
    return [name for name in modalities if name in dataset.modalities]


def _common_modalities(members: Sequence[Member], names: Sequence[str] | None) -> dict[str, ModalitySpec]:
    """Return the specs of the named (or all) modalities, or raise `DataError` where members differ."""
    first: dict[str, tuple[Member, ModalitySpec]] = {}
    for member in members:
        for name, spec in member.dataset.modalities.items():
            holder, known = first.setdefault(name, (member, spec))
            difference = known.difference(spec)
            if difference and (names is None or name in names):
                raise DataError(
                    f"'{member.name}' and '{holder.name}' cannot be mixed: their modality '{name}' differs",
                    why=difference,
                    do="build both with the same feature parameters, or name one of the modalities differently",
                )
    for name in names or ():
        if name not in first:
            raise DataError(f"no data set of the mix has a modality '{name}'", why=suggest(name, first))
    return {name: first[name][1] for name in (first if names is None else names)}


class MixedOrder(Order):
    """Draws each member of a `Mixture` by its weight, in batches that all hold its share.

    An epoch has ``samples`` draws (by default as many as there are positions), divided among the members by weight and
    largest remainder: the same exact numbers in every epoch. Each member walks through its own passes in the order
    ``inner``, pass after pass without end: epoch e goes on where e - 1 stopped, and with an inner order that visits
    each sample once, none comes again before its pass is over. In every global batch of ``batch_size``, a member has
    its share of the batch within 1 sample.

    Attributes
    ----------
    inner : Order
        Order of each pass; what it calls an epoch is a pass.
    batch_size : int
        Global batch size.
    samples : int, optional
        Draws an epoch.
    """

    kind: Literal["mixed"] = "mixed"
    inner: SerializeAsAny[Order]
    batch_size: int
    samples: int | None = None

    def prepare(self, dataset: Samples, positions: np.ndarray, *, seed: int) -> EpochOrder:
        """Return the order of every epoch, ``samples`` long; see `Order.prepare`.

        Raises
        ------
        DataError
            Where a member has no position, or its weight is too small for one draw an epoch.
        """
        assert isinstance(dataset, Mixture)
        members, counts = list(dataset.divided(positions)), self._counts(dataset, positions)
        passes = [
            self.inner.prepare(member.dataset, own - start, seed=_member_seed(seed, i))
            for i, (member, start, own) in enumerate(members)
        ]

        def epoch_order(epoch: int) -> np.ndarray:
            slots = interleave(counts, self.batch_size, np.random.default_rng([seed, epoch]))
            order = np.empty(len(slots), dtype=np.int64)
            for i, (_, start, own) in enumerate(members):
                drawn = endless(passes[i], len(own), epoch * counts[i], counts[i])
                order[slots == i] = start + drawn
            return order

        return epoch_order

    def length(self, positions: int) -> int:
        """Return how many samples an epoch visits."""
        return self.samples or positions

    def _counts(self, dataset: Mixture, positions: np.ndarray) -> list[int]:
        weights = [member.weight for member in dataset.members]
        counts = largest_remainder(weights, self.length(len(positions)))
        for (member, _, own), count in zip(dataset.divided(positions), counts, strict=True):
            if not len(own):
                raise DataError(f"'{member.name}' has no sample in this part of the split")
            if not count:
                raise DataError(
                    f"'{member.name}' would never be drawn", why=f"its weight is {member.weight} of {sum(weights)}"
                )
        return counts


def _member_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0])


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Divide ``total`` in proportion to weights: each gets floor or ceil of its quota, the largest remainders ceil."""
    whole = sum(Fraction(weight) for weight in weights)
    quotas = [Fraction(weight) * total / whole for weight in weights]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def interleave(counts: Sequence[int], batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return (sum of counts,) the number of the member that each place belongs to.

    Member k has ``counts[k]`` places, and in every batch of ``batch_size`` places its share within 1.
    """
    full, rest = divmod(sum(counts), batch_size)
    tail = np.array(largest_remainder(counts, rest))
    table = np.zeros((full, len(counts)), dtype=np.int64)
    if full:
        every, extra = np.divmod(counts - tail, full)
        # dealing the left-over places round and round gives every batch as many, and none two of one member
        batch = rng.permutation(full)[np.arange(extra.sum()) % full]
        np.add.at(table, (batch, np.repeat(np.arange(len(counts)), extra)), 1)
        table += every
    members = np.arange(len(counts))
    places = np.repeat(np.tile(members, full), table.ravel()).reshape(full, batch_size)
    return np.concatenate([rng.permuted(places, axis=1).ravel(), rng.permutation(np.repeat(members, tail))])
