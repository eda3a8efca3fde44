"""The model registry: from a URI to a local folder. The only module of this package that imports mlflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pretrain.tracking import tracking_uri
from shards.errors import RegistryError, suggest

SCHEMES = ("models:/", "runs:/")


def resolve(uri: str) -> Path:
    """Return the local folder of a model.

    Parameters
    ----------
    uri : str
        ``models:/name@alias``, ``models:/name/version``, ``models:/m-id``, ``runs:/id/path``, or a folder.

    Raises
    ------
    RegistryError
        Where the registry has no such model; the message names those that it has.
    """
    if not uri.startswith(SCHEMES):
        folder = Path(uri)
        if not folder.is_dir():
            raise RegistryError(
                f"there is no model folder '{uri}'", do="give a folder, or a registry URI such as models:/demo@champion"
            )
        return folder
    if not _store_exists():
        raise RegistryError(
            "there is no registry yet",
            where=_without_password(tracking_uri()),
            do="run in the folder that holds mlflow.db, or set MLFLOW_TRACKING_URI",
        )
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        # with a local store this is the stored folder itself: never write into it
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the registry has no '{uri}'",
            where=_without_password(tracking_uri()),
            why=f"{str(error).splitlines()[0]} ({_hint(uri)})",
            do="set MLFLOW_TRACKING_URI to the store that holds it",
        ) from None


def _mlflow() -> Any:
    """Import mlflow, bound to the store, with a server that is away noticed in seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow


def _store_exists() -> bool:
    """Say whether a SQLite store is there: looking into one that is not would create it."""
    path = tracking_uri().removeprefix("sqlite:///")
    return path == tracking_uri() or Path(path).exists()


def _hint(uri: str) -> str:
    """Name the aliases and versions of a known model, or the models that there are."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
    try:
        known = {model.name: model for model in MlflowClient().search_registered_models()}
    except MlflowException:
        return "the registry does not answer"
    if name not in known:
        return suggest(name, known)
    latest = max((int(version.version) for version in known[name].latest_versions or []), default=0)
    return f"'{name}' has the aliases {sorted(known[name].aliases)} and {latest} versions"


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def reachable() -> tuple[str, str]:
    """Return the store's URI without a password, and what is wrong with it (empty where nothing is)."""
    shown = _without_password(tracking_uri())
    if not _store_exists():
        return f"{shown} (not created yet)", ""
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        return shown, str(error).splitlines()[0]
    return shown, ""
