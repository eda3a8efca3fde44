"""The whole way, in small: shards, DeepSpeed's launcher, registry, fine-tuning, prediction and search.

Everything goes through the commands that users have, in a folder and with a registry of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.loading import Foundation, PropertyModel, load
from pretrain.ports import free_port
from tests.integration.spine import BIN, ROOT, Spine


@pytest.fixture(autouse=True)
def _registry(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spine.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{spine.folder}/mlflow.db")


def test_predict_prints_a_value_with_its_unit(spine: Spine) -> None:
    line = spine.run(BIN / "matloom", "predict", "models:/demo-formation-energy@champion", "GaN_wurtzite.cif")
    assert "formation energy = " in line and line.rstrip().endswith("eV/atom")
    (row,) = spine.json("predict", "models:/demo-formation-energy@champion", "GaN_wurtzite.cif")
    assert row["unit"] == "eV/atom" and -6 < float(row["value"]) < 3


def test_search_by_a_cif_finds_the_crystal_itself(spine: Spine, dft_shards: Path) -> None:
    hits = spine.json("search", "models:/demo@champion", "GaN_wurtzite.cif", "--data", dft_shards, "-k", 3)
    assert len(hits) == 3
    assert hits[0]["id"] == "GaN_wurtzite" and float(hits[0]["similarity"]) > 0.999


def test_search_by_a_dos_gives_neighbours(spine: Spine, dft_shards: Path) -> None:
    hits = spine.json("search", "models:/demo@champion", "GaN_wurtzite_dos.csv", "--data", dft_shards, "-k", 600)
    similarity = [float(hit["similarity"]) for hit in hits]
    assert len({hit["id"] for hit in hits}) == 547 and similarity == sorted(similarity, reverse=True)


def test_a_dos_finds_itself_among_densities_of_states(spine: Spine, dft_shards: Path) -> None:
    hits = spine.json(
        "search", "models:/demo@champion", "GaN_wurtzite_dos.csv", "--data", dft_shards, "--among", "dos", "-k", 1
    )
    assert hits[0]["id"] == "GaN_wurtzite"


def test_python_gives_what_the_command_line_gives(spine: Spine) -> None:
    from pymatgen.core import Structure

    foundation, predictor = load("models:/demo@champion"), load("models:/demo-formation-energy@champion")
    assert isinstance(foundation, Foundation) and isinstance(predictor, PropertyModel)
    structure = Structure.from_file("GaN_wurtzite.cif")
    vector = foundation.embed(structure)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
    np.testing.assert_allclose(foundation.embed(structure.make_supercell(2, in_place=False)), vector, atol=1e-4)
    (row,) = spine.json("predict", "models:/demo-formation-energy@champion", "GaN_wurtzite.cif")
    assert predictor.predict("GaN_wurtzite.cif") == pytest.approx(row["value"])


def test_the_readmes_python_works_in_a_fresh_interpreter(spine: Spine) -> None:
    code = """
from pymatgen.core import Structure
from finetune import load
structure = Structure.from_file("GaN_wurtzite.cif")
print(load("models:/demo@champion").embed(structure).shape)
print(load("models:/demo-formation-energy@champion").predict("GaN_wurtzite.cif"))
"""
    assert "(128,)" in spine.run(sys.executable, "-c", code)


def test_two_ranks_finetune_with_a_modality_missing_on_one(spine: Spine, dft_shards: Path) -> None:
    """Rows without a density of states: one rank may hold none of it, and must not leave the other waiting."""
    spine.run(
        BIN / "torchrun", "--nproc_per_node", 2, "--master_port", free_port(), ROOT / "launch" / "finetune.py",
        "--config", ROOT / "recipes" / "demo-finetune.toml", "--set", f"data={dft_shards}", "--set", "seeds=[0]",
        "--set", "target=volume_per_atom_a3", "--set", "name=two-ranks", "--set", "optim.epochs=1",
        "--set", "optim.batch_size=4", "--set", 'rows=[{strategy="full", modalities=["crystal", "dos"]}]',
    )  # fmt: skip
    table = json.loads((spine.folder / "runs" / "two-ranks" / "report" / "table.json").read_text())
    assert table["rows"][0]["modalities"] == ["crystal", "dos"]


def test_evaluate_states_every_ordered_pair_with_chance(spine: Spine, dft_shards: Path) -> None:
    rows = spine.json("evaluate", "models:/demo@champion", "--data", dft_shards, "--only", "retrieval")
    assert len(rows) == 5 * 4 and {(r["query"], r["target"]) for r in rows}.__len__() == 20
    assert all(r["chance_at_1"] == pytest.approx(1 / r["n"]) for r in rows)  # type: ignore[operator]


def test_what_mlflow_holds(spine: Spine) -> None:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(f"sqlite:///{spine.folder}/mlflow.db")
    client = MlflowClient()
    version = client.get_model_version_by_alias("demo", "champion")
    assert version.tags["modalities"] == "crystal,dos,charge_density,text,xrd"
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'demo-pretrain'")
    assert run.data.params["modalities.crystal.encoder.kind"] == "potnet"
    assert {"loss", "lr", "temperature", "val/mrr"} <= set(run.data.metrics)


def test_a_damaged_registered_model_is_refused(spine: Spine, tmp_path: Path) -> None:
    import shutil

    from finetune.registry import resolve

    copy = shutil.copytree(resolve("models:/demo-formation-energy@champion"), tmp_path / "copy")
    data = bytearray((copy / "predictor.json").read_bytes())
    data[10] ^= 1
    (copy / "predictor.json").write_bytes(data)
    message = spine.matloom("predict", copy, "GaN_wurtzite.cif", code=4)
    assert "predictor.json" in message and "Traceback" not in message


def test_errors_have_the_documented_codes_and_no_traceback(spine: Spine, tmp_path: Path) -> None:
    assert "known: demo" in spine.matloom("predict", "models:/none@champion", "GaN_wurtzite.cif", code=5)
    bad = tmp_path / "bad.cif"
    bad.write_text("no crystal\n")
    assert "bad.cif" in spine.matloom("predict", "models:/demo-formation-energy@champion", bad, code=3)
    message = spine.matloom("pretrain", ROOT / "recipes" / "demo.toml", "--set", "objective.anchr=1", code=2)
    assert "did you mean 'anchor'" in message and "Traceback" not in message
