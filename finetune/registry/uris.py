"""From a URI to a verified local folder."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from finetune.registry.cache import cached, keep, last_known, remember
from finetune.registry.contents import check_contents
from finetune.registry.entries import find
from finetune.registry.store import AwayError, asking, download, is_local
from pretrain.tracking import SEAL_TAG
from shards.errors import RegistryError

log = logging.getLogger(__name__)

SCHEMES = ("models:/", "runs:/")
HUB = "hf://"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def resolve(uri: str) -> Path:
    """Return the local folder of a model; nothing may be written into it.

    Parameters
    ----------
    uri : str
        ``models:/name@alias``, ``models:/name/version``, ``models:/name/latest``, ``models:/m-id``,
        ``runs:/id/path``, ``hf://org/name[@revision]``, or a folder. ``org/name`` is of the hub where it is no folder.

    Raises
    ------
    RegistryError
        Where the registry has no such model; the message names those that it has.
    CheckpointError
        Where what it has is not what was registered.
    """
    if uri.startswith(SCHEMES):
        return fetch(uri)
    folder = Path(uri)
    if folder.is_dir():
        return folder
    if uri.startswith(HUB) or HUB_ID.fullmatch(uri):
        from finetune.hub import download as from_hub

        return from_hub(uri)
    raise RegistryError(
        f"there is no model folder '{uri}'", do="give a folder, or a registry URI such as models:/demo@champion"
    )


def fetch(uri: str) -> Path:
    """Return the verified folder of a model of the registry.

    That of a local store is the stored one itself; one of a server is kept in the cache by the sha256 of its seal, and
    is taken from there, also while the server is away.
    """
    if is_local():
        folder = download(uri)
        check_contents(folder, seal=seal_of(uri))
        return folder
    try:
        seal = seal_of(uri)
        known = cached(seal) or keep(lambda target: download(uri, target), seal=seal)
    except AwayError as error:
        last = last_known(uri)
        if last is None:
            raise
        log.warning("%s; %s is taken from the cache", error, uri)
        return last
    remember(uri, known)
    return known


def seal_of(uri: str) -> str | None:
    """Return the sha256 that the seal of a registered model had, None where it was not noted."""
    if uri.startswith("models:/m-"):
        with asking(f"the registry has no '{uri}'") as client:
            return client.get_logged_model(uri.removeprefix("models:/")).tags.get(SEAL_TAG)
    entry = find(uri)
    return None if entry is None else entry.tags.get(SEAL_TAG)
