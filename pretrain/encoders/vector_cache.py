"""Vectors by the digest of what they were computed from, in memory and, where a folder is given, on disk."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor

from shards.errors import ConfigError

KEY_BYTES = 16


class VectorCache:
    """A bounded store of float32 vectors of one width.

    On disk, every process appends fixed-length records (key, vector, checksum) to a file of its own, and reads the
    files of all when it starts: no locks, no torn writes that anybody would believe, few files.

    Parameters
    ----------
    width : int
        Numbers a vector.
    most : int
        Further vectors are not kept.
    folder : Path, optional
        Where the files lie; None: memory only.
    """

    def __init__(self, width: int, *, most: int, folder: Path | None = None) -> None:
        self.most, self.folder = most, folder
        self.record = np.dtype([("key", f"V{KEY_BYTES}"), ("vector", "<f4", (width,)), ("check", "<u8")])
        self.vectors: dict[bytes, Tensor] = {}
        self.file: BinaryIO | None = None
        if folder is not None:
            self._read(folder)

    def __deepcopy__(self, memo: dict[int, Any]) -> VectorCache:
        """A copy of a model (an average of its weights) shares the cache."""
        return self

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Return the vectors that are known, by key."""
        return {key: self.vectors[key] for key in keys if key in self.vectors}

    def put(self, vectors: Mapping[bytes, Tensor]) -> None:
        """Keep vectors (width,), float32 on the CPU, as long as there is room."""
        new = {key: vectors[key] for key in vectors if key not in self.vectors}
        new = dict(list(new.items())[: max(0, self.most - len(self.vectors))])
        self.vectors.update(new)
        if self.folder is None or not new:
            return
        records = np.zeros(len(new), self.record)
        records["key"] = np.frombuffer(b"".join(new), records["key"].dtype)
        records["vector"] = np.stack([vector.numpy() for vector in new.values()])
        records["check"] = [checksum(record) for record in records]
        try:
            if self.file is None:
                name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}.bin"
                self.file = open(self.folder / name, "ab", buffering=0)  # noqa: SIM115 - open as long as the model
            self.file.write(records.tobytes())
        except OSError as error:
            raise self._unusable(error) from error

    def _read(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.bin")):
                data = path.read_bytes()
                # the last record may be cut short: its writer was killed
                for record in np.frombuffer(data, self.record, count=len(data) // self.record.itemsize):
                    if len(self.vectors) < self.most and checksum(record) == record["check"]:
                        self.vectors[record["key"].tobytes()] = torch.from_numpy(record["vector"].copy())
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            "the cache of text vectors cannot be used",
            where=self.folder,
            why=error.strerror,
            do='name another folder by MATLOOM_CACHE, or cache = "memory" in the encoder\'s table',
        )


def checksum(record: np.void) -> int:
    """Return the checksum of a record's key and vector."""
    return xxhash.xxh64_intdigest(record["key"].tobytes() + record["vector"].tobytes())
