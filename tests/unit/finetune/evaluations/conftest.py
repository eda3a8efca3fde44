from __future__ import annotations

import pytest

from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import build_linear


@pytest.fixture(scope="session")
def linear_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """400 samples whose label is linear in what their modalities hold; read only."""
    return build_linear(tmp_path_factory.mktemp("linear") / "set")
