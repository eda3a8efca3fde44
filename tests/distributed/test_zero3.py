"""ZeRO 3, under which no rank holds a whole parameter: validation, export and moving averages see whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import spawn
from tests.distributed.toy_engine import BATCH, NAMES, engine, parts, recipe, samples, specs, zero

STEPS = 3


class Part:
    """What `embed_all` reads: this rank's part of each batch, of which one rank may have none."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def epoch(self, number: int) -> Any:
        return iter(self.batches)


def run(folder: str, stage: int) -> dict[str, Any]:
    import torch.distributed as dist

    from pretrain.config import parse_recipe
    from pretrain.evaluate import embed_all
    from pretrain.export import read_export, write_export
    from shards.batch import collate

    one = engine(zero(stage), steps=STEPS)
    batches = parts(STEPS)
    seen: list[dict[str, np.ndarray]] = []
    for step, part in enumerate(batches):
        one.compute(part, step)
        one.apply()
        # all rows are the last rank's: the others have an empty part
        rows = samples(STEPS)[step] if one.rank == one.world - 1 else []
        z, present = embed_all(one.module, Part([collate(rows, specs())]))
        assert present["a"].shape == (BATCH,)
        seen.append({name: value.numpy().copy() for name, value in z.items()})
    partitioned = [parameter.numel() for parameter in one.module.parameters()]
    with one.whole():
        inside = {name: value.detach().numpy().copy() for name, value in one.module.named_parameters()}
    weights = one.weights()
    target = Path(folder) / f"export-{stage}-{one.world}"
    if one.rank == 0:
        write_export(
            target, one.module, parse_recipe(recipe(), where="toy"),
            {name: {"mean": [0.0] * 6, "std": [1.0] * 6} for name in NAMES},
            step=STEPS, data_name="toy", data_sha256="0", data_contents=[], validation=[], weights=weights,
        )  # fmt: skip
    dist.barrier()
    export = read_export(target)
    alone = {
        name: rows.detach().numpy().copy()
        for name, rows in export.build().encode(collate(samples(STEPS)[-1], specs()))[0].items()
    }
    return {
        "seen": seen, "partitioned": partitioned, "inside": inside, "names": list(weights), "alone": alone,
        "card": (target / "MODEL_CARD.md").read_text(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = str(tmp_path_factory.mktemp("exports"))
    return {"reference": spawn(run, 1, folder, 0), "three": spawn(run, 2, folder, 3)}


def test_parameters_are_spread_and_come_together(runs: dict[str, list[dict[str, Any]]]) -> None:
    reference = runs["reference"][0]
    for rank in runs["three"]:
        assert set(rank["partitioned"]) == {0}
        for name, value in reference["inside"].items():
            np.testing.assert_allclose(rank["inside"][name], value, atol=1e-5, rtol=0, err_msg=name)
    assert runs["three"][0]["names"] == reference["names"]
    assert runs["three"][1]["names"] == []


def test_validation_between_steps_is_that_of_one_rank(runs: dict[str, list[dict[str, Any]]]) -> None:
    for rank in runs["three"]:
        for mine, expected in zip(rank["seen"], runs["reference"][0]["seen"], strict=True):
            for name in NAMES:
                np.testing.assert_allclose(mine[name], expected[name], atol=1e-5, rtol=0)


def test_the_export_is_whole(runs: dict[str, list[dict[str, Any]]]) -> None:
    reference = runs["reference"][0]
    count = sum(value.size for value in reference["inside"].values())
    assert f"{count:,} parameters" in runs["three"][0]["card"]
    for name in NAMES:
        np.testing.assert_allclose(runs["three"][0]["alone"][name], reference["alone"][name], atol=1e-5, rtol=0)


def misspelt() -> str:
    from shards.errors import ConfigError

    try:
        engine({"zero_optimization": {"stage": 3, "stage3_prefetch_bucket_sise": 1}})
    except ConfigError as error:
        return str(error)
    return ""


def test_a_misspelt_key_of_zero_is_refused_by_name() -> None:
    assert "stage3_prefetch_bucket_sise" in spawn(misspelt, 1)[0]
