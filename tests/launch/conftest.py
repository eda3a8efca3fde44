"""Two hosts, and runs on them, that the tests of this room share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.held import WORLD, environment, finished, held_shop
from tests.distributed.ranks import variables
from tests.distributed.runs import Workshop
from tests.launch.namespaces import Cluster, hosts


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts, for all tests of this process; each test leaves their cables whole and nothing running."""
    with hosts(tmp_path_factory, 2) as cluster:
        yield cluster


@pytest.fixture
def cluster(pair: Cluster) -> Iterator[Cluster]:
    """Two idle hosts."""
    yield pair
    for node in pair.nodes:
        node.mend()
        node.kill_all()
        if not (pair.folder / f"{node.name}.sshd.pid").exists():
            node.start_sshd()


@pytest.fixture
def apart(cluster: Cluster) -> None:
    """Let ``pkill`` on a host see that host's processes alone: DeepSpeed ends its launchers on all hosts by it."""
    real = cluster.folder / "pkill"
    if real.exists():
        return
    shutil.copy(Path(shutil.which("pkill") or pytest.skip("pkill is not installed")).resolve(), real)
    wrapper = cluster.folder / "pkill.sh"
    wrapper.write_text(f'#!/bin/sh\nexec {real} --ns $$ --nslist net "$@"\n')
    wrapper.chmod(0o755)
    for node in cluster.nodes:
        assert node.run("mount", "--bind", wrapper, Path(shutil.which("pkill") or "").resolve()).returncode == 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    """Runs that can be held, also in ranks that this process forks; modules may have others."""
    shop = held_shop(tmp_path_factory.mktemp("runs"), toy_folder)
    with variables(environment(shop, "-")):
        yield shop


@pytest.fixture(scope="module")
def whole(shop: Workshop) -> str:
    """A run of two ranks that nobody launches or disturbs."""
    finished(shop, shop.arguments("whole"), world=WORLD)
    return "whole"


@pytest.fixture(scope="module")
def reference(shop: Workshop) -> list[dict[str, float]]:
    """Metrics of two ranks of one host that no launcher has started."""
    ((code, told),) = shop.run(shop.arguments("reference"), world=2)
    assert code == 0, told
    return shop.metrics("reference")
