"""`matloom predict`, `embed` and `export` as a user calls them, with a tiny model of crystals and molecules."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from finetune.calibration import Calibration
from finetune.heads.base import HEADS
from finetune.loading import PropertyModel, load
from finetune.materials import to_known_sample
from finetune.predictor import Predictor, PredictorInfo, build_featurizer, build_head, write_predictor
from launch.cli import app
from pretrain.config import parse_recipe
from pretrain.export import read_export, write_export
from pretrain.model import MultimodalModel
from pretrain.parts import fit_encoders
from pretrain.ports import free_port
from shards.errors import ConfigError
from shards.features import feature

ROOT = Path(__file__).resolve().parents[2]
SPECS = {
    "crystal": feature({"step": "crystal", "potentials": False}).spec("crystal"),
    "smiles": feature({"step": "smiles"}).spec("smiles"),
}
HEAD = {"kind": "regression", "hidden": 8}


def salt(number: int) -> Structure:
    cation = ("Li", "Na", "K")[number % 3]
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.5 + 0.1 * number), [cation, "Cl"], [[0] * 3, [0.5] * 3])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``cifs/``, the pretrained ``foundation`` and the predictor ``p`` of two targets."""
    home = tmp_path_factory.mktemp("home")
    (home / "cifs").mkdir()
    for number in range(7):
        salt(number).to(str(home / "cifs" / f"{number}.cif"), fmt="cif")
    recipe = parse_recipe(
        {
            "name": "salts", "data": {"path": "none", "batch_size": 4},
            "modalities": {"crystal": {"encoder": {"kind": "cgcnn", "dim": 8}},
                           "smiles": {"encoder": {"kind": "smiles_transformer", "dim": 8, "heads": 2}}},
            "projection": {"dim": 6}, "objective": {"kind": "anchored", "anchor": "crystal"},
        },
        where="test",
    )  # fmt: skip
    samples = [to_known_sample({"structure": salt(i), "smiles": "[Na+].[Cl-]"}, SPECS) for i in range(4)]
    fitted = fit_encoders(recipe, SPECS, lambda name: (sample.value(name) for sample in samples))  # type: ignore[misc]
    torch.manual_seed(0)
    model = MultimodalModel(recipe, SPECS, fitted)
    write_export(
        home / "foundation", model, recipe, fitted, step=1, data_name="salts", data_sha256="0", data_contents=(),
        validation=[],
    )  # fmt: skip
    export = read_export(home / "foundation")
    info = PredictorInfo(
        targets=("band_gap_ev", "bulk_modulus_gpa"), task="regression", modalities=("crystal", "smiles"), head=HEAD,
        foundation="models:/salts@champion", foundation_seal="0", strategy="frozen", metrics={},
    )  # fmt: skip
    featurizer = build_featurizer(export, info.modalities, pretrained=True)
    head = build_head(HEADS.options(HEAD), featurizer.width, info.targets)
    write_predictor(home / "p", Predictor(featurizer, head), export, info)
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def matloom(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        matloom(*arguments)
    return str(caught.value)


def test_a_file_and_a_smiles_are_predicted_with_names_and_units() -> None:
    lines = matloom("predict", "p", "cifs/0.cif", "CCO").splitlines()
    assert [line.split(" = ")[0] for line in lines] == [
        "cifs/0.cif: band gap", "cifs/0.cif: bulk modulus", "CCO: band gap", "CCO: bulk modulus",
    ]  # fmt: skip
    assert lines[0].endswith(" eV") and lines[1].endswith(" GPa")


def test_json_and_csv_say_what_python_says() -> None:
    model = load("p")
    assert isinstance(model, PropertyModel)
    expected = model.predict(["cifs/1.cif", "cifs/2.cif"]).values
    rows = json.loads(matloom("predict", "p", "cifs/1.cif", "cifs/2.cif", "--json"))
    assert {"file", "property", "value", "unit"} <= rows[0].keys()
    np.testing.assert_allclose([row["value"] for row in rows], expected.ravel(), rtol=1e-6)
    table = list(csv.DictReader(io.StringIO(matloom("predict", "p", "cifs/1.cif", "cifs/2.cif", "--csv"))))
    np.testing.assert_allclose([float(row["value"]) for row in table], expected.ravel(), rtol=1e-6)
    assert [row["unit"] for row in table] == ["eV", "GPa"] * 2


def test_a_class_comes_with_the_set_that_holds_it(tmp_path: Path) -> None:
    export, options = read_export(Path("foundation")), HEADS.options({"kind": "multiclass", "classes": 3})
    calibrator = Calibration(task="multiclass", score="probability", rows=(50,), quantile=(0.7,), temperature=(1.0,))
    calibration = calibrator.model_dump(mode="json")
    info = PredictorInfo(
        targets=("crystal_system",), task="multiclass", modalities=("crystal",), head=options.model_dump(mode="json"),
        foundation="", foundation_seal="0", strategy="frozen", metrics={}, calibration=calibration,
    )  # fmt: skip
    featurizer = build_featurizer(export, info.modalities, pretrained=True)
    head = build_head(options, featurizer.width, info.targets)
    write_predictor(tmp_path / "c", Predictor(featurizer, head), export, info)
    (row,) = json.loads(matloom("predict", tmp_path / "c", "cifs/1.cif", "--json"))
    expected = [number for number, share in enumerate(row["probability"]) if 1 - share <= 0.7]
    assert 0 < len(expected) < 3 and row["classes"] == expected
    (line,) = csv.DictReader(io.StringIO(matloom("predict", tmp_path / "c", "cifs/1.cif", "--csv")))
    assert line["classes"] == " ".join(map(str, expected)) and "probability_2" in line
    assert matloom("predict", tmp_path / "c", "cifs/1.cif").endswith(f" {{{', '.join(map(str, expected))}}}\n")


def test_a_folder_streams_into_parquet_and_goes_on() -> None:
    (Path("cifs") / "broken.cif").write_text("data_x\nnothing\n")
    done = json.loads(matloom("predict", "p", "--data", "cifs", "--out", "out", "--part-size", 3, "--json"))
    assert done == {"parts": 3, "computed": 3, "rows": 7, "quarantined": 1}
    frame = pd.read_parquet("out")
    assert list(frame["id"]) == [str(number) for number in range(7)]
    model = load("p")
    assert isinstance(model, PropertyModel)
    expected = model.predict([f"cifs/{i}.cif" for i in range(7)]).values
    np.testing.assert_allclose(frame[["band_gap_ev", "bulk_modulus_gpa"]], expected, rtol=1e-4)
    assert "broken" in Path("out/_quarantined.csv").read_text()
    assert "--resume" in refused("predict", "p", "--data", "cifs", "--out", "out", "--part-size", 3)
    Path("out/part-000001.parquet").unlink()
    text = matloom("predict", "p", "--data", "cifs", "--out", "out", "--part-size", 3, "--resume")
    assert "7 rows in 3 parts, 1 of them computed now, 1 put aside" in text
    (Path("cifs") / "broken.cif").unlink()
    assert "another 'data'" in refused("predict", "p", "--data", "cifs", "--out", "out", "--part-size", 3, "--resume")


def test_embeddings_go_to_a_file_to_parquet_and_to_the_screen() -> None:
    assert matloom("embed", "foundation", "cifs/0.cif", "cifs/1.cif") == "embeddings.npy: 2 x 6\n"
    vectors = np.load("embeddings.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    rows = json.loads(matloom("embed", "foundation", "cifs/0.cif", "cifs/1.cif", "--json"))
    np.testing.assert_allclose([row["vector"] for row in rows], vectors, rtol=1e-6)
    assert matloom("embed", "foundation", "CCO", "--csv").splitlines()[0] == "file,v0,v1,v2,v3,v4,v5"
    matloom("embed", "foundation", "--data", "cifs", "--out", "vectors")
    np.testing.assert_allclose(np.stack(pd.read_parquet("vectors")["embedding"][:2]), vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "p"], "--data"),
        (["predict", "p", "a.cif", "--data", "cifs"], "--data"),
        (["predict", "p", "--data", "cifs"], "--out"),
        (["predict", "p", "a.cif", "--out", "x", "--csv"], "--csv"),
        (["predict", "p", "a.cif", "--resume"], "go on"),
        (["predict", "foundation", "cifs/0.cif"], "without a head"),
        (["embed", "p", "cifs/0.cif"], "fine-tuned"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_an_export_predicts_the_same() -> None:
    assert "config.json" in matloom("export", "p", "exported")
    assert matloom("predict", "exported", "cifs/3.cif") == matloom("predict", "p", "cifs/3.cif")
    matloom("export", "foundation", "exported-foundation")
    (row,) = json.loads(matloom("embed", "exported-foundation", "CCO", "--json"))
    assert row == json.loads(matloom("embed", "foundation", "CCO", "--json"))[0]


def launched(how: str, home: Path) -> list[str]:
    """The command that starts two ranks of `matloom`."""
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "2"]
    port = ["--main_process_port", str(free_port())]
    if how == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port[1]]
    elif how == "accelerate":
        command = [*accelerate, "--multi_gpu", *port]
    else:
        if shutil.which("mpirun") is None:
            pytest.skip("accelerate starts several processes by --cpu through mpirun, which is not installed")
        (home / "hosts").write_text("localhost slots=2\n")
        command = [*accelerate, "--cpu", "--mpirun_hostfile", str(home / "hosts"), *port]
    return [*command, "-m", "launch.cli"]


def as_alone(folder: str) -> bool:
    """Whether the parts in a folder are those that one process wrote."""
    return all((Path(folder) / p.name).read_bytes() == p.read_bytes() for p in Path("alone").glob("part-*.parquet"))


@pytest.fixture
def stream(home: Path) -> list[str]:
    """A command; what it gives when one process computes it is in ``alone``."""
    if not Path("alone").exists():
        matloom("predict", "p", "--data", "cifs", "--out", "alone", "--part-size", 2)
    return ["predict", "p", "--data", "cifs", "--part-size", "2", "--json", "--out"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torchrun", "accelerate", "mpi"])
def test_a_launcher_starts_ranks_that_share_the_parts(how: str, stream: list[str], home: Path) -> None:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [*launched(how, home), *stream, how],
        cwd=home, env=environment(**root), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.strip().splitlines()[-1])
    assert (table["parts"], table["computed"], table["rows"]) == (4, 2, 7) and as_alone(how)


@pytest.mark.slow
def test_ranks_are_known_by_the_variables_of_mpi(stream: list[str], home: Path) -> None:
    # what accelerate launch --cpu --mpirun_hostfile and Open MPI leave in the environment of each process
    shared = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), ACCELERATE_USE_CPU="True")
    shared |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *stream, "by-mpi"],
            cwd=home, env={**shared, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in "01"
    ]  # fmt: skip
    said = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    # the first rank speaks, each has computed half
    assert json.loads(said[0][0].strip().splitlines()[-1])["computed"] == 2 and not said[1][0].strip()
    assert as_alone("by-mpi")


@pytest.mark.slow
def test_the_one_process_that_accelerate_starts_on_cpus_says_so(stream: list[str], home: Path) -> None:
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*command, "-m", "launch.cli", *stream, "one"],
        cwd=home, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "torchrun" in done.stderr, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["computed"] == 4 and as_alone("one")
