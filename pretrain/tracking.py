"""MLflow: parameters, metrics and plots of a run, and the registered model. Rank 0 alone writes.

The only module of this package that imports mlflow, and it does so when a run starts: the import
costs two seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

DEFAULT_URI = "sqlite:///mlflow.db"
CHAMPION = "champion"
SCORE_TAG = "matloom.score"
REGISTERED = "registered.json"


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or a SQLite database in the working folder, which ``mlflow ui`` finds."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


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
    experiment, run_name : str
        Where the run appears.
    parameters : mapping
        Nested tables; logged flattened.
    enabled : bool
        False on every rank but the first: then every method does nothing.
    """

    def __init__(self, experiment: str, run_name: str, parameters: Mapping[str, Any], *, enabled: bool = True) -> None:
        self.experiment, self.run_name, self.parameters, self.enabled = experiment, run_name, parameters, enabled
        self.run_id = ""

    def __enter__(self) -> Tracker:
        if not self.enabled:
            return self
        import mlflow

        mlflow.set_tracking_uri(tracking_uri())
        mlflow.set_experiment(self.experiment)
        run = mlflow.start_run(run_name=self.run_name, log_system_metrics=True)
        self.run_id = run.info.run_id
        flat = {key: str(value)[:500] for key, value in flatten(self.parameters).items()}
        mlflow.log_params(flat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.enabled:
            return
        import mlflow

        mlflow.flush_async_logging()
        mlflow.end_run("FAILED" if error else "FINISHED")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics without waiting for the store."""
        if self.enabled:
            import mlflow

            mlflow.log_metrics(dict(values), step=step, synchronous=False)

    def files(self, folder: Path, name: str) -> None:
        """Log the files of a folder (plots, tables) under ``name``."""
        if self.enabled:
            import mlflow

            mlflow.log_artifacts(str(folder), artifact_path=name)

    def register(
        self, folder: Path, name: str, *, score: float, parameters: Mapping[str, Any], contest: Mapping[str, str]
    ) -> str:
        """Register an exported model, and make it ``champion`` if it wins the contest.

        Without a champion it is the first. A champion of the same contest is beaten by a better
        score; one of another contest stays until somebody moves the alias.

        Parameters
        ----------
        folder : Path
            The sealed export.
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
        str
            ``models:/name/version``.
        """
        import mlflow
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        model = mlflow.initialize_logged_model(
            name=name, params={key: str(value) for key, value in parameters.items()}, tags=dict(contest)
        )
        client = MlflowClient()
        client.log_model_artifacts(model.model_id, str(folder))
        mlflow.finalize_logged_model(model.model_id, "READY")
        mlflow.log_metrics({"score": score}, model_id=model.model_id)
        version = mlflow.register_model(
            f"models:/{model.model_id}", name, tags={**contest, SCORE_TAG: repr(score)}
        ).version
        try:
            champion = dict(client.get_model_version_by_alias(name, CHAMPION).tags)
        except MlflowException:
            champion = {**contest, SCORE_TAG: "-inf"}
        comparable = all(champion.get(key) == value for key, value in contest.items())
        if comparable and score > float(champion.get(SCORE_TAG, "-inf")):
            client.set_registered_model_alias(name, CHAMPION, version)
        return f"models:/{name}/{version}"
