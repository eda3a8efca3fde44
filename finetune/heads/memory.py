"""Heads that keep training rows in buffers, whose number is known only once they are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from finetune.heads.base import Head
from shards.errors import ConfigError, DataError


class RememberingHead(Head):
    """Base of heads that look training rows up.

    Attributes
    ----------
    kept : tuple of str
        The buffers that take the shape of what is stored when weights are loaded.
    """

    kept: ClassVar[tuple[str, ...]] = ()
    keeps_rows: ClassVar[bool] = True
    groups: Tensor

    def __init__(self, config: Any, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        # of training rows: nothing that is predicted depends on it
        self.register_buffer("groups", torch.zeros(0, dtype=torch.long), persistent=False)

    def grouped(self, groups: Sequence[str]) -> None:
        """Learn which of the N training rows that `fit` will get belong together."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        self.groups = torch.tensor([numbers[name] for name in groups])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        for name in self.kept:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                buffer = getattr(self, name)
                setattr(self, name, torch.empty(stored.shape, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def known_rows(self, targets: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return targets (n, T) and features (n, F) of the rows of which a target is known.

        Raises
        ------
        ConfigError
            Where there are no fixed features to keep.
        DataError
            Where fewer than two rows are left.
        """
        if features is None:
            raise ConfigError(
                f"the head '{self.config.kind}' keeps training features, and here they change while it is trained",
                where="head",
                do="use it on frozen encoders, joined side by side: adaptation 'frozen', no fusion",
            )
        here = ~targets.isnan().all(dim=1)
        if here.sum() < 2:
            raise DataError(f"the head '{self.config.kind}' needs two training rows with a known target")
        if len(self.groups) == len(here):
            self.groups = self.groups[here]
        return targets[here], features[here].detach()

    def check_fitted(self, memory: Tensor) -> None:
        """Refuse to predict before `fit`."""
        if not len(memory):
            raise ConfigError(f"the head '{self.config.kind}' was not fitted: it has no training rows to look up")


def spread(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (F,) of features (n, F); 1 where an entry is constant."""
    std = features.std(dim=0)
    return features.mean(dim=0), std.where(std > 1e-6, 1.0)
