"""Two ranks with half of the batch each train as one rank with all of it, through the real DeepSpeed engine.

The three encoders have EQUAL sizes: with unequal ones a rank that skips an encoder crashes ZeRO, with equal
ones ZeRO silently mixes up their gradients, and this is what must be caught.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn

BATCH, STEPS = 12, 3
# case: ZeRO stage, clipping norm, objective
CASES = {
    f"zero{stage}-clip{clip}-{objective}": (stage, clip, objective)
    for stage, clip, objective in [
        (0, 0.0, "anchored"), (1, 0.0, "anchored"), (2, 0.0, "anchored"),
        (0, 0.05, "all_pairs"), (1, 0.05, "all_pairs"), (2, 0.05, "all_pairs"),
    ]
}  # fmt: skip


def recipe(objective: str, clip: float) -> dict[str, Any]:
    encoder = {"kind": "vector", "hidden": 8, "dim": 6}
    table = {"kind": objective, "temperature": {"init": 0.3}}
    return {
        "name": "equality",
        "data": {"path": "none", "batch_size": BATCH},
        "modalities": {name: {"encoder": encoder} for name in "abc"},
        "projection": {"dim": 5},
        "objective": {**table, "anchor": "a"} if objective == "anchored" else table,
        "optim": {"lr": 1e-2, "epochs": 1, "warmup_epochs": 0, "grad_clip": clip, "precision": "fp32"},
    }


def samples() -> list[list[Any]]:
    """Three global batches; in each one another modality is absent from one whole half."""
    from shards.schema import Sample

    rng = np.random.default_rng(0)
    batches = []
    for absent, half in (("b", 0), ("c", 1), ("a", 0)):
        batch = []
        for row in range(BATCH):
            names = [name for name in "abc" if rng.random() < 0.75]
            names = [name for name in names if not (name == absent and (row < BATCH // 2) == (half == 0))]
            arrays = {name: {"values": rng.normal(size=6).astype(np.float32)} for name in names}
            batch.append(Sample(id=str(row), arrays=arrays))
        batches.append(batch)
    return batches


def train(cases: dict[str, tuple[int, float, str]]) -> dict[str, Any]:
    """Run every case on this rank; returns losses, gradients of the first step and the trained parameters."""
    import torch

    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from pretrain.model import MultimodalModel
    from shards.batch import collate
    from shards.order import rank_slice
    from tests.synthetic import ToyVector

    rank, world, _ = start_process_group()
    specs = {name: ToyVector(step=name).spec(name) for name in "abc"}
    fitted = {name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in "abc"}
    results = {}
    for case, (stage, clip, objective) in cases.items():
        config = parse_recipe(recipe(objective, clip), where=case)
        torch.manual_seed(0)
        model = MultimodalModel(config, specs, fitted)
        engine = Engine(
            model, config.optim, batch_size=BATCH, warmup_steps=0, total_steps=STEPS, seed=0,
            settings={"zero_optimization": {"stage": stage}},
        )  # fmt: skip
        logs, held = [], []
        for step, batch in enumerate(samples()):
            part = collate(batch[rank_slice(BATCH, rank, world)], specs)
            held.append(sorted(part.inputs))
            logs.append(engine.compute(part, step))
            engine.apply()
        parameters = {name: value.detach().float().numpy().copy() for name, value in engine.module.named_parameters()}
        results[case] = {"logs": logs, "parameters": parameters, "held": held}
    return results


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return spawn(train, 1, CASES)[0]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return spawn(train, 2, CASES)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    single = one[case]
    for rank in two:
        for step in range(STEPS):
            for name, value in single["logs"][step].items():
                assert rank[case]["logs"][step][name] == pytest.approx(value, abs=1e-5), (step, name)
        for name, value in single["parameters"].items():
            np.testing.assert_allclose(rank[case]["parameters"][name], value, atol=1e-5, rtol=0, err_msg=name)


def test_the_case_is_hard_enough(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Every step a rank lacks a modality that the other has; every parameter moves by far more than the tolerance."""
    case = next(iter(CASES))
    held = [rank[case]["held"] for rank in two]
    assert [sorted(set("abc") - set(held[0][step])) for step in range(STEPS)] == [["b"], [], ["a"]]
    assert [sorted(set("abc") - set(held[1][step])) for step in range(STEPS)] == [[], ["c"], []]
    cases = list(CASES)
    plain, clipped = (one[name]["parameters"] for name in (cases[0], cases[3]))
    assert all(np.abs(plain[name] - clipped[name]).max() > 1e-3 for name in plain if "weight" in name)
    losses = [entry["loss"] for entry in one[case]["logs"]]
    assert all(loss > 0.1 for loss in losses)


@pytest.mark.parametrize("stages", [(0, 1), (0, 2)])
def test_the_stages_of_zero_agree(stages: tuple[int, int], two: list[dict[str, Any]]) -> None:
    first, second = (two[0][f"zero{stage}-clip0.0-anchored"]["parameters"] for stage in stages)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5, rtol=0)


def skip_absent(cases: dict[str, tuple[int, float, str]]) -> dict[str, Any]:
    """The wrong way: a rank does not run the encoder of a modality that it lacks."""
    import torch

    from pretrain.model import MultimodalModel

    def encode(self: Any, batch: Any) -> Any:
        z = {}
        for name in self.specs:
            mask = batch.present[name]
            empty = torch.zeros(len(mask), 5)
            z[name] = empty
            if name in batch.inputs:
                z[name] = empty.index_copy(0, mask.nonzero().squeeze(1), self.embed(name, batch.inputs[name]))
        return z, batch.present

    MultimodalModel.encode = encode  # type: ignore[method-assign]
    return train(cases)


def test_skipping_an_absent_modality_would_be_caught(one: dict[str, Any]) -> None:
    case = "zero1-clip0.0-anchored"
    try:
        wrong = spawn(skip_absent, 2, {case: CASES[case]}, timeout_s=60)[0][case]["parameters"]
    except (RuntimeError, TimeoutError):
        return
    right = one[case]["parameters"]
    assert max(np.abs(wrong[name] - right[name]).max() for name in right) > 1e-3
