from __future__ import annotations

import numpy as np

from shards.prefetch import Plan
from shards.reader import Dataset


def test_a_plan_knows_first_and_last_reading(toy: Dataset) -> None:
    entries = toy.manifest.shards
    plan = Plan.of(entries, np.array([2, 2, 0, 2, 3, 0]))
    assert plan.entries == [entries[2], entries[0], entries[3]]
    assert plan.first == {entries[2].sha256: 0, entries[0].sha256: 2, entries[3].sha256: 4}
    assert plan.last == {entries[2].sha256: 3, entries[0].sha256: 5, entries[3].sha256: 4}
    assert Plan.of(entries, np.zeros(0, np.int64)) == Plan([], {}, {})
