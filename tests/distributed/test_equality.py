"""Two ranks with half of the batch each train as one rank with all of it, through the real DeepSpeed engine.

See `tests.distributed.toy_engine` for why it is as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.distributed.ranks import OUT_OF_STEP, spawn
from tests.distributed.toy_engine import STEPS, engine, parts, whole, zero

# case: ZeRO stage, clipping norm, objective, precision
CASES = {
    f"zero{stage}-clip{clip}-{objective}": (stage, clip, objective)
    for clip, objective in ((0.0, "anchored"), (0.05, "all_pairs"))
    for stage in range(4)
}
Cases = dict[str, tuple[int, float, str]]


def train(cases: Cases) -> dict[str, Any]:
    """Run every case on this rank; returns what was logged, the trained parameters and which modalities it held."""
    results = {}
    for case, (stage, clip, objective) in cases.items():
        run = engine(zero(stage), objective, grad_clip=clip)
        logs, norms, held = [], [], []
        for step, part in enumerate(parts()):
            held.append(sorted(part.inputs))
            logs.append(run.compute(part, step))
            norms.append({k.removeprefix("grad_norm/"): v for k, v in run.gradient_norms().items()})
            run.apply()
        results[case] = {"logs": logs, "norms": norms, "parameters": whole(run), "held": held}
    return results


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return spawn(train, 1, CASES)[0]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return spawn(train, 2, CASES)


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return spawn(train, 4, {case: CASES[case] for case in ("zero2-clip0.05-all_pairs", "zero3-clip0.05-all_pairs")})


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one(case: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    compare(case, one[case], two)


@pytest.mark.parametrize("stage", [2, 3])
def test_four_ranks_train_as_one(stage: int, one: dict[str, Any], four: list[dict[str, Any]]) -> None:
    case = f"zero{stage}-clip0.05-all_pairs"
    compare(case, one[case], four)


def compare(case: str, single: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for step in range(STEPS):
            for name, value in single["logs"][step].items():
                assert rank[case]["logs"][step][name] == pytest.approx(value, abs=1e-5), (step, name)
            assert rank[case]["norms"][step] == pytest.approx(single["norms"][step], abs=1e-5)
        for name, value in single["parameters"].items():
            np.testing.assert_allclose(rank[case]["parameters"][name], value, atol=1e-5, rtol=0, err_msg=name)


def test_the_case_is_hard_enough(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Every step a rank lacks a modality that the other has; every parameter moves by far more than the tolerance."""
    case = next(iter(CASES))
    held = [rank[case]["held"] for rank in two]
    assert [sorted(set("abc") - set(held[0][step])) for step in range(STEPS)] == [["b"], [], ["a"]]
    assert [sorted(set("abc") - set(held[1][step])) for step in range(STEPS)] == [[], ["c"], []]
    cases = list(CASES)
    plain, clipped = (one[name]["parameters"] for name in (cases[0], cases[4]))
    assert all(np.abs(plain[name] - clipped[name]).max() > 1e-3 for name in plain if "weight" in name)
    losses = [entry["loss"] for entry in one[case]["logs"]]
    assert all(loss > 0.1 for loss in losses)


@pytest.mark.parametrize("stages", [(0, 1), (0, 2), (0, 3)])
def test_the_stages_of_zero_agree(stages: tuple[int, int], two: list[dict[str, Any]]) -> None:
    runs = [two[0][f"zero{stage}-clip0.0-anchored"] for stage in stages]
    first, second = (run["parameters"] for run in runs)
    assert [pytest.approx(norms, abs=1e-5) for norms in runs[0]["norms"]] == runs[1]["norms"]
    assert set(runs[0]["norms"][0]) == {"a", "b", "c", "objective"}
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=1e-5, rtol=0)


def skip_absent(cases: Cases) -> dict[str, Any]:
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
    except (RuntimeError, TimeoutError) as error:
        if not OUT_OF_STEP.search(str(error)):
            raise
        return
    right = one[case]["parameters"]
    assert max(np.abs(wrong[name] - right[name]).max() for name in right) > 1e-3
