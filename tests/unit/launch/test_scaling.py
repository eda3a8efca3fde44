"""The scaling model: limits that can be worked out by hand, and the bytes of real collectives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from launch.scaling import Cluster, Link, Work, efficiency, step_time, traffic
from tests.distributed.ranks import spawn

WORK = Work(
    rows=6, embeddings=3, dim=5, pairs=2, parameters=437, stage=0, compute_s=0.1, logits_per_s=1e9, checkpoint_every=100
)
CLUSTER = Cluster(
    ranks_per_node=8, within=Link(latency_s=1e-6, bandwidth=1e11), between=Link(latency_s=5e-6, bandwidth=2e10),
    storage_write=1e10, storage_per_node=1e9,
)  # fmt: skip


def test_one_rank_sends_nothing_and_is_fully_efficient() -> None:
    for stage in range(4):
        work = replace(WORK, stage=stage)
        assert traffic(work, 1).total == 0
        assert efficiency(work, CLUSTER, 1) == 1.0


def test_bytes_by_hand() -> None:
    work = replace(WORK, rows=32, embeddings=4, dim=127, parameters=1000)
    sent = traffic(work, 8)
    assert sent.gather == sent.scatter == 7 * 32 * 4 * 128 * 4
    assert sent.gradients == 2 * 7 * 4000 // 8
    assert traffic(replace(work, stage=3), 8).weights == 2 * (7 * 4000 // 8)


def test_efficiency_falls_with_ranks_and_slower_links_and_rises_with_compute() -> None:
    found = [efficiency(WORK, CLUSTER, ranks) for ranks in (1, 8, 64, 512, 4096)]
    assert found == sorted(found, reverse=True)
    assert efficiency(replace(WORK, compute_s=1.0), CLUSTER, 512) > found[3]
    slow = replace(CLUSTER, between=Link(latency_s=5e-6, bandwidth=1e8))
    assert efficiency(WORK, slow, 512) < found[3]
    assert efficiency(WORK, slow, 8) == found[1]


def test_more_nodes_write_a_checkpoint_faster_up_to_the_storage() -> None:
    times = [step_time(WORK, CLUSTER, ranks).checkpoint for ranks in (8, 16, 80, 800)]
    assert times[0] == pytest.approx(2 * times[1])
    assert times[2] == times[3]


def counted(stages: list[int]) -> list[dict[str, int]]:
    """Bytes that the collectives of one real step get, by operation, on this rank."""
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
    results = []
    for stage in stages:
        engine = toy_engine.engine(toy_engine.zero(stage))
        for step, batch in enumerate(toy_engine.parts()[:2]):
            seen.clear()
            engine.compute(batch, step)
            engine.apply()
        results.append(dict(seen))
    return results


def test_the_bytes_of_a_real_step_are_those_of_the_model() -> None:
    """What a collective is handed, W n bytes to gather and N to sum, gives what a ring sends."""
    for stage, real in zip((0, 1, 2), spawn(counted, 2, [0, 1, 2])[0], strict=True):
        sent = traffic(replace(WORK, rows=6, parameters=437, stage=stage), 2)
        assert real["gather"] // 2 == sent.gather + sent.sizes
        assert real["scatter"] // 2 == sent.scatter
        # beside the gradients: loss, logs and flags
        assert sent.gradients <= real["sum"] * 2 // 2 <= sent.gradients + 200
