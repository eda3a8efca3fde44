from __future__ import annotations

from pathlib import Path

from pretrain.config import DataConfig
from pretrain.data import open_data
from shards.mixture import Mixture
from shards.overlay import OverlayPlan
from shards.reader import Dataset
from tests.unit.shards.test_overlay import SPECS, further, publish


def test_paths_and_overlays_of_a_recipe_are_opened_where_they_are_found(
    toy: Dataset, toy_folder: Path, tmp_path: Path
) -> None:
    layer = publish(tmp_path / "layer", further(toy), overlay_of=OverlayPlan(toy, SPECS).overlay_of)
    places = {"base": toy_folder, "more": layer}
    single = open_data(DataConfig(path="base", overlays=("more",)), ["a"], places.__getitem__)
    assert isinstance(single, Dataset)
    assert set(single.modalities) == {*toy.modalities, *SPECS}
    assert single.sha256.split("+")[0] == toy.sha256, "what the overlay lies on is not recognised"

    mix = ({"path": "base", "weight": 2}, {"path": "base", "name": "again", "overlays": ["more"]})
    mixture = open_data(DataConfig.model_validate({"mix": mix}), ["note", "a"], places.__getitem__)
    assert isinstance(mixture, Mixture)
    assert [(member.name, member.weight) for member in mixture.members] == [("toy", 2.0), ("again", 1.0)]
    assert list(mixture.modalities) == ["note", "a"]
    assert mixture.sha256 == f"{toy.sha256}+{single.sha256}"
