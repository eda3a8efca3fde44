from __future__ import annotations

from collections.abc import Iterator

import pytest

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
