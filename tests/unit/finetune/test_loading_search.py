from __future__ import annotations

import numpy as np
import pytest

from finetune.loading import Foundation
from finetune.search import Index
from shards.errors import ConfigError, DataError
from shards.reader import Dataset


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(foundation: Foundation, toy: Dataset) -> None:
    samples = list(toy)
    many = foundation.embed(samples, "a", batch_size=7)
    one = foundation.embed(samples[3], "a")
    assert many.shape == (60, 8) and one.shape == (8,)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(many[3], one, atol=1e-6)


def test_the_first_modality_that_a_material_has_is_the_default(foundation: Foundation, toy: Dataset) -> None:
    sample = toy[0]
    np.testing.assert_array_equal(foundation.embed(sample), foundation.embed(sample, "a"))


def test_an_absent_modality_is_said(foundation: Foundation, toy: Dataset) -> None:
    lacking = next(sample for sample in toy if "b" not in sample.modalities)
    with pytest.raises(DataError, match=r"no modality 'b'"):
        foundation.embed(lacking, "b")
    with pytest.raises(ConfigError, match="known: a, b, c"):
        foundation.embed(lacking, "zzz")


def test_a_material_finds_itself_first(foundation: Foundation, toy: Dataset) -> None:
    index = Index.build(foundation, toy, "a")
    for position in (0, 17, 59):
        hits = index.nearest(foundation.embed(toy[position], "a"), k=5)
        assert hits[0].id == toy.ids[position] and hits[0].similarity == pytest.approx(1, abs=1e-5)
        assert [hit.similarity for hit in hits] == sorted((hit.similarity for hit in hits), reverse=True)


def test_only_samples_with_the_modality_are_candidates(foundation: Foundation, toy: Dataset) -> None:
    index = Index.build(foundation, toy, "b")
    assert 0 < len(index.samples) < len(toy)
    there = [sample.id for sample in toy if "b" in sample.modalities]
    assert [sample.id for sample in index.samples] == there
    assert not any(sample.modalities for sample in index.samples), "an index holds no arrays"
