"""MLflow's store: the only module of this package that imports mlflow."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pretrain.tracking import tracking_uri
from shards.errors import RegistryError, suggest
from shards.quoting import printable

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
# what MLflow asks of a provider with the credentials for it, whatever the bucket is called
BUCKETS = frozenset({"s3", "gs", "wasbs"})
# what SQLAlchemy imports for a database, and the package that has it
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "pymysql": "pymysql", "MySQLdb": "mysqlclient"}
DIALECTS = {"postgresql": "psycopg", "mysql": "pymysql"}
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


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
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield _client(mlflow)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first = _told(error)
        raise (RegistryError if _answers(error) else AwayError)(
            printable(what),
            where=shown_uri(),
            why=f"{first} ({printable(_hint(about))})" if about else first,
            do="matloom registry list; MLFLOW_TRACKING_URI says which store is asked",
        ) from None


def _client(mlflow: Any) -> Any:
    """Return the client; a store that this installation has no driver for is no store that is away."""
    from sqlalchemy.exc import ArgumentError

    try:
        return mlflow.MlflowClient()
    except (ImportError, ArgumentError) as error:
        kind, _, _ = tracking_uri().partition("://")[0].partition("+")
        missing = getattr(error, "name", None) or ""
        installed = [name for name in DRIVERS if name.startswith(DIALECTS.get(kind, "?")) and find_spec(name)]
        if installed:
            do = f"write {kind}+{installed[0]}://..., for which the driver is here"
        else:
            do = f"pip install '{DRIVERS.get(missing, missing or 'the driver')}'"
        raise RegistryError(
            f"this installation has no driver for a store of the kind '{printable(kind)}'",
            where=shown_uri(),
            why=_told(error),
            do=f"{do}; or name an MLflow server, MLFLOW_TRACKING_URI=http://...",
        ) from None


def _told(error: Exception) -> str:
    """Return the first line of an error, without the password that a store's URI may hold."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    whole = tracking_uri().partition("://")[2]
    secret = whole.rpartition("@")[0]
    return printable(first.replace(f"{secret}@", "") if secret else first)


def _answers(error: Exception) -> bool:
    """Say whether the store has answered, with a no."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return getattr(error, "error_code", None) in ANSWERS or (status is not None and status < 500)


def local_folder(location: str) -> Path | None:
    """Return the folder that artifacts lie in where it is one of this machine, None where it is elsewhere."""
    parts = _split(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None if parts.scheme else Path(location)


def _split(location: str) -> SplitResult:
    try:
        return urlsplit(location)
    except ValueError:
        raise RegistryError("a model is kept at a place that is none", where=printable(location)) from None


def listing(location: str, uri: str) -> list[tuple[str, bool, int]]:
    """Return what lies at a place: name, whether it is a file, and its bytes.

    Raises
    ------
    RegistryError
        Where a place is named that nothing is fetched from: whoever registers a version names any.
    """
    _check_place(location, uri)
    with asking(f"the registry does not give the files of '{uri}'"):
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        found = get_artifact_repository(location).list_artifacts()
    return [(file.path, not file.is_dir, int(file.file_size or 0)) for file in found]


def download(location: str, names: Iterable[str], target: Path, uri: str) -> None:
    """Fetch files, which `listing` has named, into a folder; an `OSError` is one of this machine's disk."""
    _check_place(location, uri)
    with asking(f"the registry does not give the files of '{uri}'"):
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        repository = get_artifact_repository(location)
        full: OSError | None = None
        for name in names:
            try:
                repository.download_artifacts(name, str(target))
            except (MlflowException, OSError) as error:
                # MLflow tells of a full disk in a text of its own
                number = re.search(r"\[Errno (\d+)\]", str(error))
                if number is None or int(number[1]) not in DISK:
                    raise
                full = OSError(int(number[1]), os.strerror(int(number[1])))
                break
    if full is not None:
        raise full


def _check_place(location: str, uri: str) -> None:
    place, store = _split(location), urlsplit(tracking_uri())
    same = (place.scheme, place.netloc) == (store.scheme, store.netloc)
    if place.scheme in BUCKETS or (place.scheme == "mlflow-artifacts" and not place.netloc) or same:
        return
    raise RegistryError(
        f"'{printable(uri)}' is kept at a place that nothing is fetched from",
        where=printable(location),
        why="only the store itself, the folders of this machine, and buckets are asked: no other host gets a request",
        do=f"register it again; buckets are {', '.join(sorted(BUCKETS))}",
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


def known(look_up: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a look-up of the client finds, None where the store answers that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return look_up(*arguments)
    except MlflowException as error:
        if not _answers(error):
            raise
        return None


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
    try:
        with asking("the registry cannot be read") as client:
            client.search_registered_models(max_results=1)
    except RegistryError as error:
        return shown_uri(), error.why or error.what
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
