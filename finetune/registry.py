"""The model registry: from a URI to a local folder. The only module of this package that imports mlflow."""

from __future__ import annotations

from pathlib import Path

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
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        # with a local store this is the stored folder itself: never write into it
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"the registry has no '{uri}'",
            where=_without_password(tracking_uri()),
            why=f"{str(error).splitlines()[0]} ({suggest(_name(uri), _registered())})",
            do="set MLFLOW_TRACKING_URI to the store that holds it",
        ) from None


def _name(uri: str) -> str:
    return uri.removeprefix("models:/").partition("@")[0].partition("/")[0]


def _registered() -> list[str]:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return [model.name for model in MlflowClient().search_registered_models()]
    except MlflowException:
        return []


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def reachable() -> tuple[str, str]:
    """Return the store's URI without a password, and what is wrong with it (empty where nothing is)."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    shown = _without_password(tracking_uri())
    path = tracking_uri().removeprefix("sqlite:///")
    if path != tracking_uri() and not Path(path).exists():
        return f"{shown} (not created yet)", ""
    try:
        MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        return shown, str(error).splitlines()[0]
    return shown, ""
