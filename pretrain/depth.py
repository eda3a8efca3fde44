"""Which parameters of an encoder lie near its input and which near its output, for layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

Stages = list[list[nn.Parameter]]


def stages_of(module: nn.Module) -> Stages:
    """Cut a module's parameters into stages, from its input to its output, by the order of its children.

    Wrappers around a single child are looked through. Every entry of a ``ModuleList`` (at any depth of ordinary
    modules) and of a ``Sequential`` at the top is a stage, together with the norms that follow it; what stands
    before, between and after them is one stage each. Written in the order in which they run, as is usual, a
    transformer gives embedding, block, ..., block, head. An encoder written otherwise overrides ``Encoder.stages``.
    """
    while (inner := _only_child(module)) is not None:
        module = inner
    stages: Stages = []
    plain: list[nn.Parameter] = []
    for part, alone in _entries(module) if _is_chain(module, top=True) else _parts(module, top=True):
        if alone and any(parameter.ndim > 1 for parameter in part):
            stages += [plain, part]
            plain = []
        elif alone and stages and not plain:
            stages[-1] = stages[-1] + part
        else:
            plain = plain + part
    return [stage for stage in _once([*stages, plain]) if stage]


def _parts(module: nn.Module, *, top: bool) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield parameters in order, and whether they are a stage of their own."""
    yield list(module.parameters(recurse=False)), False
    for child in module.children():
        if _is_chain(child, top=top):
            yield from _entries(child)
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from _parts(child, top=False)
        else:
            yield list(child.parameters()), False


def _entries(chain: nn.Module) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield the entries of a chain; one that is itself a chain is a chain of chains, such as the stages of a ResNet."""
    for entry in chain.children():
        if _is_chain(entry, top=True):
            yield from _entries(entry)
        else:
            yield list(entry.parameters()), True


def _is_chain(module: nn.Module, *, top: bool) -> bool:
    """Say whether entries are stages: of a list, however short, and of a ``Sequential`` of several layers."""
    learned = sum(_learns(entry) for entry in module.children())
    return (
        learned > 0 if isinstance(module, nn.ModuleList) else top and isinstance(module, nn.Sequential) and learned > 1
    )


def _only_child(module: nn.Module) -> nn.Module | None:
    """Return the one child that holds all parameters of an ordinary module."""
    children = [child for child in module.children() if _learns(child)]
    own = list(module.parameters(recurse=False))
    return children[0] if len(children) == 1 and not own else None


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _once(stages: Stages) -> Stages:
    """Leave a parameter that is used in several stages in the first one."""
    seen: set[nn.Parameter] = set()
    found = []
    for stage in stages:
        found.append([parameter for parameter in stage if parameter not in seen])
        seen.update(stage)
    return found
