"""The order of samples: a function of (seed, epoch), never of the number of ranks or workers.

Step s of a global batch of G samples is the slice [s G, (s + 1) G) of the epoch's order; the ranks
divide the slice among them. So every rank has the same number of steps, an epoch sees each sample
once, and the state of a stream is (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(
    positions: np.ndarray, shard_sizes: Sequence[int], *, seed: int, epoch: int, block_shards: int = 16
) -> np.ndarray:
    """Return the positions of one epoch, shuffled.

    Shards are shuffled, taken in blocks of ``block_shards``, and the samples of a block are shuffled
    together, so that a node that streams from far away holds few shards at a time.

    Parameters
    ----------
    positions : ndarray
        (N,) positions to visit (a part of a split), each once.
    shard_sizes : sequence of int
        Samples a shard; says which shard a position lies in.
    seed, epoch : int
        The order depends on nothing else.
    block_shards : int
        Shards that are shuffled together.

    Returns
    -------
    ndarray
        (N,) a permutation of ``positions``.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    ordered = np.sort(np.asarray(positions, dtype=np.int64))
    shard = np.searchsorted(np.cumsum(shard_sizes), ordered, side="right")
    rank_of_shard = rng.permutation(len(shard_sizes))
    block = rank_of_shard[shard] // block_shards
    # a random key inside each block: lexsort by (block, key)
    return ordered[np.lexsort((rng.permutation(len(ordered)), block))]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch; the last one may be smaller."""
    return -(-samples // batch_size)


def step_slice(order: np.ndarray, step: int, batch_size: int) -> np.ndarray:
    """Return the positions of global batch ``step``."""
    return order[step * batch_size : (step + 1) * batch_size]


def rank_slice(rows: int, rank: int, world: int) -> slice:
    """Return the rows of a global batch that ``rank`` of ``world`` takes: contiguous, sizes differ by at most 1."""
    return slice(rank * rows // world, (rank + 1) * rows // world)
