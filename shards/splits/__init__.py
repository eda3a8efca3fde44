"""Dividing a data set into train, val and test, keeping related samples together.

Whatever a division goes by, samples of one ``group`` (records of one physical sample) stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shards.errors import DataError
from shards.manifest import Split
from shards.splits.held_out import by_cluster, by_time, by_top_quantile
from shards.splits.plan import UNASSIGNED, Division, SampleInfo, SplitPlan
from shards.splits.tagged import by_tag, group_split, units_of

__all__ = ["Division", "SampleInfo", "SplitPlan", "group_split", "make_split", "units_of"]


def make_split(
    plan: SplitPlan, samples: Sequence[SampleInfo], vectors: Mapping[str, np.ndarray] | None = None
) -> Split:
    """Divide samples as a plan says.

    Parameters
    ----------
    plan : SplitPlan
        What to go by.
    samples : sequence of SampleInfo
        All samples of the data set; their order does not matter.
    vectors : mapping of str to ndarray, optional
        Sample id to (D,) values of ``plan.modality``.

    Returns
    -------
    Split
        Every id once; all ids of a group in one part; no part empty.

    Raises
    ------
    DataError
        Where a sample lacks what the plan goes by, or there is too little to fill every part.
    """
    if plan.by == "top_quantile":
        parts = by_top_quantile(plan, samples)
    elif plan.by == "chronological":
        parts = by_time(plan, samples)
    elif plan.by == "cluster":
        parts = by_cluster(plan, samples, vectors)
    else:
        parts = by_tag(plan, samples)
    left = {sample.id for sample in samples}.difference(*parts.values())
    if left and (plan.missing == "error" or not parts):
        raise DataError(
            f"{len(left)} of {len(samples)} samples have no {_wanted(plan)} to split by",
            where=min(left),
            do=f"add it, or set missing = '{UNASSIGNED}'",
        )
    if left:
        parts[UNASSIGNED] = sorted(left)
    return Split(by=plan.by, seed=plan.seed, parameters=plan.parameters(), ids=parts)


def _wanted(plan: SplitPlan) -> str:
    names = {"top_quantile": f"label '{plan.label}'", "chronological": f"tag or label '{plan.key}'"}
    cluster = f"modality '{plan.modality}'" if plan.modality else "tag 'formula'"
    return cluster if plan.by == "cluster" else names.get(plan.by, f"tag '{plan.by}'")
