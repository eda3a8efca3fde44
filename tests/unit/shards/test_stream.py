from __future__ import annotations

import numpy as np
import pytest
import torch

from shards.augment import Augment, Augmenter
from shards.batch import Batch
from shards.orders.sequential import Sequential
from shards.reader import Dataset
from shards.stream import BatchStream

SETTINGS = {"batch_size": 7, "seed": 3, "label_names": ["gap_ev"]}


def stream(dataset: Dataset, *, noise: float = 0.3, **changes: object) -> BatchStream:
    settings = {**SETTINGS, **changes}
    augmenter = Augmenter(dataset.modalities, {"dos": Augment(noise=noise)}, seed=settings["seed"])  # type: ignore[arg-type]
    return BatchStream(dataset, dataset.positions("chemical_system", "train"), augmenter=augmenter, **settings)  # type: ignore[arg-type]


def ids_of(batches: list[Batch]) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch.ids]


def rows(batches: list[Batch], name: str, field: str) -> np.ndarray:
    held = [batch.inputs[name][field].numpy() for batch in batches if name in batch.inputs]  # type: ignore[union-attr]
    return np.concatenate(held) if held else np.zeros(0)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_one_rank_is_the_concatenation_of_many(toy: Dataset, world: int) -> None:
    whole = list(stream(toy).epoch(5))
    parts = [list(stream(toy, rank=rank, world=world).epoch(5)) for rank in range(world)]
    assert [len(part) for part in parts] == [len(whole)] * world
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert batch.ids == ids_of(pieces)
        assert all(
            torch.equal(mask, torch.cat([piece.present[name] for piece in pieces]))
            for name, mask in batch.present.items()
        )
        np.testing.assert_array_equal(batch.labels, torch.cat([piece.labels for piece in pieces]))
        for name, field in (("a", "values"), ("dos", "intensity"), ("crystal", "number")):
            np.testing.assert_array_equal(rows([batch], name, field), rows(pieces, name, field))


def test_an_epoch_sees_each_sample_once_and_its_labels(toy: Dataset) -> None:
    batches = list(stream(toy).epoch(0))
    ids = ids_of(batches)
    assert sorted(ids) == sorted(toy.manifest.split("chemical_system").ids["train"])
    assert len(batches) == stream(toy).steps_in(0) == -(-len(ids) // 7)
    for sample_id, label in zip(ids, torch.cat([batch.labels for batch in batches]).squeeze(1), strict=True):
        known = toy[toy.position(sample_id)].labels.get("gap_ev", float("nan"))
        np.testing.assert_equal(float(label), float(np.float32(known)))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_starting_late_equals_the_tail(toy: Dataset, start: int) -> None:
    tail, late = list(stream(toy).epoch(2))[start:], list(stream(toy).epoch(2, start=start))
    assert [batch.ids for batch in late] == [batch.ids for batch in tail]
    np.testing.assert_array_equal(rows(late, "dos", "intensity"), rows(tail, "dos", "intensity"))


def test_augmentations_depend_on_seed_epoch_and_sample_alone(toy: Dataset) -> None:
    def by_id(batches: list[Batch]) -> dict[str, bytes]:
        ids = [i for b in batches for i, here in zip(b.ids, b.present["dos"], strict=True) if here]
        return dict(zip(ids, (row.tobytes() for row in rows(batches, "dos", "intensity")), strict=True))

    plain = by_id(list(stream(toy, noise=0.0).epoch(0)))
    first = by_id(list(stream(toy).epoch(0)))
    assert first == by_id(list(stream(toy, batch_size=3).epoch(0)))
    others = [by_id(list(stream(toy).epoch(1))), by_id(list(stream(toy, seed=4).epoch(0))), plain]
    for other in others:
        assert set(other) == set(first)
        assert all(other[sample_id] != first[sample_id] for sample_id in first)
    assert len(set(first.values())) == len(first)
    np.testing.assert_array_equal(  # modalities without augmentation stay as stored
        rows(list(stream(toy).epoch(0)), "a", "values"), rows(list(stream(toy, noise=0.0).epoch(0)), "a", "values")
    )


def test_without_shuffling_the_positions_are_visited_as_given(toy: Dataset) -> None:
    positions = np.array([9, 2, 30, 4])
    batches = list(BatchStream(toy, positions, batch_size=3, order=Sequential()).epoch(0))
    assert ids_of(batches) == [toy.ids[i] for i in positions]


def test_leaving_an_epoch_early_ends_its_thread(toy: Dataset) -> None:
    import threading

    batches = stream(toy).epoch(0)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
