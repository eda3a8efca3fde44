"""Standardisation of targets, fitted to the known training values and kept with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """Mean and standard deviation of T targets.

    Parameters
    ----------
    targets : int
        T.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("std", torch.ones(targets))

    def fit(self, targets: Tensor) -> None:
        """Take mean and standard deviation of the known entries of (N, T); a constant target keeps its scale."""
        for column, values in enumerate(targets.T):
            known = values[~values.isnan()].double()
            if len(known):
                self.mean[column] = known.mean()
            if len(known) > 1 and known.std() > 0:
                self.std[column] = known.std()

    def forward(self, targets: Tensor) -> Tensor:
        """Return targets (B, T) in standard deviations from the mean."""
        return (targets - self.mean) / self.std

    def inverse(self, standardised: Tensor) -> Tensor:
        """Return (B, T) in the targets' units."""
        return standardised * self.std + self.mean
