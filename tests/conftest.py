"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# in the background of a script INT is ignored, and so would all that tests start ignore it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# several test processes share few cores; before torch and numba are imported. Numba, which comes with UMAP, would set
# OpenMP's number anew, and small tensors on two threads take ten times the time
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest

from shards.locate import locate
from shards.reader import Dataset
from tests.synthetic import build_toy
from tests.workers import pytest_xdist_make_scheduler  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is built or fetched on first use goes into a folder of this session, not into the user's.

    The workers of a session share it, as processes on a node do.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    os.environ["MATLOOM_CACHE"] = str(folder / "cache")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published data set of 60 samples in 4 shards; read only."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    build_toy(folder)
    return folder


@pytest.fixture
def toy(toy_folder: Path) -> Dataset:
    return Dataset(toy_folder)


@pytest.fixture(scope="session")
def dft_shards(cache: None) -> Path:
    """The embedded data set as shards, built once for all; read only."""
    return Path(locate("embedded:dft_crystals"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party data for tests, which the project does not contain."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the third-party test data are not at {folder}")
    return folder
