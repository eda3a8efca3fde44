"""Ragged rows as padded ones: sequences of tokens, several pictures of a sample."""

from __future__ import annotations

import torch
from torch import Tensor


def padded(values: Tensor, pointer: Tensor, *, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Spread ragged values over rows of equal length.

    Parameters
    ----------
    values : Tensor
        (N, ...) elements of all rows, one row after the other.
    pointer : Tensor
        (R + 1,) int64, row r holds the elements ``pointer[r]`` to ``pointer[r + 1]``.
    most : int, optional
        Longer rows are cut.

    Returns
    -------
    tokens : Tensor
        (R, T, ...), zero past the end of a row; T is the length of the longest row, at least 1.
    mask : Tensor
        (R, T) bool, True where an element is.
    """
    counts = pointer.diff()
    # told how many there will be, it does not ask the GPU
    row = torch.repeat_interleave(counts, output_size=len(values))
    place = torch.arange(len(values), device=values.device) - pointer[row]
    if most is not None:
        kept = place < most
        values, row, place, counts = values[kept], row[kept], place[kept], counts.clamp_max(most)
    length = max(int(counts.max()), 1)
    tokens = values.new_zeros(len(counts), length, *values.shape[1:]).index_put((row, place), values)
    return tokens, torch.arange(length, device=values.device)[None] < counts[:, None]


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of tokens (R, T, D) where ``mask`` (R, T); zeros for a row without any."""
    weight = mask[:, :, None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
