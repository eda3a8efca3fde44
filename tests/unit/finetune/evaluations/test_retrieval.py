"""Retrieval by the protocol of MultiMat, against ranks that are counted here."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluations.base import Subject
from finetune.evaluations.retrieval import Retrieval, retrieval_table
from finetune.loading import Foundation
from shards.errors import DataError
from shards.reader import Dataset


@pytest.fixture
def subject(foundation: Foundation, linear_data: Dataset) -> Subject:
    return Subject(model=foundation, dataset=linear_data, split="chemical_system")


def test_every_ordered_pair_over_the_whole_part(subject: Subject, foundation: Foundation, linear_data: Dataset) -> None:
    findings = Retrieval()(subject)
    rows = {(row["query"], row["target"]): row for row in findings.tables["retrieval"]}
    assert set(rows) == {(a, b) for a in "abc" for b in "abc" if a != b}
    samples = [linear_data[int(i)] for i in linear_data.positions("chemical_system", "test")]
    complete = [sample for sample in samples if sample.modalities >= set("abc")]
    row, n = rows["a", "b"], len(complete)
    scores = foundation.embed(complete, "a") @ foundation.embed(complete, "b").T
    rank = (scores >= np.diag(scores)[:, None]).sum(1)
    assert row["n"] == n and row["mean_rank"] == pytest.approx(rank.mean())
    for k in (1, 5, 10, 25):
        assert row[f"recall_at_{k}"] == pytest.approx((rank <= k).mean())
        assert row[f"chance_at_{k}"] == pytest.approx(k / n)
        assert findings.values[f"a-b/recall_at_{k}"] == row[f"recall_at_{k}"]
    # untrained: about as good as chance
    assert abs(row["mean_rank"] - (n + 1) / 2) < 0.35 * n


def test_pairs_may_be_measured_on_all_samples_that_have_both(subject: Subject) -> None:
    pairs = Retrieval(complete_only=False)(subject).tables["retrieval"]
    complete = Retrieval()(subject).tables["retrieval"]
    more = [wide["n"] - narrow["n"] for wide, narrow in zip(pairs, complete, strict=True)]
    # every sample has 'a', so that those with the two others are complete
    assert [extra > 0 for extra in more] == ["a" in (row["query"], row["target"]) for row in pairs]


def test_the_table_is_what_the_evaluation_shows(subject: Subject, foundation: Foundation) -> None:
    rows = retrieval_table(foundation, subject.dataset, ks=(1, 5, 10, 25))
    assert rows == Retrieval()(subject).tables["retrieval"]


def test_a_part_that_is_not_there_is_named(foundation: Foundation, linear_data: Dataset) -> None:
    with pytest.raises(DataError, match="no part"):
        retrieval_table(foundation, linear_data, part="nowhere")
