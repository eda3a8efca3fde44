"""Random divisions that keep samples of equal tag and equal group together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from shards.errors import DataError
from shards.manifest import Split
from shards.splits.plan import SampleInfo, SplitPlan


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
    # written so that NaN is refused
    if not (abs(sum(fractions.values()) - 1) <= 1e-9 and min(fractions.values()) > 0):
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


def by_tag(plan: SplitPlan, samples: Sequence[SampleInfo]) -> dict[str, list[str]]:
    """Divide at random; samples without the tag are left out, unless others of their group have it."""
    groups = units_of(plan.by, samples)
    return group_split(groups, by=plan.by, fractions=plan.fractions, seed=plan.seed).ids if groups else {}


def units_of(by: str, samples: Sequence[SampleInfo]) -> dict[str, str]:
    """Return for each sample id the name of what cannot be torn apart: samples of equal tag, and of one group.

    Samples without the tag are left out, unless others of their group have it.
    """
    tagged = [(value, sample) for sample in samples if (value := _tag(sample, by)) is not None]
    joined = _joined((value, sample.whole) for value, sample in tagged)
    units = {sample.whole: joined[value] for value, sample in tagged}
    return {sample.id: units[sample.whole] for sample in samples if sample.whole in units}


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return for each value the least one that groups connect it with.

    Two values are connected where samples of one group have them: then neither the values nor the
    group can be torn apart.
    """
    parent: dict[str, str] = {}

    def root(value: str) -> str:
        while parent[value] != value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    first: dict[str, str] = {}
    for value, group in pairs:
        parent.setdefault(value, value)
        a, b = root(value), root(first.setdefault(group, value))
        parent[max(a, b)] = min(a, b)
    return {value: root(value) for value in parent}


def _tag(sample: SampleInfo, by: str) -> str | None:
    """Return the value that keeps samples together, None where it is unknown."""
    if by in ("id", "group"):
        return sample.whole
    formula = sample.tags.get("formula")
    if by == "formula":
        return None if formula is None else _composition(formula)[0]
    value = sample.tags.get(by)
    if by != "chemical_system":
        return value
    if value is None:
        return None if formula is None else _composition(formula)[1]
    # tables of two origins may order the elements in two ways
    return "-".join(sorted(value.split("-")))


@lru_cache(maxsize=1 << 18)
def _composition(formula: str) -> tuple[str, str | None]:
    """Return the reduced formula, or the text itself where it is none, and the chemical system."""
    from pymatgen.core import Composition

    try:
        composition = Composition(formula)
        return composition.reduced_formula, composition.chemical_system
    except (ValueError, OverflowError):
        return formula, None
