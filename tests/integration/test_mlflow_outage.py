"""A real MLflow server that is stopped, or does not answer, in the middle of a run gets everything once in the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import delivery, tracking
from pretrain.tracking import Tracker, sync
from tests.mlflow_server import MLflow, Proxy, mlflow_server

CONTEST = {"data": "toy", "metric": "mrr"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflow]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(delivery, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(tracking, "FINISH_S", 30.0)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "weights").write_text("weights")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.csv").write_text("step,loss\n")
    return tmp_path


def train(run: Path, tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.metrics({"loss": 1 / (step + 1), "lr": 1e-3, "bad": float("nan")}, step)


def check(uri: str, run: Path, steps: range, *, runs: int = 1) -> str:
    """Assert that every metric stands once a step in the one run of this folder; returns its status."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{run.name}'")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == runs
    for name in ("loss", "lr", "bad"):
        history = client.get_metric_history(found[0].info.run_id, name)
        assert sorted(point.step for point in history) == list(steps)
    values = {m.step: m.value for m in client.get_metric_history(found[0].info.run_id, "loss")}
    assert values == {step: 1 / (step + 1) for step in steps}
    assert found[0].data.params["a.b"] == "1"
    return found[0].info.status


def test_lost_requests_and_lost_answers(server: MLflow, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    proxy = Proxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines: list[str] = []
    with Tracker(run, run.name, "toy", {"a": {"b": 1}}, report=lines.append) as tracker:
        for faults, (losing, of) in enumerate(
            [("answer", "runs/create"), ("answer", "runs/log-batch"), ("request", "runs/log-batch")]
        ):
            proxy.losing, proxy.of, proxy.lost = losing, of, 0
            train(run, tracker, range(10 * faults, 10 * faults + 10))
            while not proxy.lost:
                tracker.courier.drain(0.01)
            proxy.losing = ""
            assert tracker.courier.drain(30)
        tracker.files(run / "plots", "plots")
        proxy.losing, proxy.of, proxy.lost = "answer", "model-versions/create", 0
        monkeypatch.setattr(tracking, "FINISH_S", 0.0)
        assert tracker.register(run / "best", run.name, score=0.5, parameters={"step": 3}, contest=CONTEST) is None
        while not proxy.lost:
            tracker.courier.drain(0.01)
        proxy.losing = ""
        assert tracker.courier.drain(30)
        monkeypatch.setattr(tracking, "FINISH_S", 30.0)
    proxy.close()
    assert check(server.uri, run, range(30)) == "FINISHED"
    client = MlflowClient(server.uri)
    (version,) = client.search_model_versions(f"name = '{run.name}'")
    assert client.get_model_version_by_alias(run.name, "champion").version == version.version
    assert json.loads((run / "registered.json").read_text()) == {"uri": f"models:/{run.name}/{version.version}"}
    assert sum("away" in line for line in lines) == sum("back" in line for line in lines) >= 3


def test_a_server_that_is_stopped_in_mid_run_and_comes_back(
    server: MLflow, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines: list[str] = []
    with Tracker(run, run.name, "toy", {"a": {"b": 1}}, report=lines.append) as tracker:
        train(run, tracker, range(10))
        assert tracker.courier.drain(30)
        server.kill()
        train(run, tracker, range(10, 300))
        monkeypatch.setattr(tracking, "FINISH_S", 0.5)
        assert tracker.register(run / "best", run.name, score=0.5, parameters={}, contest=CONTEST) is None
    assert any("training goes on" in line for line in lines)
    assert f"matloom sync {run}" in lines[-1]
    assert not sync(run, report=lines.append, timeout_s=0.5)
    server.start()
    # the run is resumed some steps before its end, and does them again
    with Tracker(run, run.name, "toy", {"a": {"b": 2}}, resume=True, report=lines.append) as tracker:
        train(run, tracker, range(290, 310))
    assert sync(run, report=lines.append)
    assert check(server.uri, run, range(310)) == "FINISHED"
    assert len(MlflowClient(server.uri).search_model_versions(f"name = '{run.name}'")) == 1


def test_a_new_start_in_the_same_folder_is_a_new_run_and_an_error_is_seen(
    server: MLflow, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

    def fails() -> None:
        with Tracker(run, run.name, "toy", {"a": {"b": 1}}) as tracker:
            train(run, tracker, range(3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert check(server.uri, run, range(3)) == "FAILED"
    with Tracker(run, run.name, "toy", {"a": {"b": 1}}) as tracker:
        train(run, tracker, range(5))
    assert check(server.uri, run, range(5), runs=2) == "FINISHED"
