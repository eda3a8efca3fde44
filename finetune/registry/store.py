"""MLflow's store: the only module of this package that imports mlflow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.tracking import tracking_uri
from shards.errors import RegistryError, suggest

ALL = 1000
# what a store says that answers: the error codes of MLflow that are no matter of reaching it
ANSWERS = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)


class AwayError(RegistryError):
    """The store does not answer; what it would say is not known."""


@contextmanager
def asking(what: str, *, about: str = "") -> Iterator[Any]:
    """Yield the client; what the store refuses becomes a `RegistryError` that names what there is.

    Parameters
    ----------
    what : str
        The error, should there be one: ``the registry has no 'models:/x/1'``.
    about : str
        The registered model that it is about, for a hint.
    """
    if not store_exists():
        raise RegistryError(
            "there is no registry yet",
            where=shown_uri(),
            do="run in the folder that holds mlflow.db, or set MLFLOW_TRACKING_URI",
        )
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield mlflow.MlflowClient()
    except (MlflowException, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise (RegistryError if _answers(error) else AwayError)(
            what,
            where=shown_uri(),
            why=f"{first} ({_hint(about)})" if about else first,
            do="matloom registry list; MLFLOW_TRACKING_URI says which store is asked",
        ) from None


def _answers(error: Exception) -> bool:
    """Say whether the store has answered, with a no."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return getattr(error, "error_code", None) in ANSWERS or (status is not None and status < 500)


def download(uri: str, target: Path | None = None) -> Path:
    """Return the folder of an artifact: of a local store the stored one itself, which must not be written to.

    With ``target`` it is copied there.
    """
    name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
    with asking(f"the registry has no '{uri}'", about=name if uri.startswith("models:/") else ""):
        import mlflow

        return Path(
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=None if target is None else str(target))
        )


def every(search: Callable[..., Any], **options: Any) -> list[Any]:
    """Return what a search of the client finds, all pages of it."""
    page = search(max_results=ALL, **options)
    found = list(page)
    while page.token:
        page = search(max_results=ALL, page_token=page.token, **options)
        found += page
    return found


def versions_of(client: Any, name: str) -> list[Any]:
    """Return all versions of a registered model, as MLflow has them."""
    # a name is quoted by doubling what closes it; MLflow refuses most others anyhow
    quoted = name.replace("'", "''")
    return every(client.search_model_versions, filter_string=f"name = '{quoted}'")


def store_exists() -> bool:
    """Say whether a SQLite store is there: looking into one that is not would create it."""
    path = tracking_uri().removeprefix("sqlite:///")
    return path == tracking_uri() or Path(path).exists()


def is_local() -> bool:
    """Say whether the store is a file of this machine, which hands out the stored folders themselves."""
    return tracking_uri().startswith("sqlite:")


def shown_uri() -> str:
    """Return the store's URI without a password."""
    scheme, separator, rest = tracking_uri().partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def reachable() -> tuple[str, str]:
    """Return the store's URI without a password, and what is wrong with it (empty where nothing is)."""
    if not store_exists():
        return f"{shown_uri()} (not created yet)", ""
    mlflow = _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        mlflow.MlflowClient().search_registered_models(max_results=1)
    except (MlflowException, OSError) as error:
        return shown_uri(), str(error).splitlines()[0]
    return shown_uri(), ""


def _mlflow() -> Any:
    """Import mlflow, bound to the store, with a server that is away noticed in seconds."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow


def _hint(name: str) -> str:
    """Name the aliases and versions of a known model, or the models that there are."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient()
        known = {model.name: model for model in every(client.search_registered_models)}
        if name not in known:
            return suggest(name, known)
        versions = versions_of(client, name)
    except MlflowException:
        return "the registry does not answer"
    numbers = sorted(int(version.version) for version in versions)
    return f"'{name}' has the aliases {sorted(known[name].aliases)} and the versions {numbers}"
