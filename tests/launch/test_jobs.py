"""The scripts of `matloom launch plan` on two hosts: the same training, secrets from a file, data on their disks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs.base import Job, render
from shards.staged import copy_in
from tests.canaries import CANARIES, found_in
from tests.distributed.ranks import ROOT
from tests.distributed.runs import Workshop
from tests.launch.launched import Launched
from tests.launch.namespaces import Cluster
from tests.launch.test_native import Metrics, close

pytestmark = pytest.mark.launch
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# on which of the hosts each is run
WHERE = {"mpi": 1, "torchrun": 2, "ssh": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Workshop:
    return Workshop.make(tmp_path_factory.mktemp("jobs"), toy_folder, epochs=3, evaluate=1, save=5)


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


def launched(kind: str, script: Path, cluster: Cluster, shop: Workshop) -> Launched:
    return Launched(cluster, shop, script.stem, *[["bash", script]] * WHERE[kind], env=AS_ROOT)


@pytest.mark.parametrize("kind", WHERE)
def test_a_planned_script_trains_as_ranks_that_nobody_launched(
    kind: str, cluster: Cluster, shop: Workshop, reference: Metrics, env_file: Path, tmp_path: Path, toy_folder: Path
) -> None:
    disk = tmp_path / "disk"
    script = planned(kind, shop, env_file, cluster, out=kind, stage=disk)
    with launched(kind, script, cluster, shop) as run:
        assert set(run.codes()) == {0}, run.told()
        assert cluster.strays() == []
    assert close(shop.metrics(kind), reference)
    assert not found_in(run.told())
    assert (copy_in(disk, str(toy_folder)) / "manifest.json").is_file()
    # each of the hosts has looked
    assert run.told().count("verified") == 2


@pytest.mark.parametrize("whom", [os.kill, os.killpg])
@pytest.mark.parametrize("kind", ["mpi", "torchrun"])
def test_a_planned_script_saves_and_ends_with_75_when_it_is_asked_to(
    kind: str, whom: Callable[[int, int], None], cluster: Cluster, shop: Workshop, env_file: Path
) -> None:
    """Also where all of its process group is, as by Ctrl-C."""
    script = planned(kind, shop, env_file, cluster, out=f"{kind}-{whom.__name__}", overrides=("optim.epochs=300",))
    with launched(kind, script, cluster, shop) as run:
        run.trained(3)
        whom(run.process.pid, signal.SIGINT if whom is os.killpg else signal.SIGTERM)
        assert set(run.codes()) == {75}, run.told()
        assert cluster.strays() == []
    assert shop.checkpoints(run.out.name)
