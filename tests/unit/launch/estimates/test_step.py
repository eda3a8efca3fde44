"""Seconds of a step: limits that can be worked out by hand, and what must hold for all constants."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.estimates.cluster import Link, Storage
from launch.estimates.collectives import ring_latency, sum_latency
from launch.estimates.run import this_host
from launch.estimates.step import cached, checkpoint_time, efficiency, step_time
from launch.estimates.table import scaling_rows, training_rows
from launch.estimates.work import Spent, Work, host_memory, rank_memory, slowest
from pretrain.memory import Buffers
from shards.errors import ConfigError
from tests.unit.launch.estimates.constants import SPENT, WORK, cluster

COUNTS = [1, 2, 4, 8, 16, 64, 512, 4096]


def changed(**changes: Any) -> Work:
    return WORK.model_copy(update=changes)


works = st.builds(
    lambda rows, trained, stage, bucket, spread, pieces: changed(
        rows=rows, trained=trained, stage=stage, bucket=bucket, spread=spread, pieces=pieces
    ),
    st.integers(1, 4096),
    st.integers(1, 10**9),
    st.integers(0, 3),
    st.sampled_from([0, 10**6, 10**8]),
    st.floats(0, 1),
    st.integers(1, 4),
)


@given(work=works)
def test_one_rank_takes_what_was_measured(work: Work) -> None:
    step = step_time(work, cluster(), 1)
    assert step.compute + step.optimizer == pytest.approx(SPENT.total)
    assert step.gather == step.exchange == step.latency == step.loss == step.slowest == 0
    assert efficiency(work, cluster(), 1) == 1


@given(work=works, ranks=st.sampled_from(COUNTS), factor=st.floats(1.1, 100))
def test_a_slower_network_never_helps_and_more_compute_is_more_efficient(work: Work, ranks: int, factor: float) -> None:
    usual, slow = cluster(), cluster(between=Link(latency="50 us", bandwidth=f"{20 / factor} GB/s"))
    assert step_time(work, slow, ranks).total >= step_time(work, usual, ranks).total
    assert ranks > 8 or step_time(work, slow, ranks) == step_time(work, usual, ranks)
    work = work.model_copy(update={"spent": SPENT.model_copy(update={"optimizer": 0.0})})
    longer = work.model_copy(update={"spent": work.spent.model_copy(update={"forward": factor})})
    free = cluster(storage=Storage(read="1 PB/s", write="1 PB/s", read_per_node="1 PB/s", write_per_node="1 PB/s"))
    assert efficiency(longer, free, ranks) >= efficiency(work, free, ranks) - 1e-12


@given(work=works)
def test_more_ranks_are_less_efficient_without_a_storage_that_grows_and_an_optimizer_that_is_divided(
    work: Work,
) -> None:
    free = cluster(storage=Storage(read="1 PB/s", write="1 PB/s", read_per_node="1 PB/s", write_per_node="1 PB/s"))
    work = work.model_copy(update={"spent": SPENT.model_copy(update={"optimizer": 0.0}), "sample": 0.0})
    found = [efficiency(work, free, ranks) for ranks in COUNTS]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(found))
    assert all(0 < share <= 1 + 1e-9 for share in found)


def test_a_sum_over_nodes_by_hand() -> None:
    # 16 ranks on 2 nodes: 7/8 N within twice at 100 GB/s, N/8 between nodes at 20 GB/s
    work = changed(trained=10**9, embeddings=1, rows=1)
    whole = 4e9
    by_hand = 2 * 7 / 8 * whole / 100e9 + 2 * 1 / 2 * whole / 8 / 20e9
    assert step_time(work, cluster(), 16).exchange == pytest.approx(by_hand)


def test_sums_by_a_published_measurement() -> None:
    """24 A100 on 3 nodes of 4 HDR adapters: 85 GB/s of bus bandwidth on average, 96 at most (nccl-tests, issue 119)."""
    from launch.estimates.cluster import load_cluster
    from launch.estimates.collectives import seconds, summing

    size = 128e6
    took = seconds(summing(size, 24, load_cluster("hgx-a100")), load_cluster("hgx-a100"))
    assert 84.8e9 < 2 * 23 / 24 * size / took < 96e9


def test_what_hides_behind_the_backward_pass() -> None:
    work = changed(trained=10**8, stage=1)
    shown = step_time(work, cluster(), 16).exchange
    hidden = step_time(work.model_copy(update={"bucket": 10**7}), cluster(), 16).exchange
    # of the sum a tenth is left, since 10 buckets, and the weights, which come after the step
    assert hidden == pytest.approx(shown * (2 / 10 + 1) / 3)
    one = step_time(work.model_copy(update={"bucket": 10**8}), cluster(), 16).exchange
    assert one == pytest.approx(shown), "a single bucket is the last one"


def test_only_the_pass_that_exchanges_hides_anything() -> None:
    """Of four batches an optimizer step the sum hides behind the last one's pass alone."""
    work = changed(trained=3 * 10**9, stage=0, accumulate=4, bucket=10**7)
    whole = step_time(work.model_copy(update={"bucket": 0}), cluster(), 32).exchange * 4
    assert step_time(work, cluster(), 32).exchange == pytest.approx((whole - SPENT.backward) / 4)
    # of micro-batches too the last one alone, and with stage 2 each hides its own sum
    pieces = work.model_copy(update={"pieces": 2})
    assert step_time(pieces, cluster(), 32).exchange == pytest.approx((whole - SPENT.backward / 2) / 4)
    each = work.model_copy(update={"pieces": 2, "stage": 2, "accumulate": 1})
    weights = whole / 2
    assert step_time(each, cluster(), 32).exchange == pytest.approx(2 * whole - SPENT.backward + weights)


def test_each_bucket_that_nothing_hides_has_its_own_messages() -> None:
    few, many = (
        step_time(changed(trained=10**6, stage=1, buffers=Buffers(bucket=size)), cluster(), 16).latency
        for size in (10**6, 10**5)
    )
    assert many - few == pytest.approx(9 * sum_latency(16, cluster()))


def test_latency_is_that_of_a_tree_for_sums_and_of_a_ring_for_gathers() -> None:
    place = cluster()
    assert ring_latency(8, place) == pytest.approx(7e-6)
    assert ring_latency(4096, place) == pytest.approx((4095 - 512) * 1e-6 + 512 * 5e-6)
    assert sum_latency(4096, place) == pytest.approx(2 * 7e-6 + 2 * 9 * 5e-6)
    assert ring_latency(1, place) == sum_latency(1, place) == 0


def test_at_most_as_many_ranks_compute_as_there_are_cores() -> None:
    work = changed(busy=1.0)
    times = [step_time(work, cluster(), ranks, cores=2).compute for ranks in (1, 2, 4, 8)]
    assert times == pytest.approx([times[0], times[0], 2 * times[0], 4 * times[0]])


def test_the_optimizer_is_divided_from_stage_1_on_and_crowds_wait_longer() -> None:
    found = [step_time(changed(stage=stage), cluster(), 8).optimizer for stage in range(4)]
    assert found == pytest.approx([0.006, 0.006 / 8, 0.006 / 8, 0.006 / 8])
    alone, crowd = (step_time(changed(spread=0.01, busy=1.0), cluster(), 4, cores=cores).slowest for cores in (4, 2))
    assert alone == pytest.approx(0.01 * slowest(4)) and crowd == pytest.approx(2 * alone)


def test_the_slowest_of_many_is_later() -> None:
    found = [slowest(ranks) for ranks in COUNTS]
    assert found[0] == 0 and found == sorted(found)
    # exact: 1 / sqrt(pi) for two, 1.4236 for eight
    assert found[1] == pytest.approx(0.5642, rel=0.05) and found[3] == pytest.approx(1.4236, rel=0.01)


def test_storage_and_copies_on_nodes() -> None:
    work = changed(rows=10**5, sample=4e4, activations=0)
    step = step_time(work, cluster(), 8)
    read = 8 * 10**5 * 4e4 / 2e9
    assert step.bound == "reading" and step.total - step.checkpoint == pytest.approx(read)
    assert step_time(work, cluster(), 8, data=1e11).total - step.checkpoint == pytest.approx(read / 2)
    assert cached(cluster(), 1e12) and not cached(cluster(), 1.1e12) and not cached(cluster(cache=None), 1)


def test_more_nodes_write_a_checkpoint_faster_up_to_the_storage_and_what_one_rank_writes() -> None:
    work = changed(stage=3, weights=4 * 10**9, trained=10**9)
    times = [checkpoint_time(work, cluster(), ranks) for ranks in (8, 16, 80, 800)]
    assert times[0] == pytest.approx(2 * times[1]) and times[2] == times[3] == pytest.approx(1.6)
    whole = work.model_copy(update={"stage": 0})
    assert checkpoint_time(whole, cluster(), 800) == pytest.approx(12)


def test_zero_divides_the_memory() -> None:
    small = Buffers(bucket=10**4, live=10**4, prefetch=10**4)
    work = changed(trained=10**6, weights=4 * 10**6, activations=0, buffers=small)
    # AdamW trains the weights at stage 0 and a copy of them from stage 1 on; what is exchanged comes on top
    assert [rank_memory(work, 1, stage=stage) for stage in range(4)] == [20e6, 20.04e6, 20.08e6, 20.12e6]
    at = [rank_memory(work, 64, stage=stage) for stage in range(4)]
    assert at == sorted(at, reverse=True)
    everybody = 2 * 64 * work.rows * work.embeddings * (work.dim + 1) * 4
    assert at[0] == 20e6 + everybody and at[3] == pytest.approx(20e6 / 64 + 120e3 + everybody, abs=100)


def test_buckets_are_part_of_the_memory_and_no_larger_than_the_model() -> None:
    work = changed(trained=10**6, weights=4 * 10**6, activations=0)
    usual = rank_memory(work, 1, stage=1)
    assert usual == 20e6 + 4e6
    assert rank_memory(changed(**{**vars(work), "buffers": Buffers(double=True)}), 1, stage=1) == usual + 4e6


def test_what_lies_on_the_host_is_not_on_the_accelerator() -> None:
    work = changed(trained=10**6, weights=4 * 10**6, activations=0, stage=3)
    there = work.model_copy(update={"buffers": Buffers(host_optimizer=True, host_weights=True)})
    assert rank_memory(work, 64) - rank_memory(there, 64) == pytest.approx(20e6 / 64, abs=100)
    assert host_memory(work, 64) == 0 and host_memory(there, 64) == pytest.approx(24e6 / 64, abs=100)
    # at stage 0 nothing can lie there
    assert rank_memory(there, 64, stage=0) == rank_memory(work, 64, stage=0)
    assert scaling_rows(there, cluster(), [64])[0]["host_bytes"] == host_memory(there, 64)


def test_the_tables_agree_with_the_step() -> None:
    rows = scaling_rows(WORK, cluster(), COUNTS)
    assert [row["gpus"] for row in rows] == COUNTS
    for row in rows:
        assert row["samples_per_s"] * row["step_s"] == pytest.approx(row["global batch"])
        assert row["read_bytes_per_s"] <= row["readable_bytes_per_s"] * (1 + 1e-9)
    times = training_rows(WORK, cluster(), COUNTS, [1000, 10**6], epochs=3)
    assert {row["gpus"] for row in times if row["materials"] == 1000} == {1, 2, 4, 8, 16, 64}
    one = next(row for row in times if row["materials"] == 1000 and row["gpus"] == 1)
    assert one["steps"] == 3 * 167
    # the storage is quick enough for one rank: a copy would only cost
    assert one["hours"] * 3600 == pytest.approx(501 * step_time(WORK, cluster(), 1).total) and one["staging_s"] == 0
    assert all(row["gpu_hours"] == row["gpus"] * row["hours"] for row in times)


def test_data_are_copied_to_the_nodes_where_that_is_quicker() -> None:
    hungry = changed(rows=10**4, sample=4e4)
    long, short = (training_rows(hungry, cluster(), [8], [10**6], epochs=epochs)[0] for epochs in (100, 1))
    assert long["staging_s"] == pytest.approx(4e10 / 2e9) and short["staging_s"] == 0
    step = step_time(hungry, cluster(), 8, data=4e10).total
    assert long["hours"] * 3600 == pytest.approx(100 * 13 * step + 20)


def test_another_accelerator_takes_the_time_of_the_operations() -> None:
    there = WORK.on("A100", 1e12)
    assert there.spent.forward + there.spent.backward == pytest.approx(1e-3) and there.spent.data == 0
    assert there.loss_per_column == pytest.approx(WORK.loss_per_column / 80)
    measured = changed(device="NVIDIA A100-SXM4-80GB")
    assert measured.on("A100", 1e12) is measured


@pytest.mark.parametrize(
    "unknown", [{"operations": 0.0}, {"spent": Spent(data=0, forward=0, backward=0, loss=1, optimizer=1, rest=1)}]
)
def test_another_accelerator_needs_operations_and_their_seconds(unknown: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="A100 cannot be said from cpu") as refused:
        changed(**unknown).on("A100", 1e12)
    assert "operations" in str(refused.value)
    assert changed(device="A100", **unknown).on("A100", 1e12).device == "A100"


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_ranks_of_a_host_share_its_adapter(ranks: int) -> None:
    """100 Gb/s of Ethernet, nine tenths of it over TCP."""
    fast = Link(latency="1 us", bandwidth="200 GB/s")
    place = this_host(WORK, fast if ranks > 1 else None, ranks=ranks, hosts=2)
    assert place.per_node * place.between.bandwidth == pytest.approx(0.9 * 100e9 / 8)
