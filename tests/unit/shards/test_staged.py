"""Copies on a node's own disk are read while they are what the recipe means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.hosts.staging import bring
from shards import edition
from shards.errors import DataError
from shards.locate import existing, locate
from shards.staged import STAGE, copy_in
from tests.synthetic import build_toy


@pytest.fixture
def source(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose copy has been staged."""
    source, disk = tmp_path / "source", tmp_path / "disk"
    shutil.copytree(toy_folder, source)
    bring([str(source)], disk, lambda answer: None)
    monkeypatch.setenv(STAGE, str(disk))
    assert locate(str(source)) == existing(str(source)) == copy_in(disk, str(source))
    return source


def test_other_data_in_the_folder_are_read_and_not_the_copy(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source)
    build_toy(source, count=20)
    assert locate(str(source)) == existing(str(source)) == source
    bring([str(source)], tmp_path / "disk", lambda answer: None)
    assert locate(str(source)) == copy_in(tmp_path / "disk", str(source))


def test_a_folder_that_is_gone_is_named(source: Path) -> None:
    shutil.rmtree(source)
    assert locate(str(source)) == source
    with pytest.raises(DataError, match="is not on this host"):
        existing(str(source))


def test_an_embedded_set_is_staged_anew_after_an_upgrade(
    tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, built, said = "embedded:dft_crystals", [], []

    def build(name: str, out: Path) -> None:
        built.append(out)
        shutil.copytree(toy_folder, out)

    monkeypatch.setattr("shards.locate.build_embedded", build)
    monkeypatch.setenv(STAGE, str(tmp_path))
    bring([place], tmp_path, said.append)
    bring([place], tmp_path, said.append)
    assert said[-1] == {"said": f"{place} is there, verified"} and locate(place) == built[0]
    monkeypatch.setattr(edition, "library_versions", lambda: {"pymatgen": "another release"})
    bring([place], tmp_path, said.append)
    assert len(set(built)) == 2 and locate(place) == built[1]
