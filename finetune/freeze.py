"""Frozen means frozen: no gradient, no dropout, no statistics that move."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Freeze a module in place and return it.

    Its parameters get no gradient, and it stays in evaluation mode when a module around it is put
    into training mode.
    """
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign,assignment]
    return module
