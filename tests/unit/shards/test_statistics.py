"""Standard deviations in one pass, against numpy over all values at once."""

from __future__ import annotations

import numpy as np
import pytest

from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec
from shards.statistics import deviations, standard_deviations

TABLE = ModalitySpec(
    name="process",
    kind="table",
    fields={
        "numeric": FieldSpec(dtype="float32", shape=(5,)),
        "known": FieldSpec(dtype="uint8", shape=(5,)),
        "categories": FieldSpec(dtype="int32", shape=(2,)),
    },
)


def test_known_entries_alone_count() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal([0, 1e6, 0, -3, 7], [1, 0.5, 0, 20, 1], (200, 5)).astype(np.float32)
    known = rng.random((200, 5)) < 0.6
    known[:, 4] = False  # a column that no sample knows
    values = [
        {
            "numeric": np.where(mask, row, 0).astype(np.float32),
            "known": mask.astype(np.uint8),
            "categories": np.array([1, 2], dtype=np.int32),
        }
        for row, mask in zip(numbers, known, strict=True)
    ]
    found = deviations(TABLE, values)
    assert set(found) == {"numeric"}
    expected = np.nanstd(np.where(known, numbers, np.nan).astype(np.float64)[:, :4], axis=0)
    np.testing.assert_allclose(found["numeric"][:4], expected, rtol=1e-9, atol=1e-12)
    assert found["numeric"][4] == 0


def test_elements_of_a_ragged_axis_count_alike() -> None:
    spec = ModalitySpec(
        name="cloud",
        kind="vector",
        fields={
            "points": FieldSpec(dtype="float64", shape=("points", 3)),
            "across": FieldSpec(dtype="float32", shape=(2, "points")),
        },
    )
    rng = np.random.default_rng(1)
    values = [
        {"points": rng.normal(size=(n, 3)) * [1, 2, 3], "across": rng.normal(size=(2, n)).astype(np.float32)}
        for n in (4, 0, 1, 17)
    ]
    found = deviations(spec, values)
    assert found["points"].shape == (1, 3) and found["across"].shape == (2, 1)
    np.testing.assert_allclose(found["points"][0], np.concatenate([v["points"] for v in values]).std(0))
    joined = np.concatenate([v["across"] for v in values], axis=1).astype(np.float64)
    np.testing.assert_allclose(found["across"][:, 0], joined.std(1))


def test_the_given_part_alone_is_measured(toy: Dataset) -> None:
    train, val = (toy.positions("chemical_system", part) for part in ("train", "val"))
    rows = {
        name: np.stack([toy[int(i)].arrays["a"]["values"].astype(np.float64) for i in part])
        for name, part in (("train", train), ("val", val))
    }
    found = standard_deviations(toy, train[::-1], "a")["values"]
    np.testing.assert_allclose(found, rows["train"].std(0), rtol=1e-12)
    assert np.abs(found / np.concatenate([*rows.values()]).std(0) - 1).max() > 1e-3


def test_where_a_modality_is_absent_nothing_counts(toy: Dataset) -> None:
    positions = np.arange(len(toy))
    present = positions[toy.presence("dos")]
    assert len(present) < len(positions)
    whole, held = (standard_deviations(toy, part, "dos")["intensity"] for part in (positions, present))
    assert np.array_equal(whole, held)


@pytest.mark.parametrize("limit", [5, 20])
def test_a_limit_draws_from_the_whole_part(toy: Dataset, limit: int) -> None:
    read: list[int] = []

    class Watched:
        modalities = toy.modalities

        def select(self, names):
            assert names == ["a"]
            return self

        def __getitem__(self, position):
            read.append(position)
            return toy[position]

    positions = np.arange(len(toy))
    found = standard_deviations(Watched(), positions, "a", limit=limit)["values"]  # type: ignore[arg-type]
    assert len(set(read)) == len(read) == limit and max(read) > len(toy) // 2
    assert np.array_equal(found, standard_deviations(toy, positions[::-1], "a", limit=limit)["values"])
