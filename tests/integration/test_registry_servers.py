"""The registry commands against real servers: SQLite, PostgreSQL, basic authentication, several writers at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from pretrain import claim
from pretrain.config import parse_recipe
from pretrain.promotion import history
from pretrain.tracking import Tracker
from shards.errors import RegistryError
from shards.reader import Dataset
from shards.sealed import SEAL, sha256
from tests.mlflow_server import MLflow, mlflow_server
from tests.postgres_server import postgres_server
from tests.random_models import write_model

CONTEST = {"data": "toy", "data_sha256": "ab" * 32, "split": "s", "modalities": "a,b", "metric": "mrr"}
PASSWORD = "a-password-of-the-tests"
WRITERS = 3


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    dataset = Dataset(toy_folder, ["a", "b"])
    tables = {
        "name": "toy",
        "data": {"path": str(toy_folder)},
        "modalities": {name: {"encoder": {"kind": "vector", "dim": 8}} for name in ("a", "b")},
        "projection": {"dim": 8},
        "objective": {"kind": "all_pairs"},
    }
    recipe = parse_recipe(tables, where="test")
    return write_model(tmp_path_factory.mktemp("export") / "model", recipe, dataset, data_name="toy")


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("postgresql", "basic-auth")]


@pytest.fixture(scope="module", params=["sqlite", *SLOW])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflow]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if request.param == "postgresql":
            options["store"] = stack.enter_context(postgres_server())
        if request.param == "basic-auth":
            pytest.importorskip("flask_wtf", reason="mlflow's basic-auth needs flask-wtf")
            settings = folder / "auth.ini"
            settings.write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
                f"admin_username = admin\nadmin_password = {PASSWORD}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            options["options"] = ["--app-name", "basic-auth"]
            secret = "a-secret-of-the-tests"
            options["env"] = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": secret}
        running = stack.enter_context(mlflow_server(folder, **options))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", running.uri)
            patch.setenv("MATLOOM_CACHE", str(folder / "cache"))
            if request.param == "basic-auth":
                patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
                patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            yield running


def write(export: Path, folder: Path, score: float) -> None:
    """Register a copy of a model, as a run does."""
    shutil.copytree(export, folder / "best")
    with Tracker(folder, "experiment", f"run {score}", {"score": score}) as tracker:
        uri = tracker.register(folder / "best", "toy", score=score, parameters={"step": 1}, contest=CONTEST)
    assert uri is not None


def matloom(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if code == 0 and result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert PASSWORD not in result.output
    return result.stdout


def test_the_commands_with_several_writers_at_once(
    server: MLflow, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write, args=(export, tmp_path / str(i), 0.5 + 0.1 * i), name=str(i))
        for i in range(WRITERS)
    ]
    for writer in writers:
        (tmp_path / writer.name).mkdir()
        writer.start()
    for writer in writers:
        writer.join(200)
        assert writer.exitcode == 0
    listed = json.loads(matloom("registry", "list", "--json"))
    assert sorted(row["version"] for row in listed) == ["1", "2", "3"]
    # whoever came when, the best holds the alias, and every move is in the history
    (champion,) = [row for row in listed if "champion" in row["aliases"]]
    assert champion["metrics"]["score"] == pytest.approx(0.7)
    assert json.loads(matloom("registry", "list", "--metric", "score>0.65", "--json")) == [champion]
    shown = json.loads(matloom("registry", "show", "toy", "--json"))
    assert [record["number"] for record in shown["promotions"]] == list(range(1, 1 + len(shown["promotions"])))
    assert shown["promotions"][-1]["version"] == champion["version"]
    other = next(row["version"] for row in listed if row is not champion)
    assert f"{champion['version']} -> {other}" in matloom("registry", "promote", "toy", other, "--why", "a try")
    assert f"{other} -> {champion['version']}" in matloom("registry", "rollback", "toy", "--why", "no good")
    copy = tmp_path / "copy"
    told = json.loads(matloom("registry", "pull", "models:/toy@champion", "--out", copy, "--json"))
    assert told == {"uri": "models:/toy@champion", "folder": str(copy), "seal": sha256(export / SEAL)}
    assert (copy / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
    assert matloom("registry", "verify").count("ok ") == 3
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    if "basic-auth" in server.options:
        with pytest.raises(RegistryError) as refused:
            matloom("registry", "list")
        assert "wrong" not in str(refused.value)


def test_who_may_only_read_moves_nothing_and_blocks_nothing(
    server: MLflow, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody may create experiments, whose names claims are made of."""
    if "basic-auth" not in server.options:
        pytest.skip("users have no rights without basic-auth")
    from mlflow import MlflowClient
    from mlflow.server import get_app_client

    users = get_app_client("basic-auth", server.uri)
    for user in ("reader", "editor"):
        users.create_user(user, PASSWORD)
    users.grant_user_permission("editor", "registered_model", "toy", "EDIT")
    before = json.loads(matloom("registry", "show", "toy", "--json"))
    (champion,) = [row["version"] for row in before["versions"] if "champion" in row["aliases"]]
    other = next(row["version"] for row in before["versions"] if row["version"] != champion)

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    last = history(MlflowClient(), "toy", "champion")[-1]
    for title in list(claim._titles("toy", "champion", last.number + 1, last))[:3]:
        MlflowClient().create_experiment(title, tags={claim.TAG: "mine"})
    with pytest.raises(RegistryError, match="cannot be moved"):
        matloom("registry", "promote", "toy", other, "--why", "mine")
    assert json.loads(matloom("registry", "show", "toy", "--json")) == before

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "editor")
    told = json.loads(matloom("registry", "promote", "toy", other, "--why", "a try", "--json"))
    assert (told["version"], told["previous"], told["number"]) == (other, champion, last.number + 1)
    assert told["who"].startswith("editor@")
    back = json.loads(matloom("registry", "rollback", "toy", "--why", "no good", "--json"))
    assert back["version"] == champion and back["back"]


def test_a_run_is_read_by_its_own_uri_and_compared_with_the_seal_that_it_registered(
    server: MLflow, export: Path
) -> None:
    from finetune.registry import resolve
    from finetune.registry.entries import find
    from finetune.registry.uris import locate

    entry = find("models:/toy@champion")
    assert entry is not None
    uri = f"runs:/{entry.run_id}/toy"
    assert locate(uri).seal == sha256(export / SEAL)
    assert resolve(uri) == resolve(f"models:/{entry.model_id}") == resolve("models:/toy@champion")


def test_a_model_that_was_pulled_loads_while_the_server_is_away(server: MLflow, export: Path) -> None:
    """Runs last: the server is killed, and a file of its artifacts is changed before it is started again."""
    from finetune.loading import Foundation, load
    from finetune.registry import resolve

    first = load("models:/toy@champion")
    server.kill()
    again = load("models:/toy@champion")
    assert isinstance(first, Foundation) and isinstance(again, Foundation) and again.seal == first.seal
    with pytest.raises(RegistryError):
        resolve("models:/toy/99")
    weights = sorted((server.folder / "artifacts").rglob("model.safetensors"))
    for path in weights:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    server.start()
    shutil.rmtree(os.environ["MATLOOM_CACHE"])
    told = matloom("registry", "verify", code=4)
    assert told.count("REFUSED") == 3 and "model.safetensors" in told
