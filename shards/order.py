"""The order of samples: a function of (seed, epoch), never of the number of ranks or workers.

The order of an epoch is cut into global batches (of a fixed number of samples, or by a budget), and the ranks divide
each batch among them. So every rank has the same number of steps, and the state of a stream is (seed, epoch, step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def epoch_order(
    positions: np.ndarray, shard_sizes: Sequence[int], *, seed: int, epoch: int, block_shards: int = 16
) -> np.ndarray:
    """Return the positions of one epoch, shuffled by `block_shuffle`.

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
    return block_shuffle(positions, shard_sizes, rng, block_shards)


def block_shuffle(
    positions: np.ndarray, shard_sizes: Sequence[int], rng: np.random.Generator, block_shards: int
) -> np.ndarray:
    """Return ``positions`` (N,) in a random order that reads few shards at a time.

    Shards are shuffled, taken in blocks of ``block_shards``, and the samples of a block are shuffled together, so that
    a node that streams from far away holds few shards at a time. The result depends on the set of positions, not on
    the order in which they are given.
    """
    ordered = np.sort(np.asarray(positions, dtype=np.int64))
    block_of_shard = rng.permutation(len(shard_sizes)) // block_shards
    # numpy sorts 16-bit keys by radix, several times faster than wider ones
    block_of_shard = block_of_shard.astype(np.min_scalar_type(len(shard_sizes)))
    block = block_of_shard[np.searchsorted(np.cumsum(shard_sizes), ordered, side="right")]
    shuffled = np.empty(len(ordered), dtype=np.int64)
    shuffled[rng.permutation(len(ordered))] = np.arange(len(ordered))
    return ordered[shuffled[np.argsort(block[shuffled], kind="stable")]]


def endless(one_pass: Callable[[int], np.ndarray], length: int, start: int, count: int) -> np.ndarray:
    """Return ``count`` positions from place ``start`` on of the passes 0, 1, 2, ... over ``length`` positions.

    Only the passes that are touched are computed, so that any place of the sequence costs the same.
    """
    first, last = start // length, (start + count - 1) // length
    passes = np.concatenate([one_pass(number) for number in range(first, last + 1)])
    return passes[start - first * length :][:count]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of global batches of a fixed size in an epoch; the last one may be smaller."""
    return -(-samples // batch_size)


def rank_slice(rows: int, rank: int, world: int) -> slice:
    """Return the rows of a global batch that ``rank`` of ``world`` takes: contiguous, sizes differ by at most 1."""
    return slice(rank * rows // world, (rank + 1) * rows // world)
