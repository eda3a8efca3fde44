"""Objects of the Materials Project's public bucket of parsed calculations, fetched and checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, DataError
from shards.sealed import sha256
from shards.sources.mp_client import TransientError, object_id, patiently

FOLDERS = {"dos": "dos", "charge_density": "chgcars"}
MAX_UNPACKED = {"dos": 1 << 30, "charge_density": 4 << 30}


class Bucket:
    """The public bucket of parsed calculations, or a mirror of it.

    Parameters
    ----------
    parsed : str
        Its address, any that fsspec knows; S3 is read without credentials.
    folder : Path
        Where objects are put, under the names that they have in the bucket.
    attempts, pause_s : int, float
        See `shards.sources.mp_client.patiently`.

    Raises
    ------
    ConfigError
        Where the library for this kind of address is not installed.
    """

    def __init__(self, parsed: str, folder: Path, *, attempts: int, pause_s: float) -> None:
        import fsspec

        self.parsed, self.folder, self.attempts, self.pause_s = parsed, folder, attempts, pause_s
        # fsspec would give the one of before back, whatever the environment says by now
        options: dict[str, Any] = {"skip_instance_cache": True}
        if parsed.startswith("s3://"):
            options |= {"anon": True, "config_kwargs": {"connect_timeout": 30, "read_timeout": 60}}
        elif parsed.startswith(("http://", "https://")):
            from aiohttp import ClientTimeout

            # objects are stored packed and stay so, whatever the server says of their encoding
            timeout = ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options |= {"client_kwargs": {"timeout": timeout, "auto_decompress": False}}
        try:
            self.files, self.base = fsspec.core.url_to_fs(parsed, **options)
        except ImportError as error:
            raise ConfigError(
                f"no reader for '{parsed}' is installed", why=str(error), do="pip install 'matloom[s3]'"
            ) from None

    def fetch(self, modality: str, material: str, tasks: list[str]) -> dict[str, Any] | str:
        """Fetch the first object that exists, or say why there is none.

        Returns
        -------
        dict or str
            Its ``path``, ``size``, ``sha256``, ``task`` and ``etag``; or the reason.
        """
        # densities of states are kept by calculation, older ones by material
        names = [name for task in tasks for name in dict.fromkeys((object_id(task), task))]
        names = list(dict.fromkeys([*names, material] if modality == "dos" else names))
        if not names:
            return "no calculation of this kind"
        for name in names:
            key = f"{FOLDERS[modality]}/{name}.json.gz"
            entry = patiently(
                partial(self._attempt, key, MAX_UNPACKED[modality]),
                what=f"{self.parsed}/{key}",
                attempts=self.attempts,
                pause_s=self.pause_s,
            )
            if entry is not None:
                return {**entry, "task": name}
        return f"no object in the bucket under {', '.join(names)}"

    def _attempt(self, key: str, limit: int) -> dict[str, Any] | None:
        """Fetch one object and check it; None where there is none."""
        source, target = f"{self.base.rstrip('/')}/{key}", self.folder / key
        target.parent.mkdir(exist_ok=True)
        part = target.with_name(target.name + ".partial")
        try:
            info = self.files.info(source)
            if (info.get("size") or 0) > limit:
                raise DataError(f"an object has more than {limit >> 20} MB", where=source)
            self.files.get_file(source, str(part))
        except FileNotFoundError:
            return None
        except DataError:
            raise
        except Exception as error:  # every file system of fsspec has errors of its own
            if isinstance(error, PermissionError) or getattr(error, "status", None) in (400, 401, 403):
                raise DataError("the bucket refuses an object", where=source, why=repr(error)[:300]) from None
            raise TransientError(repr(error)) from None
        problem = _problem(part, info, limit)
        if problem:
            raise TransientError(problem)
        entry = {"path": key, "size": part.stat().st_size, "sha256": sha256(part)}
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        return {**entry, "etag": _etag(info)}


def _etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or "").strip('"')


def _problem(path: Path, info: Mapping[str, Any], limit: int) -> str | None:
    """Say what is wrong with a fetched object: its size, its MD5 where the server names one, its packing."""
    size = path.stat().st_size
    if info.get("size") is not None and size != info["size"]:
        return f"{size} of {info['size']} bytes arrived"
    # an ETag of 32 hex digits is the MD5 of an object that was stored in one part
    etag = _etag(info)
    with path.open("rb") as file:
        if re.fullmatch("[0-9a-f]{32}", etag) and hashlib.file_digest(file, "md5").hexdigest() != etag:
            return f"the bytes do not have the MD5 {etag} that the server names"
    unpacked = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(1 << 20):
                unpacked += len(chunk)
                if unpacked > limit:
                    raise DataError(f"an object unpacks to more than {limit >> 20} MB", where=path.name)
    except (OSError, EOFError, zlib.error) as error:
        return f"the bytes are no whole gzip file: {error}"
    return None
