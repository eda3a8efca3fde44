"""What is made of what hosts have found: who is named, and with which remedy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from launch.findings import Finding, as_lines, refuse
from launch.hosts import comparison, judgement
from launch.hosts.hostfile import Host
from launch.hosts.preflight import Request, places, preflight
from launch.hosts.remote import Remote
from launch.hosts.trouble import explained
from pretrain.config import DataConfig
from shards.errors import HostError
from tests.distributed.runs import Workshop

GIB = 2**30


def facts(**more: Any) -> dict[str, Any]:
    accelerators = {"devices": [], "error": None, "nccl": None, "driver": None, "smi": []}
    return {"python": "3.11.7", "versions": {"torch": "2.14.1"}, "accelerators": accelerators, **more}


def test_most_hosts_are_right_and_the_first_of_two() -> None:
    assert comparison.odd_ones({"a": 1, "b": 2, "c": 2}) == ("b", ["a"])
    assert comparison.odd_ones({"a": 1, "b": 2}) == ("a", ["b"])


def test_files_that_differ_or_are_missing_are_named() -> None:
    codes = {"a": {"x.py": "1", "y.py": "1"}, "b": {"x.py": "1", "y.py": "1"}, "c": {"x.py": "2"}}
    (finding,) = comparison.code({host: {"code": code} for host, code in codes.items()})
    assert (finding.host, finding.status) == ("c", "failed")
    assert finding.value == "x.py, y.py are not as on a"


def test_a_package_that_differs_is_named_with_what_to_install() -> None:
    found = {"a": facts(), "b": facts(versions={"torch": "2.13.0"}), "c": facts()}
    (finding,) = comparison.versions(found)
    assert (finding.host, finding.status) == ("b", "failed")
    assert finding.value == "torch 2.13.0, but 2.14.1 on a" and "torch==2.14.1" in finding.do
    assert [one.status for one in comparison.versions({"a": facts(), "b": facts()})] == ["ok"]


@pytest.mark.parametrize(
    ("offsets", "named"),
    [
        ({"a": (0.0, 0.01), "b": (0.9, 0.01)}, {}),
        ({"a": (0.0, 0.01), "b": (1.2, 0.01)}, {"b": "warning"}),
        # an answer that took 2 s says no more than that
        ({"a": (0.0, 0.01), "b": (1.9, 1.0)}, {}),
        ({"a": (0.0, 0.01), "b": (-11.0, 0.01)}, {"b": "failed"}),
        # the controller's own clock is wrong: none of theirs is
        ({"a": (30.0, 0.01), "b": (30.0, 0.01)}, {}),
        # the first host's is
        ({"a": (20.0, 0.01), "b": (0.0, 0.01)}, {"a": "failed"}),
    ],
)
def test_clocks(offsets: dict[str, tuple[float, float]], named: dict[str, str]) -> None:
    found = {one.host: one.status for one in comparison.clocks(offsets) if one.status != "ok"}
    assert found == named


def test_embedded_data_that_one_host_lacks() -> None:
    lacking, there = {"data": [{"error": "not there"}]}, {"data": [{"sha256": "ab" * 32}]}
    (finding,) = comparison.data({"a": there, "b": lacking}, {0: "embedded:dft_crystals"})
    assert (finding.host, finding.status) == ("b", "failed")
    (finding,) = comparison.data({"a": lacking, "b": lacking}, {0: "embedded:dft_crystals"})
    assert finding.status == "warning" and "MATLOOM_CACHE" in finding.do


def test_what_is_enough_depends_on_the_ranks() -> None:
    assert judgement.memory(5 * GIB, 4).status == "ok"
    assert judgement.memory(3 * GIB, 4).status == "warning"
    assert judgement.memory(3 * GIB, 8).status == "failed"
    assert judgement.shared_memory(64 * 2**20, 1).status == "warning"
    assert judgement.shared_memory(64 * 2**20, 4).status == "failed"
    assert judgement.shared_memory(None).status == "warning"
    assert [judgement.open_files(n, 4096).status for n in (100, 512, 1024, -1)] == ["failed", "warning", "ok", "ok"]


def row_of(uuid: str, errors: str) -> dict[str, str]:
    """A row of nvidia-smi."""
    row = dict.fromkeys(("index", "memory.used"), "3")
    return {**row, "uuid": uuid, "memory.total": "80000", "ecc.errors.uncorrected.volatile.total": errors}


def test_gpus_that_the_run_leaves_out_are_not_judged() -> None:
    # visible in another order than nvidia-smi's, and without one of them
    devices = [{"name": "H100", "uuid": uuid, "error": None} for uuid in ("GPU-c", "GPU-b", "GPU-a")]
    rows = [row_of("GPU-a", "5"), row_of("GPU-b", "0"), row_of("GPU-c", "0"), row_of("GPU-d", "5")]
    found = {**facts()["accelerators"], "devices": devices, "smi": rows}
    assert [one.status for one in judgement.accelerators(found, (0, 1))] == ["ok"]
    for slots in ((), (0, 1, 2), (2,)):
        (bad,) = [one for one in judgement.accelerators(found, slots) if one.status == "failed"]
        assert "--exclude HOST:2" in bad.do
    used = [{**row_of("GPU-a", "0"), "memory.used": "70000"}]
    assert [one.status for one in judgement.accelerators({**found, "smi": used}, (0,))] == ["ok"]
    assert [one.status for one in judgement.accelerators({**found, "smi": used}, (2,))] == ["warning", "ok"]


def test_accelerators_that_are_sick_or_too_few() -> None:
    device = {"name": "H100", "uuid": "GPU-a", "error": None}
    found = {**facts()["accelerators"], "devices": [device, {**device, "uuid": "GPU-b", "error": "CUDA error: 719"}]}
    assert not [one for one in judgement.accelerators(found, (0,)) if one.status != "ok"]
    bad = [one for one in judgement.accelerators(found, (0, 1, 2)) if one.status == "failed"]
    assert ["no slot 2" in bad[0].value, "accelerator 1 does not compute: CUDA error: 719" in bad[1].value] == [
        True
    ] * 2
    found = {**found, "devices": [device], "smi": [row_of("GPU-a", "3")]}
    (bad_one,) = [one for one in judgement.accelerators(found, (0,)) if one.status != "ok"]
    assert "GPU 3 has 3 uncorrected memory errors" in bad_one.value
    assert "--exclude HOST:0" in bad_one.do
    hung = {**found, "error": "no result within 60 s"}
    assert [one.status for one in judgement.accelerators(hung)] == ["failed"]


@pytest.mark.parametrize(
    ("code", "said", "what"),
    [
        (255, "ssh: Could not resolve hostname w9: Name or service not known", "its name is unknown here"),
        (255, "ssh: connect to host w9 port 22: Connection refused", "it refuses ssh connections"),
        (255, "ssh: connect to host w9 port 22: Connection timed out", "no answer to ssh in time"),
        (255, "ssh: connect to host w9 port 22: No route to host", "there is no way to it"),
        (255, "root@w9: Permission denied (publickey).", "it does not take our ssh key"),
        (255, "Host key verification failed.", "its ssh key is not known here"),
        (255, "kex_exchange_identification: Connection closed by remote host", "the connection to it broke"),
        (255, "something new", "ssh failed"),
        (127, f"bash: line 1: {sys.executable}: No such file or directory", "there is no Python at"),
        (127, f"sh: 1: exec: {sys.executable}: not found", "there is no Python at"),
        (2, "sh: 1: cd: can't cd to /scratch/me", "the working directory is missing there"),
        (1, "bash: line 1: cd: /scratch/me: No such file or directory", "the working directory is missing there"),
        (1, f"{sys.executable}: No module named launch.hosts.examine", "the project is missing there"),
        (1, f"{sys.executable}: Error while finding module specification for 'launch.hosts.examine' "
         "(ModuleNotFoundError: No module named 'launch')", "the project is missing there"),
        (1, "ModuleNotFoundError: No module named 'psutil'", "a package is missing there"),
        (-9, "", "was ended by signal 9"),
    ],
)  # fmt: skip
def test_why_nothing_runs_there(code: int, said: str, what: str) -> None:
    error = explained("w9", code, ["Welcome to w9", said])
    assert what in error.what and error.where == "w9" and error.do


def test_one_line_for_hosts_of_which_the_same_is_found_and_one_error_for_all() -> None:
    findings = [Finding("disk", "ok", "9 GiB free", host=host) for host in "abcd"]
    findings += [Finding("clock", "failed", "11 s behind the others", "ask NTP", host) for host in "ab"]
    lines = as_lines(findings)
    assert len(lines) == 2 and "4 hosts" in lines[0] and "a, b" in lines[1]
    with pytest.raises(HostError) as caught:
        refuse(findings)
    assert caught.value.where == "a, b" and caught.value.exit_code == 8
    assert "2 checks failed" in str(caught.value) and str(caught.value).count("ask NTP") == 1
    refuse(findings[:4])


def test_every_data_set_of_a_recipe_is_looked_at() -> None:
    assert places(DataConfig(path="a", overlays=("b",))) == ("a", "b")
    assert places(DataConfig(mix=({"path": "a", "overlays": ("b",)}, {"path": "c"}))) == ("a", "b", "c")  # type: ignore[arg-type]


@pytest.fixture
def shop(tmp_path: Path, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path, toy_folder, epochs=1, evaluate=1, save=2)


def test_this_host_alone(shop: Workshop, toy_folder: Path) -> None:
    request = Request(shop.recipe, shop.folder / "run", (str(toy_folder),), environment=shop.environment())
    findings = {one.name: one for one in preflight(Remote(), [Host("localhost", (0, 1))], request)}
    assert {one.status for one in findings.values()} <= {"ok", "warning"}
    assert {"memory", "disk", "code", "versions", "recipe", "data", "clock", "port"} <= set(findings)
    assert not (shop.folder / "run").exists()
    (shop.folder / "run").write_text("a file is no folder")
    findings = {one.name: one for one in preflight(Remote(), [Host("localhost", (0,))], request)}
    assert findings["disk"].status == "failed" and findings["disk"].do


def test_two_names_of_this_host_add_up_tensors(shop: Workshop, toy_folder: Path) -> None:
    # both are this host to `Remote`, and two ranks to the collective
    request = Request(shop.recipe, shop.folder / "run", (str(toy_folder),), environment=shop.environment())
    hosts = [Host("localhost", (0,)), Host("127.0.0.1", (0,))]
    findings = {one.name: one for one in preflight(Remote(), hosts, request)}
    assert findings["collective"].value.startswith("gloo, ") and "MB/s" in findings["collective"].value
    assert findings["network"].status == "ok"
    lost = Request(shop.recipe, shop.folder / "run", ("nowhere",), environment=shop.environment())
    bad = [one for one in preflight(Remote(), hosts, lost) if one.status == "failed"]
    assert {one.host for one in bad} == {"localhost", "127.0.0.1"} and {one.name for one in bad} == {"data"}
