"""Bytes of a step: by hand, and those that the collectives of real steps get."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.estimates.collectives import gathering, summing
from launch.estimates.traffic import traffic
from launch.estimates.work import FLOAT, Work
from tests.distributed.ranks import spawn
from tests.unit.launch.estimates.constants import WORK, cluster


def changed(**changes: Any) -> Work:
    return WORK.model_copy(update=changes)


def test_bytes_by_hand() -> None:
    work = changed(rows=32, embeddings=4, dim=127, trained=1000)
    sent = traffic(work, 8)
    assert sent.gather == sent.scatter == 7 * 32 * 4 * 128 * 4
    assert sent.gradients == 2 * 7 * 4000 / 8
    assert traffic(work.model_copy(update={"stage": 3}), 8).weights == 2 * (7 * 4000 / 8)


def test_one_rank_sends_nothing() -> None:
    assert all(traffic(changed(stage=stage), 1).total == 0 for stage in range(4))


@given(ranks=st.integers(1, 4096), per_node=st.integers(1, 16), size=st.integers(1, 10**9))
def test_a_hierarchy_sends_the_bytes_of_one_ring(ranks: int, per_node: int, size: int) -> None:
    place = cluster(per_node=per_node)
    assert sum(gathering(size, ranks, place)) == pytest.approx((ranks - 1) * size)
    assert sum(summing(size, ranks, place)) == pytest.approx(2 * (ranks - 1) / ranks * size)
    assert ranks > per_node or gathering(size, ranks, place)[1] == 0


@given(ranks=st.integers(1, 2048), stage=st.integers(0, 3), pieces=st.integers(1, 4), accumulate=st.integers(1, 4))
def test_more_ranks_more_bytes_and_all_that_is_sent_is_received(
    ranks: int, stage: int, pieces: int, accumulate: int
) -> None:
    work = changed(stage=stage, pieces=pieces, accumulate=accumulate)
    sent = traffic(work, ranks)
    assert traffic(work, 2 * ranks).total > sent.total
    # what all send to gather is what all get of the others
    part = work.rows * work.embeddings * (work.dim + 1) * FLOAT
    assert ranks * sent.gather == ranks * (ranks - 1) * part
    assert sent.gradients <= 2 * pieces * FLOAT * work.trained


def counted(stages: list[int], optim: dict[str, Any]) -> list[dict[str, float]]:
    """Bytes that the collectives of a real batch get, by operation, on this rank; the mean over an optimizer step."""
    import torch
    import torch.distributed as dist

    import pretrain.gather as gather
    from pretrain.engine import start_process_group
    from tests.distributed import toy_engine

    start_process_group()
    seen: Counter[str] = Counter()

    def counting(module: Any, name: str, label: str) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            seen[label] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
            return original(*args, **kwargs)

        setattr(module, name, wrapped)

    counting(gather, "all_gather", "gather")
    counting(gather, "reduce_scatter", "scatter")
    counting(dist, "all_reduce", "sum")
    batches = optim.get("accumulate", 1)
    results = []
    for stage in stages:
        engine = toy_engine.engine(toy_engine.zero(stage), steps=100, **optim)
        for step in range(2 * batches):
            if step == batches:
                seen.clear()
            engine.compute(toy_engine.parts()[step % 3], step)
            engine.apply()
        results.append({name: number / batches for name, number in seen.items()})
    return results


def ring(bytes_: float, ranks: int) -> float:
    """What a rank sends of a collective that was handed the whole of ``bytes_``."""
    return bytes_ * (ranks - 1) / ranks


@pytest.mark.parametrize(
    ("ranks", "optim"),
    [
        (2, {}), (4, {}), (2, {"micro_batch": 3}), (2, {"accumulate": 2}), (2, {"micro_batch": 2, "accumulate": 2}),
    ],
)  # fmt: skip
def test_the_bytes_of_real_steps_are_those_of_the_model(ranks: int, optim: dict[str, Any]) -> None:
    """What a collective is handed, W n bytes to gather and N to sum, gives what a ring sends."""
    stages = [0, 1, 2]
    rows = 12 // ranks
    pieces = -(-rows // optim.get("micro_batch", rows))
    for stage, real in zip(stages, spawn(counted, ranks, stages, optim)[0], strict=True):
        work = changed(rows=rows, stage=stage, pieces=pieces, accumulate=optim.get("accumulate", 1))
        sent = traffic(work, ranks)
        assert ring(real["gather"], ranks) == sent.gather + sent.sizes
        assert ring(real["scatter"], ranks) == sent.scatter
        # beside the gradients: loss, logs and flags
        summed = 2 * ring(real["sum"], ranks)
        assert sent.gradients <= summed <= sent.gradients + 300, stage
        # models that forget that a sum goes around twice, that one's own part stays, or the presence flags
        wrong = {"once": sent.gradients / 2, "own": sent.gradients * ranks / (ranks - 1)}
        assert not any(size <= summed <= size + 300 for size in wrong.values())
        assert ring(real["gather"], ranks) != sent.gather * work.dim / (work.dim + 1) + sent.sizes
