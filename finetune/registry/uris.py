"""From a URI to a verified local folder."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune.registry.cache import cached, keep, last_known, remember
from finetune.registry.contents import check_contents, check_listing
from finetune.registry.entries import find
from finetune.registry.store import AwayError, asking, download, every, is_local, listing, local_folder
from pretrain.tracking import SEAL_TAG
from shards.errors import RegistryError, suggest

log = logging.getLogger(__name__)

SCHEMES = ("models:/", "runs:/")
HUB = "hf://"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
OF_FILES = (".json", ".toml", ".safetensors", ".pt", ".ckpt", ".md")
# what MLflow allows in the name of a logged model
LOGGED = re.compile(r"[^/:.%\"']+")


@dataclass(frozen=True)
class Stored:
    """Where the files of a model lie, and the sha256 that its seal had when it was registered, where that is known."""

    location: str
    seal: str | None


def resolve(uri: str, *, hashed: bool = True) -> Path:
    """Return the local folder of a model; nothing may be written into it.

    Parameters
    ----------
    uri : str
        ``models:/name@alias``, ``models:/name/version``, ``models:/name/latest``, ``models:/m-id``,
        ``runs:/id/path``, ``hf://org/name[@revision]``, or a folder. ``org/name`` is of the hub where neither it nor
        ``org`` is a folder.
    hashed : bool
        Hash every file of a registered model; otherwise its seal alone, for who hashes the files when they are read.

    Raises
    ------
    RegistryError
        Where the registry has no such model; the message names those that it has.
    CheckpointError
        Where what it has is not what was registered.
    """
    if uri.startswith(SCHEMES):
        return fetch(uri, hashed=hashed)
    folder = Path(uri)
    if folder.is_dir():
        return folder
    if uri.startswith(HUB) or (HUB_ID.fullmatch(uri) and not _is_path(folder)):
        from finetune.hub import download as from_hub

        return from_hub(uri)
    raise RegistryError(
        f"there is no model folder '{uri}'",
        why=_beside(folder),
        do="give a folder, a URI such as models:/demo@champion, or hf://org/name",
    )


def _is_path(folder: Path) -> bool:
    """Say whether a path of this machine is meant by what could be a name on the hub."""
    return folder.parts[0] in ("..", "~") or folder.suffix in OF_FILES or folder.parent.is_dir()


def _beside(folder: Path) -> str | None:
    """Name what the folder that was meant may be called."""
    if not folder.parent.is_dir():
        return None
    names = (path.name for path in folder.parent.iterdir() if path.is_dir())
    return f"in '{folder.parent}': {suggest(folder.name, names)}"


def fetch(uri: str, *, hashed: bool = True) -> Path:
    """Return the verified folder of a model of the registry.

    That of a local store is the stored one itself; one of a server is kept in the cache by the sha256 of its seal, and
    is taken from there, also while the server is away.
    """
    try:
        stored = locate(uri)
        folder = local_folder(stored.location)
        if folder is not None and is_local():
            check_contents(folder, seal=stored.seal, hashed=hashed)
            return folder
        known = cached(stored.seal, hashed=hashed) or keep(
            lambda target: _collect(stored, target, uri), seal=stored.seal
        )
    except AwayError as error:
        last = last_known(uri, hashed=hashed)
        if last is None:
            raise
        log.warning("%s; %s is taken from the cache", error, uri)
        return last
    remember(uri, known)
    return known


def locate(uri: str) -> Stored:
    """Return where the files of a model of the registry lie; nothing of them is read."""
    if uri.startswith("runs:/"):
        return _of_run(uri)
    if uri.startswith("models:/m-"):
        with asking(f"the registry has no '{uri}'") as client:
            return _logged(client.get_logged_model(uri.removeprefix("models:/")))
    entry = find(uri)
    assert entry is not None
    with asking(f"the registry has no '{uri}'", about=entry.name) as client:
        # the version, not what the URI says: an alias may move meanwhile
        location = client.get_model_version_download_uri(entry.name, entry.version)
    return Stored(location, entry.tags.get(SEAL_TAG))


def _of_run(uri: str) -> Stored:
    run_id, _, path = uri.removeprefix("runs:/").partition("/")
    if not path or ".." in PurePosixPath(path).parts:
        raise RegistryError(
            f"'{uri}' names no folder of a run", do="runs:/RUN/NAME, of a model that the run registered"
        )
    with asking(f"the registry has no '{uri}'") as client:
        run = client.get_run(run_id)
        if LOGGED.fullmatch(path):
            models = every(
                client.search_logged_models,
                experiment_ids=[run.info.experiment_id],
                filter_string=f"name = '{path}'",
            )
            mine = [model for model in models if model.source_run_id == run_id]
            if mine:
                return _logged(max(mine, key=lambda model: model.creation_timestamp))
    # files that a run has logged itself: nobody has noted their seal
    return Stored(f"{run.info.artifact_uri}/{path}", None)


def _logged(model: Any) -> Stored:
    return Stored(model.artifact_location, model.tags.get(SEAL_TAG))


def _collect(stored: Stored, target: Path, uri: str) -> None:
    """Bring the files of a model, and nothing else, into a folder of the cache."""
    folder = local_folder(stored.location)
    if folder is not None:
        check_contents(folder, seal=stored.seal)
        for path in folder.iterdir():
            shutil.copyfile(path, target / path.name, follow_symlinks=False)
        return
    found = listing(stored.location, uri)
    names = check_listing(found, uri)
    _check_room(sum(size for *_, size in found), target)
    download(stored.location, names, target, uri)


def _check_room(wanted: int, target: Path) -> None:
    free = shutil.disk_usage(target).free
    if wanted > free:
        raise RegistryError(
            "the cache has no room for this model",
            where=target.parents[1],
            why=f"it has {wanted / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free",
            do="make room there, or name another folder by MATLOOM_CACHE",
        )
