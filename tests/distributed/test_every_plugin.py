"""Every encoder, fusion and objective trains two steps on two ranks, of which one lacks the modality in the second."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pretrain.encoders.base import ENCODERS
from pretrain.fusion.base import FUSIONS
from pretrain.objectives.base import OBJECTIVES
from tests.distributed.ranks import spawn

NAMES = ("a", "b", "c")
JOINT = {"joint": {"kind": "concat", "dim": 6}}
# what an objective needs beside its kind, and the fusions that it reads
OBJECTIVE_TABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "anchored": ({"anchor": "a"}, {}),
    "frozen_anchor": ({"anchor": "a"}, {}),
    "fused_anchor": ({"anchor": "joint"}, JOINT),
    "comm": ({"fusion": "joint"}, JOINT),
    "gram": ({"anchor": "a"}, {}),
    "calmrl": ({"latent": 2, "warmup_steps": 0}, {}),
    "weighted_sum": ({"terms": [{"objective": {"kind": "all_pairs"}}, {"objective": {"kind": "symile"}}]}, {}),
}
SMALL_FUSIONS = {
    kind: {"kind": kind, "dim": 8, **({} if kind in ("concat", "gated", "low_rank_tensor") else {"heads": 2})}
    for kind in FUSIONS.kinds()
}
CASES = [
    *(("encoder", kind) for kind in ENCODERS.kinds()),
    *(("fusion", kind) for kind in FUSIONS.kinds()),
    *(("objective", kind) for kind in OBJECTIVES.kinds() if not kind.startswith("test_")),
]


def case_of(family: str, kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[Any]]:
    """Recipe, specs, fitted values and eight samples of a case."""
    import numpy as np

    from shards.schema import Sample
    from tests.small_models import FITTED, SPECS
    from tests.unit.pretrain import test_encoders as known

    rng = np.random.default_rng(0)
    specs, encoders = dict(SPECS), {name: {"kind": "vector", "hidden": 8, "dim": 6} for name in NAMES}
    fitted: dict[str, Any] = dict(FITTED)
    arrays = [{name: {"values": rng.normal(size=6).astype(np.float32)} for name in NAMES} for _ in range(8)]
    texts: list[dict[str, str]] = [{} for _ in range(8)]
    tables: dict[str, Any] = {"objective": {"kind": "all_pairs"}, "fusions": {}}
    if family == "encoder":
        subject, options = known.SMALL[kind][0], known.SMALL[kind][1][0]
        values, spec = known.rows(subject), known.SPECS[subject].model_copy(update={"name": "a"})
        specs["a"], encoders["a"] = spec, {"kind": kind, **options}
        fitted["a"] = ENCODERS.get(kind).fit(spec, ENCODERS.options(encoders["a"]), values)
        for row in range(8):
            value = values[row % len(values)]
            if isinstance(value, str):
                texts[row], _ = {"a": value}, arrays[row].pop("a")
            else:
                arrays[row]["a"] = value
    elif family == "fusion":
        # an input with tokens, for those that attend
        _, _, _, with_tokens = case_of("encoder", "spectrum_transformer")
        subject = known.SMALL["spectrum_transformer"][0]
        specs["a"] = known.SPECS[subject].model_copy(update={"name": "a"})
        encoders["a"] = {"kind": "spectrum_transformer", "depth": 0, "dim": 16, "patch": 8}
        options = ENCODERS.options(encoders["a"])
        fitted["a"] = ENCODERS.get("spectrum_transformer").fit(specs["a"], options, known.rows(subject))
        for row in range(8):
            arrays[row]["a"] = with_tokens[row].arrays["a"]
        tables = {"objective": {"kind": "fused_anchor"}, "fusions": {"joint": SMALL_FUSIONS[kind]}}
    else:
        options, fusions = OBJECTIVE_TABLES.get(kind, ({}, {}))
        tables = {"objective": {"kind": kind, **options}, "fusions": fusions}
    recipe = {
        "name": kind,
        "data": {"path": "none", "batch_size": 8},
        "modalities": {name: {"encoder": encoder} for name, encoder in encoders.items()},
        "projection": {"dim": 5},
        "optim": {"lr": 1e-2, "epochs": 1, "warmup_epochs": 0, "precision": "fp32"},
        **tables,
    }
    samples = [Sample(id=str(row), arrays=arrays[row], text=texts[row]) for row in range(8)]
    return recipe, specs, fitted, samples


def train(cases: list[tuple[str, str]]) -> dict[str, Any]:
    """Two steps of every case on this rank: losses, and which parts of the subject never moved."""
    from dataclasses import replace

    import torch

    from pretrain.config import parse_recipe
    from pretrain.engine import Engine, start_process_group
    from pretrain.model import MultimodalModel
    from shards.batch import collate

    rank, _, _ = start_process_group()
    mine, results = slice(4 * rank, 4 * rank + 4), {}
    for family, kind in cases:
        tables, specs, fitted, samples = case_of(family, kind)
        recipe = parse_recipe(tables, where=kind)
        torch.manual_seed(0)
        model = MultimodalModel(recipe, specs, fitted)
        engine = Engine(
            model, recipe.optim, batch_size=8, warmup_steps=0, total_steps=10, seed=0,
            settings={"zero_optimization": {"stage": 1}},
        )  # fmt: skip
        lacking = [
            replace(s, arrays={n: v for n, v in s.arrays.items() if n != "a"}, text={}) if int(s.id) >= 4 else s
            for s in samples
        ]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses = []
        for step, part in enumerate((samples, lacking)):
            batch = collate(part[mine], specs)
            losses.append(engine.compute(replace(batch, twin=batch), step)["loss"])
            engine.apply()
        moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p.detach())}
        subject = {"encoder": "encoders.a", "fusion": "fusions", "objective": "encoders.b"}[family]
        here = {name for name in before if name.startswith(subject)}
        results[f"{family}-{kind}"] = {"losses": losses, "moved": len(here & moved) / len(here)}
    return results


@pytest.fixture(scope="module")
def trained() -> list[dict[str, Any]]:
    return spawn(train, 2, CASES)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_two_steps_on_two_ranks(trained: list[dict[str, Any]], family: str, kind: str) -> None:
    first, second = (rank[f"{family}-{kind}"] for rank in trained)
    assert first["losses"] == second["losses"]
    assert all(math.isfinite(loss) for loss in first["losses"])
    assert first["losses"][0] != 0
    assert first["moved"] > 0.7  # what stands for an absent input learns where one is absent
