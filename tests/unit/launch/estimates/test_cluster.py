"""Descriptions of clusters."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.estimates.cluster import HERE, clusters, load_cluster
from shards.errors import ConfigError


def test_those_that_come_along_can_be_read_and_name_their_sources() -> None:
    assert clusters() == ["dgx-h100", "ethernet-100g", "hgx-a100"]
    for name in clusters():
        assert load_cluster(name).sources
    assert load_cluster("dgx-h100") == load_cluster(HERE / "dgx-h100.toml")
    assert load_cluster("hgx-a100").between.bandwidth == 12.5e9


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('bandwidth = "46 GB/s"', "bandwidth = 46", "no number with a unit"),
        ('bandwidth = "46 GB/s"', 'bandwidth = "46 GB"', "no number with a unit"),
        ('bandwidth = "46 GB/s"', 'bandwidth = "460 GB/s"', "in bits"),
        ('latency = "4 us"', 'latency = "4 GB/s"', "no number with a unit"),
        ('read_per_node = "20 GB/s"', 'read_per_node = "20 TB/s"', "one node would read more"),
        ("per_node = 8", "per_nodes = 8", "per_node"),
        ("achieved = 0.3", "achieved = 30", "less than or equal to 1"),
    ],
)
def test_wrong_units_and_implausible_figures_are_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = (HERE / "dgx-h100.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as refused:
        load_cluster(tmp_path / "mine.toml")
    assert said in str(refused.value)


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dgx-h100'"):
        load_cluster("dgxh100")
