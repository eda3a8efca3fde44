"""The scripts of `matloom launch plan` on two hosts: the same training, secrets from a file, data on their disks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs.base import Job, render
from shards.staged import copy_in
from tests.canaries import CANARIES, found_in
from tests.distributed.ranks import ROOT, TIMEOUT_S
from tests.distributed.runs import Workshop
from tests.launch.namespaces import Cluster, wait_for
from tests.launch.test_native import Metrics, close

pytestmark = pytest.mark.launch
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# on which of the hosts each is run
WHERE = {"mpi": 1, "torchrun": 2, "ssh": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path_factory.mktemp("jobs"), toy_folder, epochs=3, evaluate=1, save=5)


@pytest.fixture(scope="module")
def reference(shop: Workshop) -> Metrics:
    """Metrics of two ranks of one host that no launcher has started."""
    ((code, told),) = shop.run(shop.arguments("reference"), world=2)
    assert code == 0, told
    return shop.metrics("reference")


@pytest.fixture(scope="module")
def env_file(shop: Workshop) -> Path:
    """What the ranks must have to work here, and secrets, in a file alone."""
    file = shop.folder / "run.env"
    values = {name: value for name, value in CANARIES.items() if name not in shop.environment()}
    quoted = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in values.items()}
    lines = [f"{name}='{value}'" for name, value in {**quoted, **shop.environment()}.items()]
    file.write_text("\n".join([*lines, "MATLOOM_TEST_READ=yes", ""]))
    file.chmod(0o600)
    return file


def planned(
    kind: str, shop: Workshop, env_file: Path, cluster: Cluster, *, out: str, stage: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    job = Job(
        recipe=shop.recipe, name="toy", folder=ROOT, python=sys.executable, out=shop.folder / out, nodes=2,
        ranks_per_node=1, hosts=tuple(node.name for node in cluster.nodes), env_file=env_file, stage=stage,
        overrides=overrides,
    )  # fmt: skip
    script = shop.folder / f"{out}.sh"
    script.write_text(render(kind, job))
    return script


def started(kind: str, script: Path, cluster: Cluster) -> list[subprocess.Popen[bytes]]:
    nodes = cluster.nodes[: WHERE[kind]]
    return [node.popen("bash", script, log=script.with_suffix(f".{node.name}.log"), env=AS_ROOT) for node in nodes]


def told(script: Path) -> str:
    return "\n".join(log.read_text() for log in script.parent.glob(f"{script.stem}.node*.log"))


@pytest.mark.parametrize("kind", WHERE)
def test_a_planned_script_trains_as_ranks_that_nobody_launched(
    kind: str, cluster: Cluster, shop: Workshop, reference: Metrics, env_file: Path, tmp_path: Path, toy_folder: Path
) -> None:
    disk = tmp_path / "disk"
    script = planned(kind, shop, env_file, cluster, out=kind, stage=disk)
    codes = [process.wait(TIMEOUT_S) for process in started(kind, script, cluster)]
    assert set(codes) == {0}, told(script)
    assert close(shop.metrics(kind), reference)
    assert cluster.strays() == []
    assert not found_in(told(script))
    assert (copy_in(disk, str(toy_folder)) / "manifest.json").is_file()
    # each of the hosts has looked
    assert told(script).count("verified") == 2


@pytest.mark.parametrize("kind", ["mpi", "torchrun"])
def test_a_planned_script_saves_and_ends_with_75_when_it_is_asked_to(
    kind: str, cluster: Cluster, shop: Workshop, env_file: Path
) -> None:
    script = planned(kind, shop, env_file, cluster, out=f"{kind}-asked", overrides=("optim.epochs=300",))
    out = shop.folder / f"{kind}-asked"
    processes = started(kind, script, cluster)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(shop.metrics(out.name)) > 2)
    processes[0].send_signal(signal.SIGTERM)
    codes = [process.wait(TIMEOUT_S) for process in processes]
    assert set(codes) == {75}, told(script)
    assert cluster.strays() == []
    assert shop.checkpoints(out.name)
