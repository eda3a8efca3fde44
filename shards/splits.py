"""Dividing a data set into train, val and test, keeping related samples together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shards.errors import DataError
from shards.manifest import Split


def group_split(groups: Mapping[str, str], *, by: str, fractions: Mapping[str, float], seed: int) -> Split:
    """Divide samples by whole groups.

    Parameters
    ----------
    groups : mapping of str to str
        Sample id to the name of its group.
    by : str
        What the groups are (``chemical_system``), for the record.
    fractions : mapping of str to float
        Part to its share of the samples; the shares add up to 1.
    seed : int
        Order in which groups are dealt out.

    Returns
    -------
    Split
        Every id once; all ids of a group in one part; each part non-empty.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) <= 0:
        raise DataError("the shares of a split must be positive and add up to 1", why=str(dict(fractions)))
    members: dict[str, list[str]] = {}
    for sample_id in sorted(groups):
        members.setdefault(groups[sample_id], []).append(sample_id)
    if len(members) < len(fractions):
        raise DataError(f"{len(members)} groups cannot fill {len(fractions)} parts", why=f"grouped by {by}")
    wanted = {part: share * len(groups) for part, share in fractions.items()}
    parts: dict[str, list[str]] = {part: [] for part in fractions}
    names = sorted(members)
    for name in (names[i] for i in np.random.default_rng(seed).permutation(len(names))):
        # the part that is furthest below its share takes the next group
        part = min(parts, key=lambda p: len(parts[p]) / wanted[p])
        parts[part] += members[name]
    return Split(by=by, seed=seed, ids={part: sorted(ids) for part, ids in parts.items()})
