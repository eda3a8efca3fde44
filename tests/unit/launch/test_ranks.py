"""The rank of a process, from what each launcher says in the environment, and where it meets the others."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import psutil
import pytest

from launch import network, rendezvous
from launch.launchers import hostfile_of
from launch.network import contacts_in, interface_of, interface_towards, reachable_address, resolved
from launch.ranks import WAIT_VARIABLE, adopt_rank, meet
from launch.rendezvous import await_first_rank, job_of, publish
from shards.errors import ConfigError, HostError

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# recorded: `mpirun -n 2 env` of Open MPI 4.1.4, where it matters here
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_MCA_ess_base_jobid": "1491337217",
    "OMPI_MCA_orte_hnp_uri": "1491337216.0;tcp://198.51.100.7,203.0.113.2:49015;tcp6://[fd00::2]:40145",
    "OMPI_MCA_orte_precondition_transports": "22325898488169c5-b4ecb7461c68323e",
    "PMIX_NAMESPACE": "1491337217",
    "PMIX_RANK": "1",
    "PMIX_SERVER_URI4": "1491337216.0;tcp4://127.0.0.1:51913",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MASTER = {"MASTER_ADDR": "198.51.100.7", "MASTER_PORT": "4711"}


def adopted(env: dict[str, str], local_rank: int | None = None) -> tuple[str | None, ...]:
    env = dict(env)
    adopt_rank(env, local_rank=local_rank)
    return tuple(env.get(name) for name in PLACE)


@pytest.mark.parametrize(
    ("env", "place"),
    [
        (TORCHRUN, ("3", "4", "1", "2")),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, ("3", "4", "1", "2")),
        (OPENMPI, ("1", "4", "1", "2")),
        ({**OPENMPI, "WORLD_SIZE": "4"}, ("1", "4", "1", "2")),
        # one torchrun on each of four hosts, started by mpirun: its word counts
        ({**OPENMPI, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, ("3", "4", "1", "2")),
        (
            {"MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "3", "MV2_COMM_WORLD_LOCAL_RANK": "0",
             "MV2_COMM_WORLD_LOCAL_SIZE": "1"},
            ("2", "3", "0", "1"),
        ),
        ({"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}, ("2", "3", "0", "1")),
        # DeepSpeed's --launcher mpich
        (
            {"PMI_RANK": "2", "MPI_LOCALRANKID": "0", "WORLD_SIZE": "4", "LOCAL_SIZE": "2", **MASTER},
            ("2", "4", "0", "2"),
        ),
        ({}, (None, None, None, None)),
        ({"SLURM_NTASKS": "1", "WORLD_SIZE": "1"}, (None, "1", None, None)),
    ],
)  # fmt: skip
def test_each_launchers_variables_become_those_of_torch(env: dict[str, str], place: tuple[str | None, ...]) -> None:
    assert adopted(env) == place


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not"),
        ({**TORCHRUN, "RANK": "4"}, "RANK=4 is none of 4 ranks"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1 is none"),
        ({**TORCHRUN, "RANK": "first"}, "RANK='first' is no number"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 is none of 2 ranks"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5 is more than WORLD_SIZE=4"),
        ({"WORLD_SIZE": "4"}, "nothing says which rank this is"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "nothing says which rank this is"),
        ({**OPENMPI, "WORLD_SIZE": "8"}, "WORLD_SIZE=8 contradicts Open MPI, which says 4"),
        # `mpirun -x RANK`: all ranks would take themselves for the first
        ({**OPENMPI, "RANK": "0", "WORLD_SIZE": "4"}, "RANK=0 contradicts OMPI_COMM_WORLD_RANK=1"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "17"}, "SLURM job 17 has 1 nodes and 8 tasks"),
        ({"ACCELERATE_MIXED_PRECISION": "no", **MASTER}, "accelerate launch has started one process"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        adopted(env)
    assert caught.value.do


def test_the_command_lines_local_rank_counts_where_the_variable_is_missing() -> None:
    assert adopted({"RANK": "1", "WORLD_SIZE": "2"}, local_rank=1)[2] == "1"
    with pytest.raises(ConfigError, match="--local_rank=0 contradicts LOCAL_RANK=1"):
        adopted(TORCHRUN, local_rank=0)


def test_rank_0_publishes_and_the_others_find_it(tmp_path: Path) -> None:
    local = {**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    first, second = ({**local, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank} for rank in "01")
    adopt_rank(second)
    waiting = threading.Thread(target=meet, args=(tmp_path / "out", second), daemon=True)
    waiting.start()
    adopt_rank(first)
    meet(tmp_path / "out", first)
    waiting.join(30)
    for env in (first, second):
        assert (env["MASTER_ADDR"], env["GLOO_SOCKET_IFNAME"]) == ("127.0.0.1", "lo")
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    with socket.socket() as store:
        store.bind(("", int(first["MASTER_PORT"])))


def test_what_an_earlier_job_has_left_is_not_taken(tmp_path: Path) -> None:
    # the same process number on the same host, and so the same job number: as in a container that was started again
    old = {**OPENMPI, "OMPI_MCA_orte_precondition_transports": "0000000000000000-0000000000000000"}
    publish(tmp_path, {**old, "RANK": "0"}, local=True)
    rank = {**OPENMPI, "RANK": "1"}
    with pytest.raises(HostError, match="rank 1 has waited 0 s for the address of rank 0") as caught:
        await_first_rank(tmp_path, rank, 0.0)
    assert socket.gethostname() in str(caught.value) and str(tmp_path) in str(caught.value)
    publish(tmp_path, {**OPENMPI, "RANK": "0"}, local=True)
    assert len(list(tmp_path.glob(f"{rendezvous.PREFIX}*"))) == 1
    assert await_first_rank(tmp_path, rank, 0.0)[0] == "127.0.0.1"


def test_a_file_that_is_half_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = {**OPENMPI, "RANK": "1"}
    seen: list[str] = []

    def watched(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        # all of it is there before it gets its name
        seen.append(json.loads(Path(source).read_text())["address"])
        assert not Path(target).exists()
        os.rename(source, target)

    monkeypatch.setattr(rendezvous.os, "replace", watched)
    publish(tmp_path, rank, local=True)
    assert seen == ["127.0.0.1"]


def test_a_launcher_that_says_nothing_is_told_what_to_do(tmp_path: Path) -> None:
    env = {**TORCHRUN, WAIT_VARIABLE: "0"}
    with pytest.raises(ConfigError, match="neither the address of rank 0 nor the name of its job"):
        meet(tmp_path, env)
    with pytest.raises(ConfigError, match="MASTER_PORT=x is no port"):
        meet(tmp_path, {**env, **MASTER, "MASTER_PORT": "x"})
    with pytest.raises(HostError, match="has no address on this host"):
        meet(tmp_path, {**env, "MASTER_ADDR": "no.such.host.invalid"})
    with pytest.raises(ConfigError, match="every host for itself"):
        meet(tmp_path, {**OPENMPI, **TORCHRUN, "MASTER_ADDR": "127.0.0.1"})


def test_a_single_process_is_left_alone_and_a_single_rank_meets_itself(tmp_path: Path) -> None:
    env: dict[str, str] = {}
    meet(tmp_path, env)
    assert env == {}
    env = dict.fromkeys(("RANK", "LOCAL_RANK"), "0") | {"WORLD_SIZE": "1"}
    meet(tmp_path, env)
    assert env["MASTER_ADDR"] == "127.0.0.1" and int(env["MASTER_PORT"]) > 0
    assert not list(tmp_path.iterdir())


class Host:
    """A host with addresses and a name that a test chooses, in place of this one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.routes: dict[str, str] = {}

    def has(self, *, name: list[str], routes: dict[str, str], **interfaces: list[str]) -> None:
        entries = {
            i: [psutil._ntuples.snicaddr(socket.AF_INET, a, None, None, None) for a in addresses]
            for i, addresses in interfaces.items()
        }
        self.patch.setattr(network.psutil, "net_if_addrs", lambda: entries)
        self.patch.setattr(network, "resolved", lambda host, timeout_s=0.0: name if host == "me" else [host])
        self.patch.setattr(network.socket, "gethostname", lambda: "me")
        self.patch.setattr(network, "address_towards", routes.get)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_others_reach_a_host_by_the_interface_that_faces_mpirun(host: Host) -> None:
    host.has(
        name=["127.0.1.1"], routes={"10.1.0.9": "10.1.0.2"},
        lo=["127.0.0.1"], docker0=["172.17.0.1"], eth0=["192.0.2.2"], ib0=["10.1.0.2"],
    )  # fmt: skip
    # mpirun elsewhere
    assert reachable_address(["10.1.0.9"]) == "10.1.0.2"
    # here, with one of this host's addresses
    assert reachable_address(["127.0.0.1", "10.1.0.2"]) == "10.1.0.2"
    # nothing is known, and the name means this host alone
    assert reachable_address([]) is None
    with pytest.raises(ConfigError, match="cannot be told"):
        publish(Path("unused"), {**OPENMPI, "OMPI_MCA_orte_hnp_uri": "", "RANK": "0"}, local=False)


def test_of_several_addresses_that_of_the_hosts_name_is_taken(host: Host) -> None:
    host.has(name=["10.1.0.2"], routes={}, docker0=["172.17.0.1"], eth0=["192.0.2.2"], ib0=["10.1.0.2"])
    assert reachable_address(["172.17.0.1", "192.0.2.2", "10.1.0.2"]) == "10.1.0.2"
    assert reachable_address([]) == "10.1.0.2"


def test_gloo_gets_the_interface_towards_the_master(host: Host) -> None:
    host.has(
        name=["127.0.1.1"], routes={"10.1.0.9": "10.1.0.2", "me": "127.0.0.1", network.ELSEWHERE: "192.0.2.2"},
        lo=["127.0.0.1"], eth0=["192.0.2.2"], **{"ib0:1": ["10.1.0.2"]},
    )  # fmt: skip
    assert interface_towards("10.1.0.9") == "ib0"
    # Debian's own entry for the host's name: other hosts hear nothing of what is said there
    assert interface_towards("me") == "eth0"
    assert interface_towards("me", across=False) == "lo"
    assert interface_of("198.51.100.1") is None


def test_this_hosts_own_loopback() -> None:
    assert interface_towards("127.0.0.1", across=False) == "lo"
    assert interface_of("127.0.1.1") == "lo"
    assert resolved("127.0.0.1") == ["127.0.0.1"]


def test_addresses_are_found_in_what_open_mpi_calls_a_uri() -> None:
    assert contacts_in(OPENMPI["OMPI_MCA_orte_hnp_uri"]) == ["198.51.100.7", "203.0.113.2"]
    assert contacts_in("prterun-a-1@0.1;tcp4://10.0.0.1:1") == ["10.0.0.1"]
    assert contacts_in("") == []
    assert job_of({}) is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--hostfile", "a", "launch/pretrain.py"], "a"),
        (["--hostfile=a", "launch/pretrain.py"], "a"),
        (["--hostf", "a", "launch/pretrain.py"], "a"),
        (["-H", "a", "-H", "b", "/x/launch/pretrain.py"], "b"),
        (["-Ha", "pretrain.py"], "a"),
        (["--num_gpus", "2", "launch/pretrain.py", "--hostfile", "theirs"], None),
        (["-i", "host", "launch/pretrain.py"], None),
    ],
)
def test_a_hostfile_is_found_as_deepspeed_finds_it(words: list[str], found: str | None) -> None:
    from deepspeed.launcher.constants import PDSH_LAUNCHER
    from deepspeed.launcher.runner import DLTS_HOSTFILE, parse_args

    assert hostfile_of(["python", "deepspeed", *words], Path("launch/pretrain.py")) == found
    theirs = parse_args(words)
    assert theirs.launcher == PDSH_LAUNCHER
    assert theirs.hostfile == (found or DLTS_HOSTFILE)
