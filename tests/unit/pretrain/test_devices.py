"""Every objective makes its tensors where the embeddings are: without an accelerator, by another default device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pretrain.objectives.base import OBJECTIVES, Objective
from tests.unit.pretrain.invariants import FUSIONS, make, rows

MASKED = {"mask_same_group": True, "mask_above": 0.4}
TERMS = [{"objective": {"kind": "all_pairs", "pair_loss": "barlow"}}, {"objective": {"kind": "comm"}}]
MORE: dict[str, list[dict[str, object]]] = {
    "anchored": [{"anchor": "a", "pair_loss": {"kind": "siglip", "mask_above": 0.4}}],
    "frozen_anchor": [{"anchor": "a"}],
    "all_pairs": [
        {"pair_loss": {"kind": "infonce", "label_smoothing": 0.1, "mask_same_group": True, "mask_above": 0.4}}
    ],
    "gram": [{"anchor": "a"}],
    "symile": [{"negatives": "all"}, {"negatives": "shuffled"}],
    "calmrl": [{"latent": 2, "warmup_steps": 1}],
    "weighted_sum": [{"weights": "uncertainty", "terms": TERMS}],
}
CASES = [
    {"kind": kind, **options}
    for kind in OBJECTIVES.kinds()
    if not kind.startswith("test_")
    for options in MORE.get(kind, [{}])
]


def built(table: dict[str, object]) -> Objective:
    fused = table["kind"] in ("comm", "fused_anchor", "weighted_sum")
    return make(table, fusions=FUSIONS if fused else None)


@pytest.mark.parametrize("table", CASES, ids=str)
def test_no_tensor_is_made_on_the_default_device(table: dict[str, object]) -> None:
    objective = built(table)
    batch = rows(objective, 12)
    for _ in range(3):
        z = {name: values.clone().requires_grad_() for name, values in batch.z.items()}
        with torch.device("meta"):
            loss, _ = objective(replace(batch, z=z))
            loss.backward()
        assert loss.isfinite()
