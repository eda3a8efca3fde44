"""Frozen means frozen: no gradient, no dropout, no statistics that move."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Freeze a module in place and return it.

    Its parameters get no gradient, and it stays in evaluation mode when a module around it is put
    into training mode.
    """
    module.requires_grad_(False)
    return still(module)


def still(module: M) -> M:
    """Keep a module, and all within it, in evaluation mode for good."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign,assignment]
    return module


def freeze_except(module: nn.Module, trained: Collection[nn.Parameter]) -> None:
    """Freeze everything in a module but some of its parameters.

    A submodule that holds none of them stays in evaluation mode for good. Of a layer that holds some, the statistics
    move where all its parameters are trained.
    """
    kept = set(trained)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter in kept)
    if not any(parameter in kept for parameter in module.parameters()):
        # a dropout between trained layers goes on
        if [*module.parameters(), *module.buffers()]:
            still(module)
        return
    own = list(module.parameters(recurse=False))
    if not kept.issuperset(own) and list(module.buffers(recurse=False)) and not list(module.children()):
        still(module)
    for child in module.children():
        freeze_except(child, kept)


def thaw(module: nn.Module) -> None:
    """Undo what this file does to a module and all within it; it is in training mode afterwards."""
    for inner in module.modules():
        inner.__dict__.pop("train", None)
    module.requires_grad_(True)
    module.train()
