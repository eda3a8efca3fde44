"""Every registered fusion over three inputs: one with padded tokens, one with full tokens, one with a vector only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, Width

WIDTHS = {"a": Width(6, True), "b": Width(5, True), "c": Width(4)}
LENGTHS = {"a": 7, "b": 3}
SMALL = {"dim": 16, "heads": 4}
# what a fusion needs beside its kind, to be small; a new one adds itself here
TABLES: dict[str, list[dict[str, object]]] = {
    "concat": [{"dim": 16}, {"dim": 16, "hidden": 12}],
    "gated": [
        {"dim": 16},
        {"dim": 16, "norm": "sum", "query": "c"},
        {"dim": 16, "form": "feature", "norm": "none"},
        {"dim": 16, "form": "feature", "norm": "sum"},
        {"dim": 16, "form": "attention"},
    ],
    "cross_attention": [SMALL, {**SMALL, "context": "pairs", "self_layers": 1, "pool": "query"}],
    "gmca": [SMALL, {**SMALL, "pool": "query"}],
    "attention_bottleneck": [SMALL, {**SMALL, "groups": [["a", "c"], ["b"]], "pool": "mean"}],
    "token_transformer": [SMALL, {**SMALL, "layers": 2}],
    "low_rank_tensor": [{"dim": 16}],
}

Inputs = dict[str, Encoded]
Present = dict[str, Tensor]


def all_tables() -> list[dict[str, object]]:
    return [{"kind": kind, **table} for kind in FUSIONS.kinds() for table in TABLES.get(kind, [{}])]


def build(table: Mapping[str, object], widths: Mapping[str, Width] = WIDTHS, seed: int = 0) -> Fusion:
    torch.manual_seed(seed)
    options = FUSIONS.options(table)
    return FUSIONS.get(options.kind)(options, widths).eval()


def inputs(rows: int = 6, seed: int = 0, widths: Mapping[str, Width] = WIDTHS) -> tuple[Inputs, Present]:
    """Encoded inputs that are all present; the tokens of `a` are padded to different lengths."""
    rng = torch.Generator().manual_seed(seed)
    encoded = {}
    for name, width in widths.items():
        vector = torch.randn(rows, width.dim, generator=rng)
        if not width.tokens:
            encoded[name] = Encoded(vector)
            continue
        length = LENGTHS.get(name, 4)
        tokens = torch.randn(rows, length, width.dim, generator=rng)
        mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=rng) if name == "a" else None
        encoded[name] = Encoded(vector, tokens, mask)
    return encoded, {name: torch.ones(rows, dtype=torch.bool) for name in widths}


def scattered(rows: int = 6, names: tuple[str, ...] = tuple(WIDTHS), seed: int = 1) -> Present:
    """Presence in which every input is absent somewhere, one row holds one input, and the last none."""
    rng = torch.Generator().manual_seed(seed)
    present = {name: torch.rand(rows, generator=rng) < 0.6 for name in names}
    for number, name in enumerate(names):
        present[name][number], present[name][-1], present[name][-2] = False, False, number == 0
    return present


def taken(encoded: Inputs, index: Tensor) -> Inputs:
    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index]

    return {name: Encoded(part.vector[index], rows(part.tokens), rows(part.mask)) for name, part in encoded.items()}


def filled(encoded: Inputs, present: Present, content: float) -> Inputs:
    """Replace what absent rows and padded tokens hold."""
    found = {}
    for name, part in encoded.items():
        there = present[name]
        vector = torch.where(there[:, None], part.vector, torch.tensor(content))
        if part.tokens is None:
            found[name] = Encoded(vector)
            continue
        real = there[:, None] & (torch.ones(part.tokens.shape[:2]).bool() if part.mask is None else part.mask)
        found[name] = Encoded(vector, torch.where(real[..., None], part.tokens, torch.tensor(content)), part.mask)
    return found
