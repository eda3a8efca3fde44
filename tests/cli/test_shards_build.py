"""`matloom shards build` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from finetune.data import check_schema
from launch.cli import app
from pretrain.config import parse_recipe
from pretrain.export import write_export
from pretrain.model import MultimodalModel
from pretrain.parts import fit_encoders
from shards.errors import ConfigError, DataError
from shards.reader import Dataset

RECIPE = """
name = "salts"
[source]
kind = "structures"
path = "{folder}/cifs"
[join]
path = "{folder}/gaps.csv"
id = "name"
labels = {{ band_gap_ev = "gap" }}
[modalities.crystal]
step = "crystal"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "cifs").mkdir()
    for name, length in (("NaCl", 5.64), ("NaF", 4.62), ("NaBr", 5.97)):
        structure = Structure.from_spacegroup("Fm-3m", Lattice.cubic(length), ["Na", name[2:]], [[0] * 3, [0.5] * 3])
        structure.to(filename=str(tmp_path / "cifs" / f"{name}.cif"))
    (tmp_path / "gaps.csv").write_text("name,gap\nNaCl,5.0\nNaF,6.1\nKCl,5.1\n")
    path = tmp_path / "salts.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["shards", "build", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_recipe_is_built_and_what_did_not_match_is_counted(recipe: Path, tmp_path: Path) -> None:
    told = run(recipe, tmp_path / "set", "--workers", 1)
    assert "3 samples in 1 shards" in told and "coverage: crystal 3" in told
    assert "join: 1 records without row" in told and "join: 1 rows without record" in told
    report = json.loads(run(recipe, tmp_path / "again", "--workers", 1, "--json"))
    assert report["samples"] == 3 and report["join"] == {"records_without_row": 1, "rows_without_record": 1}


def test_dry_run_builds_nothing(recipe: Path, tmp_path: Path) -> None:
    told = json.loads(run(recipe, tmp_path / "set", "--dry-run", "--set", "source.files=Na[CF]*.cif"))
    assert told["records"] == 2 and told["recipe"]["shard_samples"] == 256
    assert not (tmp_path / "set").exists()


def test_the_short_form_names_steps(recipe: Path, tmp_path: Path) -> None:
    told = run(f"structures:{tmp_path}/cifs", tmp_path / "set", "--feature", "crystal", "--feature", "xrd")
    assert "coverage: crystal 3, xrd 3" in told


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("structurs:x", ["--feature", "crystal"], ConfigError, "did you mean 'structures'"),
        ("structures:x", ["--feature", "cristal"], ConfigError, "did you mean 'crystal'"),
        ("structures:x", [], ConfigError, "no modality is asked for"),
        ("structures:x", ["--feature", "crystal", "--set", "source.fils=a"], ConfigError, "did you mean 'files'"),
        ("structures:not-there", ["--feature", "crystal"], DataError, "not-there"),
    ],
)
def test_what_cannot_be_built_is_named(
    source: str, options: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(source, tmp_path / "set", *options)


def test_the_feature_steps_of_a_model(recipe: Path, tmp_path: Path) -> None:
    """What is built like a model's data, the model reads; what is built with other steps, it refuses."""
    changed = ("--set", "modalities.crystal.cutoff_a=3.5", "--set", 'modalities.xrd={step="xrd"}')
    run(recipe, tmp_path / "set", "--workers", 1, *changed)
    dataset = Dataset(tmp_path / "set")
    encoders = {
        "crystal": {"kind": "composition", "dim": 8},
        "xrd": {"kind": "spectrum_transformer", "dim": 8, "depth": 0, "summary": False},
    }
    names = {name: {"encoder": encoder} for name, encoder in encoders.items()}
    tables = {"name": "m", "data": {"path": "set"}, "modalities": names, "projection": {"dim": 8}}
    pretrained = parse_recipe({**tables, "objective": {"kind": "all_pairs"}}, where="test")
    fitted = fit_encoders(pretrained, dataset.modalities, lambda name: [sample.value(name) for sample in dataset])
    model = MultimodalModel(pretrained, dataset.modalities, fitted)
    known = dict.fromkeys(("data_name", "data_sha256"), "")
    write_export(tmp_path / "model", model, pretrained, fitted, step=1, data_contents=[], validation=[], **known)
    source = (f"structures:{tmp_path}/cifs", tmp_path / "mine", "--workers", 1, "--feature", "crystal")
    run(*source, "--like", tmp_path / "model")
    check_schema(model.specs, Dataset(tmp_path / "mine"), ["crystal"])
    run(*source[:1], tmp_path / "other", *source[2:])
    with pytest.raises(DataError, match="cutoff_a"):
        check_schema(model.specs, Dataset(tmp_path / "other"), ["crystal"])
    with pytest.raises(ConfigError, match="the model has no modality 'dos'"):
        run(*source[:-1], "dos", "--like", tmp_path / "model")
    with pytest.raises(ConfigError, match="names its feature steps itself"):
        run(recipe, tmp_path / "more", "--like", tmp_path / "model")
