"""MLflow: parameters, metrics and files of a run, and the registered model. Rank 0 alone writes.

What is to be told goes into a journal on disk and from there to the server, by a thread: a server that is slow or away
costs no training time and loses nothing. mlflow is imported when something is delivered: that costs two seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pretrain.delivery import Courier
from pretrain.journal import Event, Journal
from pretrain.promotion import SCORE_TAG, contend
from shards.sealed import SEAL, sha256

DEFAULT_URI = "sqlite:///mlflow.db"
RUN_TAG = "matloom.run"
# by which MLflow nests a run in another
PARENT_TAG = "mlflow.parentRunId"
# of the seal when it was registered: files that were changed together with their seal are noticed
SEAL_TAG = "matloom.seal_sha256"
REGISTERED = "registered.json"
FOLDER = "tracking"
# of one call to the server
PARAMETERS, METRICS = 100, 1000
FINISH_S = 60.0
# for a run before this one in the same folder that is still delivering
HANDOVER_S = 60.0
# what MLflow itself would wait for before it says that a server is away: minutes, in which a run could not end
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or a SQLite database in the working folder, which ``mlflow ui`` finds."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def git_commit() -> dict[str, str]:
    """Return the commit of the code that runs, as a tag; none where it is installed without its repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": done.stdout.strip()}


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat


class Tracker:
    """One MLflow run, used as a context.

    Parameters
    ----------
    folder : Path
        Folder of the run; the journal stands in ``tracking/`` there.
    experiment, run_name : str
        Names in MLflow.
    parameters : mapping
        Logged flattened, when the run first starts.
    resume : bool
        Go on in the MLflow run of an earlier start in this folder.
    enabled : bool
        False on every rank but the first: then every method does nothing.
    report : callable
        Gets a line when the server goes away or is back.
    """

    def __init__(
        self,
        folder: Path,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        *,
        resume: bool = False,
        enabled: bool = True,
        report: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.experiment, self.run_name, self.resume = folder, experiment, run_name, resume
        self.parameters, self.enabled, self.report = parameters, enabled, report

    def __enter__(self) -> Tracker:
        if not self.enabled:
            return self
        if not self.resume:
            _set_aside(self.folder / FOLDER)
        self.journal = Journal(self.folder / FOLDER, wait_s=HANDOVER_S)
        if self.journal.is_new:
            flat = {key: str(value)[:500] for key, value in flatten(self.parameters).items()}
            self.journal.append("run", experiment=self.experiment, name=self.run_name, parameters=flat)
        else:
            self.journal.append("status", status="RUNNING")
        self.courier = Courier(self.journal, MLflowServer(self.folder, self.journal), self.report)
        self.courier.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        self.journal.append("status", status="FINISHED" if error is None else _status(error))
        if not self.courier.drain(FINISH_S):
            self.report(f"MLflow has not got everything yet; when it is there: matloom sync {self.folder}")
        self.courier.stop()

    def metrics(self, values: Mapping[str, float], step: int, *, model: str = "") -> None:
        """Log metrics without waiting for the server; ``model``: the registered model that they are of, by its URI."""
        if self.enabled:
            self.journal.metrics(values, step, model)
            self.courier.wake()

    def files(self, folder: Path, name: str) -> None:
        """Log the files of a folder (plots, tables), which lies in that of the run, under ``name``."""
        if self.enabled:
            self.journal.append("files", folder=str(folder.relative_to(self.folder)), name=name)
            self.courier.wake()

    def register(
        self, folder: Path, name: str, *, score: float, parameters: Mapping[str, Any], contest: Mapping[str, str]
    ) -> str | None:
        """Register an exported model, and make it ``champion`` if it wins the contest.

        Without a champion it is the first. A champion of the same contest is beaten by a better
        score; one of another contest stays until somebody moves the alias.

        Parameters
        ----------
        folder : Path
            The sealed export, in the folder of the run.
        name : str
            Registered model.
        score : float
            Higher is better.
        parameters : mapping
            Attached to the LoggedModel.
        contest : mapping of str to str
            What makes scores comparable (data, split, metric); attached as tags.

        Returns
        -------
        str or None
            ``models:/name/version``; None where the server is away: `sync` registers it later. The URI is also
            written to ``registered.json`` in the folder of the run.
        """
        result = self.folder / REGISTERED
        result.unlink(missing_ok=True)
        self.journal.append(
            "register",
            folder=str(folder.relative_to(self.folder)),
            name=name,
            score=score,
            parameters={key: str(value) for key, value in parameters.items()},
            contest=dict(contest),
            code=git_commit(),
        )
        self.courier.drain(FINISH_S)
        return json.loads(result.read_text())["uri"] if result.exists() else None

    def member(self, name: str, parameters: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Log a finished part of this run, a member of an ensemble, as a run nested in it.

        Its metrics are linked to the model that this run has registered, where it has.
        """
        if self.enabled:
            flat = {key: str(value)[:500] for key, value in flatten(parameters).items()}
            known = {key: float(value) for key, value in values.items()}
            self.journal.append("member", name=name, parameters=flat, values=known)
            self.courier.wake()


def sync(folder: Path, *, report: Callable[[str], None] = print, timeout_s: float = 600.0) -> bool:
    """Deliver what a run that has ended could not tell the server; says whether everything has arrived."""
    done = True
    for part in sorted(folder.glob(f"{FOLDER}*")):
        journal = Journal(part, wait_s=HANDOVER_S)
        courier = Courier(journal, MLflowServer(folder, journal), report)
        courier.start()
        done = courier.drain(timeout_s) and done
        courier.stop()
    return done


def _set_aside(folder: Path) -> None:
    """Make room for a new journal; one that is not delivered yet is kept for `sync`."""
    if not folder.exists():
        return
    journal = Journal(folder, wait_s=HANDOVER_S)
    delivered, key = journal.is_delivered, journal.state["key"]
    journal.close()
    if delivered:
        shutil.rmtree(folder)
    else:
        os.rename(folder, folder.with_name(f"{FOLDER}-{key[:8]}"))


def _status(error: BaseException) -> str:
    """KILLED for a run that saved and was preempted, FAILED for any other end before its own."""
    return "KILLED" if getattr(error, "exit_code", None) == 75 or isinstance(error, KeyboardInterrupt) else "FAILED"


class MLflowServer:
    """Tells a tracking server the events of one run.

    Parameters
    ----------
    folder : Path
        Folder of the run, which files and models are named relative to.
    journal : Journal
        Holds the run's key and, once it is known, MLflow's id of it.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder, self.journal = folder, journal
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The client; made at the first delivery."""
        if self._client is None:
            for name, value in PATIENCE.items():
                os.environ.setdefault(name, value)
            import mlflow

            mlflow.set_tracking_uri(tracking_uri())
            self._client = mlflow.MlflowClient()
        return self._client

    def deliver(self, events: list[Event], *, doubtful: bool) -> None:
        """Tell the events in order; metrics that follow each other in one call."""
        metrics: list[Event] = []
        for event in [*events, None]:
            if event is not None and event["kind"] == "metrics":
                metrics.append(event)
                continue
            if metrics:
                self._metrics(metrics, doubtful)
                metrics = []
            if event is not None:
                getattr(self, f"_{event['kind']}")(event)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.journal.state["run_id"]

    def _run(self, event: Event) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        key = self.journal.state["key"]
        experiment = self.client.get_experiment_by_name(event["experiment"])
        if experiment is None:
            try:
                experiment_id = self.client.create_experiment(event["experiment"])
            except MlflowException:
                # somebody else was faster
                experiment_id = self.client.get_experiment_by_name(event["experiment"]).experiment_id
        else:
            experiment_id = experiment.experiment_id
        found = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{key}'", max_results=1)
        run = found[0] if found else self._new_run(experiment_id, event, key)
        parameters = [Param(name, value) for name, value in event["parameters"].items()]
        for part in _parts(parameters, PARAMETERS):
            self.client.log_batch(run.info.run_id, params=part)
        self.journal.state["run_id"] = run.info.run_id
        self.journal.save()

    def _new_run(self, experiment_id: str, event: Event, key: str) -> Any:
        return self.client.create_run(
            experiment_id, start_time=event["time_ms"], run_name=event["name"], tags={RUN_TAG: key}
        )

    def _metrics(self, events: list[Event], doubtful: bool) -> None:
        from mlflow.entities import Metric

        known: dict[str, set[int]] = {}
        if doubtful:
            names = {name for event in events for name in event["values"]}
            known = {name: {m.step for m in self.client.get_metric_history(self.run_id, name)} for name in names}
        models = {uri: self._model_id(uri) for uri in {event.get("model", "") for event in events}}
        metrics = [
            Metric(name, value, event["time_ms"], event["step"], model_id=models[event.get("model", "")])
            for event in events
            for name, value in event["values"].items()
            if event["step"] not in known.get(name, ())
        ]
        for part in _parts(metrics, METRICS):
            self.client.log_batch(self.run_id, metrics=part)

    def _model_id(self, uri: str) -> str | None:
        """Return MLflow's id of a registered model, None where the URI is not that of one (any more)."""
        from mlflow.exceptions import MlflowException

        name, _, version = uri.removeprefix("models:/").partition("/")
        if not uri.startswith("models:/") or name.startswith("m-"):
            return name if name.startswith("m-") else None
        name, _, alias = name.partition("@")
        try:
            by_alias, by_version = self.client.get_model_version_by_alias, self.client.get_model_version
            found = by_alias(name, alias) if alias else by_version(name, version)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        # some versions of MLflow keep it in the source alone
        source = (found.source or "").removeprefix("models:/")
        return found.model_id or (source if source.startswith("m-") else None)

    def _member(self, event: Event) -> None:
        """Make a nested run, whole: what an earlier try has left of it is written over."""
        from mlflow.entities import Metric, Param

        experiment_id, mark = self.client.get_run(self.run_id).info.experiment_id, self._mark(event)
        found = self.client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{mark}'", max_results=1)
        tags = {RUN_TAG: mark, PARENT_TAG: self.run_id}
        run = found[0] if found else self.client.create_run(experiment_id, event["time_ms"], tags, event["name"])
        registered = self.folder / REGISTERED
        model = self._model_id(json.loads(registered.read_text())["uri"]) if registered.exists() else None
        parameters = [Param(name, value) for name, value in event["parameters"].items()]
        metrics = [
            Metric(name, value, event["time_ms"], 0, model_id=model)
            for name, value in event["values"].items()
            if name not in run.data.metrics
        ]
        self.client.log_batch(run.info.run_id, metrics=metrics, params=parameters)
        self.client.set_terminated(run.info.run_id, "FINISHED", end_time=event["time_ms"])

    def _files(self, event: Event) -> None:
        self.client.log_artifacts(self.run_id, str(self.folder / event["folder"]), artifact_path=event["name"])

    def _status(self, event: Event) -> None:
        if event["status"] == "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.client.set_terminated(self.run_id, event["status"], end_time=event["time_ms"])

    def _register(self, event: Event) -> None:
        name, score, contest = event["name"], event["score"], event["contest"]
        version = self._registered(event) or self._new_version(event)
        contend(self.client, name, version, score, contest)
        result = self.folder / f".{REGISTERED}.partial"
        result.write_text(json.dumps({"uri": f"models:/{name}/{version}"}))
        os.replace(result, self.folder / REGISTERED)

    def _registered(self, event: Event) -> str | None:
        """Return the version that an earlier try has made already."""
        found = self.client.search_model_versions(f"name = '{event['name']}'")
        mine = self._mark(event)
        return next((str(version.version) for version in found if version.tags.get(RUN_TAG) == mine), None)

    def _mark(self, event: Event) -> str:
        """Return what names an event for ever."""
        if event["kind"] == "member":
            return f"{self.journal.state['key']}-{event['name']}"
        return f"{self.journal.state['key']}-{event['time_ms']}"

    def _new_version(self, event: Event) -> str:
        import mlflow

        name, contest, mark = event["name"], event["contest"], {RUN_TAG: self._mark(event)}
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        seal = self.folder / event["folder"] / SEAL
        sealed = {SEAL_TAG: sha256(seal)} if seal.exists() else {}
        model = self.client.create_logged_model(
            experiment_id, name, self.run_id, {**contest, **mark, **sealed}, event["parameters"]
        )
        self.client.log_model_artifacts(model.model_id, str(self.folder / event["folder"]))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_metric(self.run_id, "score", event["score"], event["time_ms"], model_id=model.model_id)
        tags = {**contest, **mark, **sealed, SCORE_TAG: repr(event["score"]), **event.get("code", {})}
        return str(mlflow.register_model(f"models:/{model.model_id}", name, tags=tags).version)


def _parts(values: list[Any], most: int) -> Iterable[list[Any]]:
    return (values[start : start + most] for start in range(0, len(values), most))
