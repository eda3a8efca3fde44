"""Variables of SLURM as its version 22.05 has set them on two nodes, and host lists against its own expansion."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.slurm import FIRST_PORT, PORTS, expand, port, slurm_place, tasks_per_node
from shards.errors import ConfigError

# the batch script of `sbatch -N2 --ntasks-per-node=2`
BATCH = {
    "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NODELIST": "node[1-2]", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
# the shell of salloc
SHELL = {name: value for name, value in BATCH.items() if name not in ("SLURM_LOCALID", "SLURM_NODEID", "SLURM_PROCID")}
# the last task of its `srun -n3 -N2`; SLURM_NTASKS_PER_NODE is still the job's
STEP = {
    **BATCH, "SLURM_DISTRIBUTION": "block", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS": "3",
    "SLURM_PROCID": "2", "SLURM_STEPID": "2", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_TASKS_PER_NODE": "2,1",
}  # fmt: skip
# a step of one task on the second node alone
ALONE = {
    **STEP, "SLURM_NODEID": "0", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "node2",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_TASKS_PER_NODE": "1",
}  # fmt: skip
# the last task of `srun --distribution=cyclic`: neighbours in rank are on different nodes
CYCLIC = {
    **STEP, "SLURM_DISTRIBUTION": "cyclic", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (STEP, ("2", "3", "0", "1", "node1")),
        (ALONE, ("0", "1", "0", "1", "node2")),
        (CYCLIC, ("3", "4", "1", "2", "node1")),
        # `srun --gpus-per-task=1`, where each task sees one accelerator, which is its first
        ({**CYCLIC, "CUDA_VISIBLE_DEVICES": "1"}, ("3", "4", "0", "2", "node1")),
        ({**CYCLIC, "CUDA_VISIBLE_DEVICES": "0,1"}, ("3", "4", "1", "2", "node1")),
    ],
)
def test_a_task_of_a_step_is_a_rank(environment: dict[str, str], place: tuple[str, ...]) -> None:
    found = slurm_place(environment)
    assert found is not None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert tuple(found.pop(name) for name in names) == place
    assert found == {"MASTER_PORT": str(port(environment))}


@pytest.mark.parametrize("more", [{}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_STEP_ID": "4294967291"}])
@pytest.mark.parametrize("outside", [BATCH, SHELL])
def test_a_process_outside_of_any_step_does_not_wait_for_others(outside: dict[str, str], more: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="SLURM job 12 has 2 nodes and 4 tasks, and this process is none") as caught:
        slurm_place({**outside, **more})
    assert "srun python launch/pretrain.py" in str(caught.value)
    # nor where only the nodes are many, as in `sbatch -N2`
    with pytest.raises(ConfigError, match="2 nodes"):
        slurm_place({name: value for name, value in outside.items() if name != "SLURM_NTASKS"})
    assert slurm_place({**outside, **more, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}) is None
    assert slurm_place({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": "3"}, "task 3 of 3"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "task 2 of 4"),
        ({"SLURM_LOCALID": "1"}, "task 2 of 3, 1 on node 1"),
        ({"SLURM_NODEID": "2"}, "on node 2 of node1,node2"),
        ({"SLURM_STEP_NODELIST": "node1"}, "on node 1 of node1"),
        ({"SLURM_STEP_NODELIST": "node1,node1"}, "of node1,node1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x)"}, "no number of tasks a node"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x999999)"}, "no number of tasks a node"),
        ({"SLURM_STEP_NODELIST": "node[1-2"}, "no host list"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID='-1' is no number"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({"SLURM_STEP_RESV_PORTS": "many"}, "no range of ports"),
        ({"SLURM_DISTRIBUTION": "arbitrary"}, "distribution=arbitrary is not supported"),
        ({"SLURM_PROCID": "1", "SLURM_NODEID": "0", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "3",
          "SLURM_STEP_NODELIST": "node1", "CUDA_VISIBLE_DEVICES": "0,1"}, "3 tasks of a node see 2 accelerators"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        slurm_place({**STEP, **changes})
    assert caught.value.do


def test_ports() -> None:
    def at(job: int, step: int) -> int:
        return port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})

    for job in (1, 99, 12345, 4_000_000_000):
        own = {at(job, step) for step in range(100)}
        assert len(own) == 100
        assert not own & {at(job + 1, step) for step in range(100)}
        # Linux begins to give out ports at 32768
        assert FIRST_PORT <= min(own) <= max(own) < FIRST_PORT + PORTS < 32768
    assert port({**STEP, "SLURM_STEP_RESV_PORTS": "12001-12003"}) == 12001
    assert port({**STEP, "SLURM_STEP_RESV_PORTS": "12007,12010"}) == 12007


def test_tasks_per_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu[001-003,007],login1", ["gpu001", "gpu002", "gpu003", "gpu007", "login1"]),
        ("r[1-2]n[01-03]", ["r1n01", "r1n02", "r1n03", "r2n01", "r2n02", "r2n03"]),
        ("n[9-11,099-100]", ["n9", "n10", "n11", "n099", "n100"]),
        ("a[0-2]b[0-1]c[7]", ["a0b0c7", "a1b0c7", "a2b0c7", "a0b1c7", "a1b1c7", "a2b1c7"]),
        ("n1.cluster.org", ["n1.cluster.org"]),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize("text", ["", "n[1-2", "n]", "a,,b", "n[2-1]", ",a", "n[]", "n[1-a]", "n[1-2]-ib", "n[1-2]x"])
def test_what_is_no_host_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        expand(text)


@pytest.mark.parametrize("text", ["n[0-999999999]", "n[0-999]m[0-999]", "n[0-60000],m[0-60000]"])
def test_a_host_list_without_measure_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"too long|names more than"):
        expand(text)


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of SLURM that expands host lists, which wants a configuration for it."""
    if shutil.which("scontrol") is None:
        pytest.skip("scontrol is not installed (Debian: slurm-client)")
    conf: Path = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    conf.write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\nPartitionName=a Nodes=ALL\n")
    return ["env", f"SLURM_CONF={conf}", "scontrol", "show"]


names = st.from_regex(r"[a-z][a-z0-9.-]{0,5}[a-z-]", fullmatch=True)


@st.composite
def ranges(draw: st.DrawFn) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(0, 1200))
        width = draw(st.sampled_from([0, 0, 3, 5]))
        last = first + draw(st.integers(0, 5))
        parts.append(f"{first:0{width}}" if first == last else f"{first:0{width}}-{last:0{width}}")
    return f"[{','.join(parts)}]"


host = st.one_of(names, st.lists(st.tuples(names, ranges()).map("".join), min_size=1, max_size=3).map("".join))


@given(st.lists(host, min_size=1, max_size=4).map(",".join))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_host_lists_expand_as_slurm_does(scontrol: list[str], text: str) -> None:
    known = subprocess.run([*scontrol, "hostnames", text], capture_output=True, text=True, check=True)
    assert expand(text) == known.stdout.split()


@given(st.lists(st.tuples(names, st.integers(0, 120), st.sampled_from([0, 3])), min_size=1, max_size=12, unique=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_slurm_abbreviates_comes_back(scontrol: list[str], hosts: list[tuple[str, int, int]]) -> None:
    hostnames = [f"{name}{number:0{width}}" for name, number, width in hosts]
    short = subprocess.run([*scontrol, "hostlist", ",".join(hostnames)], capture_output=True, text=True, check=True)
    assert expand(short.stdout.strip()) == hostnames
