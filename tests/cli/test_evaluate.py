"""`matloom evaluate` and `matloom leaderboard`: what they print, write, log, and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from finetune.evaluations.base import EVALUATIONS
from finetune.loading import Foundation, PropertyModel
from launch.evaluate_cli import evaluate
from launch.leaderboard_cli import jarvis_split
from pretrain.config import parse_recipe
from pretrain.tracking import Tracker
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from tests.random_models import write_model
from tests.unit.finetune.evaluations.linear import build_linear

ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A folder with a data set, an exported model of it, and a registry."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.model = folder, folder / "data", folder / "run" / "model"
        self.store = f"sqlite:///{folder}/mlflow.db"
        dataset = build_linear(self.data, count=200)
        modalities = {name: {"encoder": {"kind": "vector", "dim": 8}} for name in "abc"}
        recipe = parse_recipe(
            {
                "name": "toy", "data": {"path": str(self.data)}, "modalities": modalities, "projection": {"dim": 8},
                "objective": {"kind": "anchored", "anchor": "a"},
            },
            where="test",
        )  # fmt: skip
        self.model.parent.mkdir()
        write_model(self.model, recipe, dataset)

    def evaluate(self, *only: str, **options: Any) -> None:
        """What the command does, in this process."""
        evaluate(str(options.pop("uri", self.model)), data=str(self.data), only=list(only), **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("evaluate"))


def test_retrieval_is_printed_as_json_by_the_command_itself(place: Place) -> None:
    arguments = ["evaluate", place.model, "--data", place.data, "--only", "retrieval", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=place.folder, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": place.store},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 6 and all(row["chance_at_1"] == pytest.approx(1 / row["n"]) for row in rows)
    assert (place.folder / "runs" / "evaluate" / "model" / "report" / "report.html").exists()
    # a folder is not logged unless it is asked for
    assert not (place.folder / "mlflow.db").exists()


def test_retrieval_is_printed_as_lines(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place.evaluate("retrieval", out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0].split()[:3] == ["a", "->", "b"] and "median rank" in lines[0]


def test_several_evaluations_take_options_and_make_one_report(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ['probes.properties=["side"]', "interpretability.neighbours=3"]
    place.evaluate("probes", "interpretability", out=tmp_path, set_=overrides, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"probes", "interpretability"}
    assert {row["property"] for row in found["probes"]["tables"]["probes"]} == {"side"}
    report = tmp_path / "report"
    for file in ("report.html", "probes/probes.csv", "probes/probes.png", "interpretability/interpretability.json"):
        assert (report / file).stat().st_size > 100
    assert json.loads((report / "findings.json").read_text())["probes"]["values"] == found["probes"]["values"]


def test_all_that_fit_are_run_and_what_the_data_do_not_allow_is_left_out(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the map takes seconds to compile; the others of the package are tested with it
    kinds = ["retrieval", "probes", "interpretability", "missing"]
    monkeypatch.setattr(EVALUATIONS, "kinds", lambda: kinds)
    place.evaluate(out=tmp_path, set_=['probes.properties=["nothing"]'])
    shown = capsys.readouterr().out
    assert "probes: left out, none of ['nothing']" in shown
    written = {path.name for path in (tmp_path / "report").iterdir() if path.is_dir()}
    assert written == {"retrieval", "interpretability"}


def test_what_cannot_be_evaluated_is_named(place: Place, tmp_path: Path) -> None:
    cases: list[tuple[list[str], list[str], str]] = [
        (["retreival"], [], "did you mean 'retrieval'"),
        (["missing"], [], "evaluates a PropertyModel"),
        (["probes"], ["probes.neighbors=3"], "did you mean 'neighbours'"),
        (["probes"], ["probes=3"], "is an evaluation"),
    ]
    for only, overrides, message in cases:
        with pytest.raises(ConfigError, match=message):
            place.evaluate(*only, set_=overrides, out=tmp_path)
    with pytest.raises(DataError, match="none of"):
        place.evaluate("probes", set_=['probes.properties=["nothing"]'], out=tmp_path)


def test_figures_are_linked_to_the_registered_model(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.store)
    monkeypatch.chdir(place.folder)
    with Tracker(place.folder / "run", "toy", "toy-run", {}) as tracker:
        uri = tracker.register(place.model, "toy", score=1.0, parameters={}, contest={"data": "x"})
    assert uri == "models:/toy/1"
    import mlflow

    mlflow.set_tracking_uri(place.store)
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models(["1"])
    for number, name in enumerate(("models:/toy@champion", uri, f"models:/{model.model_id}")):
        place.evaluate("retrieval", uri=name, out=tmp_path / str(number), experiment=f"e{number}")
        experiment = client.get_experiment_by_name(f"e{number}")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.data.params["model"] == name and run.data.params["retrieval.ks"] == "(1, 5, 10, 25)"
        linked = {
            m.key: m.value for m in client.get_logged_model(model.model_id).metrics if m.run_id == run.info.run_id
        }
        assert linked["retrieval/a-b/recall_at_1"] == run.data.metrics["retrieval/a-b/recall_at_1"]
        names = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
        assert {"report/report.html", "report/findings.json", "report/retrieval"} <= names


def test_every_evaluation_says_what_it_wants_and_describes_its_options() -> None:
    for kind in EVALUATIONS.kinds():
        evaluation = EVALUATIONS.get(kind)
        assert issubclass(Foundation, evaluation.wants) or issubclass(PropertyModel, evaluation.wants)
        assert evaluation.__doc__
        assert evaluation(kind=kind).kind == kind
    assert EVALUATIONS.get("retrieval").wants is Foundation


def test_a_jarvis_split_is_added_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build_linear(tmp_path / "set", count=30)
    ids = Dataset(tmp_path / "set").ids
    tables = {"train": dict.fromkeys(ids[:20], 1.0), "val": {}, "test": dict.fromkeys(ids[20:], 2.0)}
    with zipfile.ZipFile(tmp_path / "dft_3d_gap.json.zip", "w") as archive:
        archive.writestr("dft_3d_gap.json", json.dumps(tables))
    jarvis_split(
        tmp_path / "set", "jarvis", "AI-SinglePropertyPrediction-gap-dft_3d-test-mae", tmp_path / "dft_3d_gap.json.zip"
    )
    assert capsys.readouterr().out.strip() == "jarvis: train 20, test 10"
    assert len(Dataset(tmp_path / "set").positions("jarvis", "test")) == 10
