"""Every launcher that people have, on two hosts: the same recipe gives the same training as ranks that a test forks.

Each script of docs/examples/launch/ is run as it stands there.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pretrain.config import parse_recipe
from shards.reader import Dataset
from tests.distributed.ranks import spawn, variables
from tests.distributed.runs import Workshop, mains
from tests.launch.launched import EXAMPLES, Launched
from tests.launch.namespaces import Cluster
from tests.random_models import write_model

pytestmark = pytest.mark.launch

Metrics = list[dict[str, float]]
TUNE = """
name = "tuned"
model = "{model}"
data = "{data}"
target = "gap_ev"
rows = [
  {{ strategy = "mean", modalities = [] }},
  {{ strategy = "full", modalities = ["a", "b"] }},
]
[head]
kind = "regression"
dropout = 0.0
[optim]
lr = 1e-2
epochs = 3
batch_size = 7
"""
# of the metrics, relative; the order in which gloo adds is all that may differ
CLOSE = 1e-6


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path_factory.mktemp("native"), toy_folder, epochs=2, evaluate=1, save=5)


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


def launched(
    cluster: Cluster, shop: Workshop, script: str, *environments: dict[str, str], options: Sequence[str] = ()
) -> Launched:
    """Start a script of the recipes on as many hosts as there are environments."""
    commands = [
        ["env", *(f"{name}={value}" for name, value in env.items()), EXAMPLES / script, *options]
        for env in environments
    ]
    return Launched(cluster, shop, Path(environments[0]["OUT"]).name, *commands)


def finished(cluster: Cluster, shop: Workshop, script: str, *environments: dict[str, str]) -> str:
    with launched(cluster, shop, script, *environments) as run:
        assert set(run.codes()) == {0}, run.told()
        strays = cluster.strays()
        assert strays == [], strays
        return run.told()


def close(metrics: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    assert [line.keys() for line in metrics] == [line.keys() for line in others]
    return all(
        math.isclose(value, other[name], rel_tol=CLOSE) if isinstance(value, float) else value == other[name]
        for line, other in zip(metrics, others, strict=True)
        for name, value in line.items()
    )


@pytest.mark.parametrize("filtered", ["", "--include node1:0@node2:1", "--exclude node1:0@node2:0"])
def test_pdsh(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str], filtered: str) -> None:
    out = f"pdsh{filtered.partition(' ')[0]}"
    hosts = cluster.hostfile(2 if filtered else 1)
    told = finished(
        cluster, shop, "pdsh.sh", {**env, "HOSTFILE": str(hosts), "FILTER": filtered, "OUT": str(shop.folder / out)}
    )
    assert "node2: " in told
    assert close(shop.metrics(out), reference)


def test_openmpi(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]) -> None:
    del env["MASTER_ADDR"]
    finished(cluster, shop, "openmpi.sh", {**env, "OUT": str(shop.folder / "openmpi")})
    assert close(shop.metrics("openmpi"), reference)
    assert not list((shop.folder / "openmpi").glob(".rendezvous-*"))


def test_no_ssh(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]) -> None:
    out = {"OUT": str(shop.folder / "no_ssh")}
    finished(cluster, shop, "no_ssh.sh", *({**env, **out, "NODE_RANK": rank} for rank in "01"))
    assert close(shop.metrics("no_ssh"), reference)


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str], rendezvous: str) -> None:
    own = {"OUT": str(shop.folder / rendezvous), "NODES": "2", "RENDEZVOUS": rendezvous}
    finished(cluster, shop, "torchrun.sh", *({**env, **own, "NODE_RANK": rank} for rank in "01"))
    assert close(shop.metrics(rendezvous), reference)


def test_hosts_whose_own_names_mean_themselves_alone(
    cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]
) -> None:
    """As Debian installs them: gloo by itself would take 127.0.1.1 for the address of each host, and wait for ever."""
    names = (cluster.folder / "hosts").read_text()
    for node in cluster.nodes:
        file = cluster.folder / f"{node.name}.hosts"
        file.write_text(names.replace(f"{node.address} {node.name}\n", f"127.0.1.1 {node.name}\n"))
        assert node.run("mount", "--bind", file, "/etc/hosts").returncode == 0
        assert node.run("hostname", "-i").stdout.strip() == "127.0.1.1"
    try:
        own = {**env, "OUT": str(shop.folder / "debian"), "NODES": "2", "MASTER_ADDR": cluster.nodes[0].address}
        finished(cluster, shop, "torchrun.sh", *({**own, "NODE_RANK": rank} for rank in "01"))
    finally:
        for node in cluster.nodes:
            node.run("umount", "/etc/hosts")
    assert close(shop.metrics("debian"), reference)


def test_one_host(cluster: Cluster, shop: Workshop, reference: Metrics, env: dict[str, str]) -> None:
    finished(cluster, shop, "one_host.sh", {**env, "RANKS": "2", "OUT": str(shop.folder / "one_host")})
    assert close(shop.metrics("one_host"), reference)


@pytest.fixture(scope="module")
def tuning(shop: Workshop, toy_folder: Path) -> Path:
    """A recipe that fine-tunes an untrained model."""
    recipe = parse_recipe(
        {
            "name": "toy",
            "data": {"path": str(toy_folder), "batch_size": 16},
            "modalities": {name: {"encoder": {"kind": "vector", "dim": 8}} for name in "ab"},
            "projection": {"dim": 8},
            "objective": {"kind": "anchored", "anchor": "a"},
        },
        where="test",
    )
    dataset = Dataset(toy_folder, list(recipe.modalities))
    model = write_model(
        shop.folder / "model", recipe, dataset, data_name="toy", data_contents=dataset.contents
    )  # fmt: skip
    path = shop.folder / "tune.toml"
    path.write_text(TUNE.format(model=model, data=toy_folder))
    return path


@pytest.fixture(scope="module")
def table(shop: Workshop, tuning: Path) -> list[dict[str, Any]]:
    """What two ranks of one host find that no launcher has started."""
    job = ["--config", str(tuning), "--out", str(shop.folder / "tuned")]
    with variables(shop.environment()):
        (((code, told),), _) = spawn(mains, 2, str(shop.folder), [job], None, "finetune")
    assert code == 0, told
    return rows_of(shop.folder / "tuned")


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / "report" / "table.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.parametrize("machines", [1, 2])
def test_accelerate(
    cluster: Cluster, shop: Workshop, tuning: Path, table: list[dict[str, Any]], env: dict[str, str], machines: int
) -> None:
    out = shop.folder / f"tuned-{machines}"
    own = {**env, "RECIPE": str(tuning), "RANKS": "2", "MACHINES": str(machines), "OUT": str(out)}
    if machines == 1:
        del own["MASTER_ADDR"]
    finished(cluster, shop, "accelerate.sh", *({**own, "MACHINE_RANK": str(rank)} for rank in range(machines)))
    assert close(rows_of(out), table)


@pytest.mark.parametrize(
    ("script", "hosts", "code"),
    [("pdsh.sh", 1, 2), ("openmpi.sh", 1, 2), ("no_ssh.sh", 2, 2), ("torchrun.sh", 2, 1), ("accelerate.sh", 1, 1)],
)
def test_how_a_wrong_recipe_ends(
    cluster: Cluster, shop: Workshop, env: dict[str, str], script: str, hosts: int, code: int
) -> None:
    """The ranks end with 2; torchrun, and accelerate which runs it, end with 1 all the same."""
    own = {"OUT": str(shop.folder / f"wrong-{script}"), "NODES": "2", "MACHINES": "1"}
    options = ["--set", "optim.lr=-1"]
    if hosts == 1:
        del env["MASTER_ADDR"]
    environments = [{**env, **own, "NODE_RANK": str(n)} for n in range(hosts)]
    with launched(cluster, shop, script, *environments, options=options) as run:
        # a launcher may be ended by the other host's before its own ranks have failed
        assert code in run.codes(), run.told()
        run.alone()
        assert "optim.lr" in run.told()


def endless(cluster: Cluster, shop: Workshop, env: dict[str, str], out: str) -> Launched:
    """A run by pdsh that goes on until it is stopped."""
    options = ["--set", "optim.epochs=100000", "--set", "evaluation.every_epochs=100000"]
    return launched(cluster, shop, "pdsh.sh", {**env, "OUT": str(shop.folder / out)}, options=options)


def test_a_runner_that_is_asked_to_end_saves_on_all_hosts(
    cluster: Cluster, shop: Workshop, env: dict[str, str], apart: None
) -> None:
    with endless(cluster, shop, env, "asked") as run:
        run.until(lambda: shop.checkpoints("asked"))
        run.process.send_signal(signal.SIGTERM)
        # DeepSpeed's own
        assert run.end() == 1, run.told()
        run.alone()
        preempted = run.preempted()
        assert preempted["step"] in shop.checkpoints("asked")
        # that of DeepSpeed's launch.py, or the end of pdsh, whichever is noticed first
        assert any(why in preempted["reason"] for why in ("SIGTERM to rank", "nobody reads", "death of the launcher"))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_all(cluster: Cluster, shop: Workshop, env: dict[str, str], killed: int) -> None:
    with endless(cluster, shop, env, f"killed-{killed}") as run:
        run.until(lambda: shop.checkpoints(f"killed-{killed}"))
        run.rank(killed).kill()
        assert run.end() != 0
        run.alone()
        assert not (shop.folder / f"killed-{killed}" / "preempted.json").exists()
