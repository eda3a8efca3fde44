"""One rank that streams a data set: ``python -m tests.streaming_rank URL RANK WORLD GIGABYTES``.

Prints a JSON object: the ids and a checksum of each batch, and the threads that are left after closing.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings

import numpy as np

from shards.batch import Batch
from shards.reader import Dataset
from shards.remote import RemoteOptions
from shards.stream import BatchStream

SIZE, EPOCHS, SEED = 24, 2, 3


def stream_of(dataset: Dataset, rank: int, world: int) -> BatchStream:
    """The stream that the test and its ranks read."""
    return BatchStream(dataset, np.arange(len(dataset)), batch_size=SIZE, seed=SEED, rank=rank, world=world)


def checksum(batch: Batch) -> float:
    """A number that changes when any value of a batch does."""
    values = batch.inputs["vector"]["v"].numpy()  # type: ignore[union-attr]
    return float((values * np.arange(1, values.size + 1).reshape(values.shape)).sum())


def main() -> None:
    """Stream, close and report."""
    url, rank, world, gigabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Dataset(url, remote=RemoteOptions(cache_gb=gigabytes)) as dataset:
            stream = stream_of(dataset, rank, world)
            batches = [(batch.ids, checksum(batch)) for epoch in range(EPOCHS) for batch in stream.epoch(epoch)]
    left = [thread.name for thread in threading.enumerate() if thread.name in ("shards", "indices")]
    ranges = sum("range requests" in str(warning.message) for warning in caught)
    print(json.dumps({"batches": batches, "left": left, "ranges": ranges}))


if __name__ == "__main__":
    main()
