"""Divisions that hold out what is extreme, new or unlike the rest: by a label, by time, by cluster.

Each returns the ids of the parts; samples that lack what the division goes by are left out, unless
others of their group have it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np

from shards.errors import ConfigError, DataError
from shards.splits.plan import HELD_OUT, SampleInfo, SplitPlan
from shards.splits.tagged import group_split

Parts = dict[str, list[str]]
V = TypeVar("V")
DATE = re.compile(r"(\d{4})(?:-(\d{2}))?")


def by_top_quantile(plan: SplitPlan, samples: Sequence[SampleInfo]) -> Parts:
    """Hold out the groups with the highest values of a label (Segal et al., arXiv:2502.05970).

    Of n labelled samples, floor(quantile * n) or at least one are held out, and all that equal the lowest of them.
    """
    assert plan.label is not None
    groups = _grouped(samples, lambda sample: sample.labels.get(plan.label or ""))
    labels = sorted(value for _, values in groups.values() for value in values)
    if not labels:
        return {}
    # the small number keeps 0.29 * 100 from becoming 28
    threshold = labels[-max(1, math.floor(plan.quantile * len(labels) + 1e-9))]
    held_out = {group for group, (_, values) in groups.items() if max(values) >= threshold}
    return _held_out(plan, {group: ids for group, (ids, _) in groups.items()}, held_out)


def by_time(plan: SplitPlan, samples: Sequence[SampleInfo]) -> Parts:
    """Deal out the samples from the oldest to the newest: train first, test last, other parts between as named.

    A group counts from its newest sample. Samples of equal time stay together; the cuts are those nearest
    to the shares.
    """
    groups = _grouped(samples, lambda sample: _time(sample, plan.key or ""))
    by_moment: dict[float, list[str]] = {}
    for ids, values in groups.values():
        by_moment.setdefault(max(values), []).extend(ids)
    if not by_moment:
        return {}
    moments, order = sorted(by_moment), {"train": -1, HELD_OUT: 1}
    names = sorted(plan.fractions, key=lambda part: order.get(part, 0))
    if len(moments) < len(names):
        raise DataError(f"{len(moments)} different times cannot fill {len(names)} parts", where=plan.key)
    counts = np.cumsum([len(by_moment[moment]) for moment in moments])
    parts, start, share = {}, 0, 0.0
    for number, part in enumerate(names):
        share += plan.fractions[part]
        # every part takes one moment at least, and leaves one for each of those that follow
        last = len(moments) - (len(names) - number)
        end = start + int(np.abs(counts[start : last + 1] - share * counts[-1]).argmin()) + 1
        end = end if number < len(names) - 1 else len(moments)
        parts[part] = sorted(i for moment in moments[start:end] for i in by_moment[moment])
        start = end
    return parts


def by_cluster(plan: SplitPlan, samples: Sequence[SampleInfo], vectors: Mapping[str, np.ndarray] | None) -> Parts:
    """Hold out one cluster of k-means over standardised features; a group lies at the mean of its samples."""
    if plan.modality is None:
        vectors = composition_features(samples)
    elif vectors is None:
        raise ConfigError(
            f"the vectors of '{plan.modality}' are not at hand while a data set is built",
            do=f"build without this split, then: matloom shards split FOLDER NAME --by cluster "
            f"--set features={plan.modality}",
        )
    groups = _grouped(samples, lambda sample: vectors.get(sample.id))
    if not groups:
        return {}
    names = sorted(groups)
    points = np.stack([np.mean(groups[name][1], axis=0) for name in names]).astype(np.float64)
    spread = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    different = len(np.unique(points, axis=0))
    if different < plan.clusters:
        raise DataError(f"{different} different samples cannot form {plan.clusters} clusters", where=plan.features)
    cluster = _clusters(points, np.array([len(groups[name][0]) for name in names]), plan.clusters, plan.seed)
    held_out = {name for name, number in zip(names, cluster, strict=True) if number == plan.held_out}
    return _held_out(plan, {name: ids for name, (ids, _) in groups.items()}, held_out)


def composition_features(samples: Sequence[SampleInfo]) -> dict[str, np.ndarray]:
    """Return mean and standard deviation of the elements' descriptors over the composition of the tag ``formula``.

    Returns
    -------
    dict of str to ndarray
        Sample id to (2 F,) float64; samples without the tag, or with one that is no formula, are left out.
    """
    from pymatgen.core import Composition

    from shards.elements import element_features

    table, result = element_features().astype(np.float64), {}
    for sample in samples:
        try:
            amounts = Composition(sample.tags["formula"]).get_el_amt_dict()
            rows = table[[_atomic_number(symbol) for symbol in amounts]]
        except (KeyError, ValueError):
            continue
        shares = np.array(list(amounts.values()))
        if not 0 < shares.sum() < np.inf:
            continue
        mean = np.average(rows, axis=0, weights=shares)
        variance = np.average((rows - mean) ** 2, axis=0, weights=shares)
        result[sample.id] = np.concatenate([mean, np.sqrt(variance)])
    return result


def _atomic_number(symbol: str) -> int:
    from pymatgen.core import Element

    return Element(symbol).Z


def _clusters(points: np.ndarray, weights: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return (n,) cluster numbers, the heaviest cluster first."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # sums over threads are rounded differently from machine to machine
    with threadpool_limits(1):
        found = KMeans(count, n_init=10, random_state=seed).fit(points, sample_weight=weights).labels_
    sizes = np.bincount(found, weights=weights, minlength=count)
    first = np.array([np.append(np.flatnonzero(found == i), len(found))[0] for i in range(count)])
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(count)
    return rank[found]


def _grouped(
    samples: Sequence[SampleInfo], value: Callable[[SampleInfo], V | None]
) -> dict[str, tuple[list[str], list[V]]]:
    """Return ids and known values of each group that has a known value, everything in an order of its own."""
    groups: dict[str, tuple[list[str], list[V]]] = {}
    for sample in sorted(samples, key=lambda sample: sample.id):
        ids, values = groups.setdefault(sample.whole, ([], []))
        ids.append(sample.id)
        found = value(sample)
        if found is not None:
            values.append(found)
    return {name: content for name, content in groups.items() if content[1]}


def _held_out(plan: SplitPlan, groups: Mapping[str, list[str]], held_out: set[str]) -> Parts:
    """Make ``held_out`` the test part and deal the other groups out at random."""
    rest = {sample_id: name for name, ids in groups.items() if name not in held_out for sample_id in ids}
    fractions = {part: share for part, share in plan.fractions.items() if part != HELD_OUT}
    total = sum(fractions.values())
    shares = {part: share / total for part, share in fractions.items()}
    parts = group_split(rest, by=f"what {plan.by} leaves", fractions=shares, seed=plan.seed).ids
    return {**parts, HELD_OUT: sorted(sample_id for name in held_out for sample_id in groups[name])}


def _time(sample: SampleInfo, key: str) -> float | None:
    """Return a label, or the date in a tag as seconds since 1970 in UTC, None where there is neither."""
    if key in sample.labels:
        return sample.labels[key]
    text = sample.tags.get(key)
    if text is None:
        return None
    short = DATE.fullmatch(text.strip())
    try:
        moment = datetime(int(short[1]), int(short[2] or 1), 1) if short else datetime.fromisoformat(text.strip())
    except ValueError:
        raise DataError(
            f"tag '{key}' holds no date: '{text}'", where=sample.id, do="write a year, 2019-07, or an ISO 8601 date"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
