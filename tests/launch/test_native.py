"""Every launcher that people have, on two hosts: the same recipe gives the same training as ranks that a test forks.

Each script of docs/examples/launch/ is run as it stands there.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.distributed.ranks import ROOT, TIMEOUT_S, spawn
from tests.distributed.runs import Workshop, mains
from tests.launch.namespaces import Cluster, wait_for

pytestmark = pytest.mark.launch

RECIPES = ROOT / "docs" / "examples" / "launch"
# of the metrics, relative; the order in which gloo adds is all that may differ
CLOSE = 1e-6


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path_factory.mktemp("native"), toy_folder, epochs=2, evaluate=1, save=5)


@pytest.fixture(scope="module")
def reference(shop: Workshop) -> dict[int, list[dict[str, float]]]:
    """Metrics of two ranks of one host that no launcher has started."""
    ((code, told),) = shop.run(shop.arguments("reference"), world=2)
    assert code == 0, told
    return {2: shop.metrics("reference")}


@pytest.fixture
def env(shop: Workshop, cluster: Cluster) -> dict[str, str]:
    """Variables of the launchers, and the file with those that DeepSpeed's hands on."""
    file = shop.folder / "deepspeed_env"
    own = {**shop.environment(), "OMP_NUM_THREADS": "1"}
    file.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {
        **own, **root, "DS_ENV_FILE": str(file), "HOSTFILE": str(cluster.hostfile()), "RECIPE": str(shop.recipe),
        "MASTER_ADDR": cluster.nodes[0].name,
    }  # fmt: skip


class Launch:
    """A script of the recipes on some hosts; a context that leaves nothing behind."""

    def __init__(self, cluster: Cluster, script: str, *environments: dict[str, str], options: list[str]) -> None:
        self.cluster, self.logs = cluster, []
        self.processes: list[subprocess.Popen[bytes]] = []
        for node, env in zip(cluster.nodes, environments, strict=False):
            log = Path(f"{env['OUT']}.{node.name}.log")
            self.logs.append(log)
            self.processes.append(node.popen(RECIPES / script, *options, log=log, env=env))

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for node in self.cluster.nodes:
            node.kill_all()

    def wait(self) -> list[int]:
        return [process.wait(TIMEOUT_S) for process in self.processes]

    def told(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def finished(cluster: Cluster, script: str, *environments: dict[str, str], options: tuple[str, ...] = ()) -> str:
    with Launch(cluster, script, *environments, options=list(options)) as launch:
        codes = launch.wait()
        assert set(codes) == {0}, launch.told()
        strays = cluster.strays()
        assert strays == [], strays
        return launch.told()


def close(metrics: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    assert [line.keys() for line in metrics] == [line.keys() for line in others]
    return all(
        math.isclose(value, other[name], rel_tol=CLOSE) if isinstance(value, float) else value == other[name]
        for line, other in zip(metrics, others, strict=True)
        for name, value in line.items()
    )


Metrics = dict[int, list[dict[str, float]]]


@pytest.mark.parametrize("filtered", ["", "--include node1:0@node2:1", "--exclude node1:0@node2:0"])
def test_pdsh(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str], filtered: str) -> None:
    out = f"pdsh{filtered.partition(' ')[0]}"
    hosts = cluster.hostfile(2 if filtered else 1)
    told = finished(
        cluster, "pdsh.sh", {**env, "HOSTFILE": str(hosts), "FILTER": filtered, "OUT": str(shop.folder / out)}
    )
    assert "node2: " in told
    assert close(shop.metrics(out), reference[2])


def test_openmpi(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]) -> None:
    del env["MASTER_ADDR"]
    finished(cluster, "openmpi.sh", {**env, "OUT": str(shop.folder / "openmpi")})
    assert close(shop.metrics("openmpi"), reference[2])
    assert not list((shop.folder / "openmpi").glob(".rendezvous-*"))


def test_no_ssh(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]) -> None:
    out = {"OUT": str(shop.folder / "no_ssh")}
    finished(cluster, "no_ssh.sh", *({**env, **out, "NODE_RANK": rank} for rank in "01"))
    assert close(shop.metrics("no_ssh"), reference[2])


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str], rendezvous: str) -> None:
    own = {"OUT": str(shop.folder / rendezvous), "NODES": "2", "RENDEZVOUS": rendezvous}
    finished(cluster, "torchrun.sh", *({**env, **own, "NODE_RANK": rank} for rank in "01"))
    assert close(shop.metrics(rendezvous), reference[2])
