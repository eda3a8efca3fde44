"""The index beside a shard: where each member lies, how long it is, and its digest.

One safetensors file a shard. Rows are samples, columns are parts (``meta``, then the modalities in
alphabetical order); a size of -1 says that the sample lacks the modality.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from shards.codecs import DIGEST_BYTES
from shards.errors import DataError

ABSENT = -1


@dataclass(frozen=True)
class Index:
    """Members of one shard.

    Attributes
    ----------
    ids : list of str
        S sample ids in the order of the shard.
    parts : list of str
        P column names.
    offset, size : ndarray
        (S, P) int64, bytes from the start of the tar, and length.
    digest : ndarray
        (S, P, 16) uint8.
    """

    ids: list[str]
    parts: list[str]
    offset: np.ndarray
    size: np.ndarray
    digest: np.ndarray

    def save(self, path: Path) -> None:
        """Write the index."""
        safetensors.numpy.save_file(
            {"offset": self.offset, "size": self.size, "digest": self.digest},
            path,
            # one key: safetensors writes several in an order that differs from process to process
            metadata={"index": json.dumps({"ids": self.ids, "parts": self.parts})},
        )


def read_index(path: Path) -> Index:
    """Read and check an index; raise `DataError` where it is missing, damaged or inconsistent."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = json.loads((file.metadata() or {})["index"])
            index = Index(
                ids=names["ids"],
                parts=names["parts"],
                offset=file.get_tensor("offset"),
                size=file.get_tensor("size"),
                digest=file.get_tensor("digest"),
            )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("the index of a shard is missing or damaged", where=path, why=repr(error)) from None
    shape = (len(index.ids), len(index.parts))
    if index.offset.shape != shape or index.size.shape != shape or index.digest.shape != (*shape, DIGEST_BYTES):
        raise DataError("the index of a shard contradicts itself", where=path)
    return index
