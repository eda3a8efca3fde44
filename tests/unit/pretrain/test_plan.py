"""The plan of a run is what the run will be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pretrain.config import parse_recipe
from pretrain.model import MultimodalModel
from pretrain.parts import fit_encoders
from pretrain.plan import Plan, make_plan, saved_bytes
from shards.batch import collate
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.pictures import CROP, build_pictures


def recipe_of(toy: Dataset, **optim: object) -> dict[str, object]:
    vector = {"kind": "vector", "hidden": 512, "dim": 64}
    return {
        "name": "plan",
        "data": {"path": str(toy.location), "batch_size": 12},
        "modalities": {"a": {"encoder": vector}, "b": {"encoder": {**vector, "hidden": 256}}},
        "projection": {"dim": 8},
        "objective": {"kind": "all_pairs"},
        "optim": {"epochs": 3, "warmup_epochs": 1, **optim},
    }


def plan(
    toy: Dataset, *, world: int = 1, zero_optimization: Mapping[str, object] | None = None, **optim: object
) -> tuple[Plan, MultimodalModel]:
    recipe = parse_recipe(recipe_of(toy, **optim), where="here")
    dataset = toy.select(["a", "b"])
    fitted = fit_encoders(recipe, dataset.modalities, lambda name: [s.arrays[name] for s in toy if name in s.arrays])
    model = MultimodalModel(recipe, dataset.modalities, fitted)
    settings = {"zero_optimization": zero_optimization or {}}
    return make_plan(recipe, dataset, model, world=world, settings=settings), model


def test_steps_rows_and_coverage_are_those_of_the_data(toy: Dataset) -> None:
    found, _ = plan(toy, world=2)
    positions = toy.positions("chemical_system", "train")
    there = {name: [name in toy[int(p)].arrays for p in positions] for name in "ab"}
    assert found.samples == len(positions)
    assert found.epoch_steps == -(-len(positions) // 12)
    assert (found.total_steps, found.warmup_steps) == (3 * found.epoch_steps, found.epoch_steps)
    assert (found.rank_rows, found.micro_batch) == (6, 6)
    assert found.coverage == {name: pytest.approx(sum(mask) / len(mask)) for name, mask in there.items()}
    assert found.pairs == {"a-b": sum(x and y for x, y in zip(there["a"], there["b"], strict=True))}


def test_parameters_are_counted_by_part(toy: Dataset) -> None:
    found, model = plan(toy)
    assert sum(found.parameters.values()) == found.trained == sum(p.numel() for p in model.parameters())
    assert found.parameters["encoder/a"] == 6 * 512 + 512 + 512 * 64 + 64
    assert found.parameters["objective"] == 1


@pytest.mark.parametrize(
    ("stage", "optimizer", "gradients"), [(0, 8.0, 4.0), (1, 12 / 4, 4.0), (2, 12 / 4, 1.0), (3, 12 / 4, 1.0)]
)
def test_zero_divides_the_states(toy: Dataset, stage: int, optimizer: float, gradients: float) -> None:
    found, _ = plan(toy, world=4, zero_optimization={"stage": stage})
    assert found.memory.optimizer == pytest.approx(optimizer * found.trained, abs=8)
    assert found.memory.gradients == pytest.approx(gradients * found.trained, abs=8)


@pytest.mark.parametrize(
    ("zero", "exchange"),
    [
        ({"stage": 0}, 4.0),
        ({"stage": 1}, 4.0),
        ({"stage": 1, "overlap_comm": True}, 8.0),
        ({"stage": 1, "overlap_comm": True, "contiguous_gradients": False}, 4.0),
        ({"stage": 2, "overlap_comm": True}, 12.0),
        ({"stage": 3}, 12.0),
    ],
)
def test_buckets_are_no_larger_than_the_model(toy: Dataset, zero: dict[str, object], exchange: float) -> None:
    """DeepSpeed's default is 500 million elements; with small ones they are what is set."""
    found, _ = plan(toy, world=4, zero_optimization=zero)
    assert found.memory.exchange == pytest.approx(exchange * found.trained, rel=0.01)
    if zero["stage"] in (1, 2):
        small, _ = plan(toy, world=4, zero_optimization={**zero, "reduce_bucket_size": 1000})
        assert small.memory.exchange == pytest.approx(exchange * 1000)


def test_what_lies_on_the_host_is_not_on_the_accelerator(toy: Dataset) -> None:
    there = {"device": "cpu"}
    usual, _ = plan(toy, world=4, zero_optimization={"stage": 3})
    found, _ = plan(toy, world=4, zero_optimization={"stage": 3, "offload_optimizer": there, "offload_param": there})
    assert (found.memory.weights, found.memory.gradients, found.memory.optimizer) == (0, 0, 0)
    assert found.memory.total == found.memory.exchange + found.memory.activations < usual.memory.total
    # weights, gradients twice, moments and the copy that is trained
    assert found.memory.host == pytest.approx(24 * found.trained / 4, rel=0.01) and usual.memory.host == 0
    half, _ = plan(toy, world=4, zero_optimization={"stage": 3, "offload_optimizer": there})
    assert half.memory.host == pytest.approx(20 * found.trained / 4, rel=0.01)
    assert half.memory.weights == usual.memory.weights


def test_a_bucket_that_cannot_be_is_refused(toy: Dataset) -> None:
    with pytest.raises(ConfigError, match="reduce_bucket_size"):
        plan(toy, zero_optimization={"stage": 1, "reduce_bucket_size": 0})


def test_frozen_parameters_have_no_states(toy: Dataset) -> None:
    whole, _ = plan(toy)
    recipe = recipe_of(toy)
    recipe["modalities"]["a"]["freeze"] = "all"  # type: ignore[index]
    parsed = parse_recipe(recipe, where="here")
    dataset = toy.select(["a", "b"])
    fitted = fit_encoders(parsed, dataset.modalities, lambda name: [s.arrays[name] for s in toy if name in s.arrays])
    model = MultimodalModel(parsed, dataset.modalities, fitted)
    found = make_plan(parsed, dataset, model, world=1, settings={})
    assert found.trained < whole.trained
    assert found.memory.optimizer == 8 * found.trained


def test_activations_are_those_of_the_whole_micro_batch(toy: Dataset) -> None:
    found, model = plan(toy)
    samples = [toy[int(p)] for p in toy.positions("chemical_system", "train")[:12]]
    measured = saved_bytes(model, collate(samples, model.specs))
    assert found.memory.activations == pytest.approx(measured, rel=0.35)
    small, _ = plan(toy, micro_batch=3)
    assert small.memory.activations < 0.5 * found.memory.activations


def test_what_a_graph_keeps_is_counted_once() -> None:
    """Against a count by hand: a linear layer keeps its input, a GELU its own."""
    from pretrain.plan import _measuring

    layer, x = torch.nn.Linear(10, 20), torch.randn(4, 10)
    seen = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    with _measuring(seen) as found:
        y = torch.nn.functional.gelu(layer(x))
        (y * y).sum()
    assert sum(found) == 4 * (4 * 10 + 4 * 20 + 4 * 20)


def test_pictures_are_seen_as_the_encoder_reads_them(tmp_path: Path) -> None:
    """A crop is cut before anything is encoded, as it is in training."""
    build_pictures(tmp_path / "set")
    dataset = Dataset(tmp_path / "set")
    tables = {
        "name": "pictures",
        "data": {"path": str(tmp_path / "set"), "batch_size": 4, "split": "chemical_system"},
        "modalities": {
            "a": {"encoder": {"kind": "vector", "dim": 8}},
            "sem": {"encoder": {"kind": "flat_image"}, "augment": {"crop": CROP}},
        },
        "projection": {"dim": 8},
        "objective": {"kind": "all_pairs"},
    }
    recipe = parse_recipe(tables, where="here")
    samples = [sample for sample in dataset if {"a", "sem"} <= sample.modalities]
    fitted = fit_encoders(recipe, dataset.modalities, lambda name: (sample.value(name) for sample in samples))
    model = MultimodalModel(recipe, dataset.modalities, fitted)
    assert make_plan(recipe, dataset, model, world=1, settings={}).memory.activations > 0
