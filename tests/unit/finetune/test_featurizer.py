"""What joins frozen encoders: absent payloads are invisible, rows are independent, shares add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.encodings import EncodedRows
from finetune.featurizer import Encodings, SideBySide, fusion_join
from pretrain.encoders.base import Encoded
from shards.batch import collate
from shards.errors import ConfigError
from tests import fused_models
from tests.fused_models import SPECS
from tests.unit.finetune.predictors import batch, predictor

NAN = float("nan")
JOINS: dict[str, tuple[dict[str, Any], Any]] = {
    "side by side": ({"kind": "frozen"}, None),
    "attentive": ({"kind": "attentive", "dim": 8, "heads": 2}, None),
    "scale and shift": ({"kind": "scale_shift"}, None),
    **{kind: ({"kind": "frozen"}, {"kind": kind, **options}) for kind, options in fused_models.KINDS.items()},
}
FORMS = ("scalar", "feature", "attention")


def made(name: str) -> Any:
    table, fusion = JOINS[name]
    found = predictor(table=table, join=fusion_join(fusion) if fusion else SideBySide)[0]
    return found.eval()


def poisoned(encodings: Encodings, value: float) -> Encodings:
    """The same, with ``value`` wherever a modality is absent."""
    encoded = {}
    for name, part in encodings.encoded.items():
        absent = ~encodings.present[name]
        tokens = None if part.tokens is None else part.tokens.masked_fill(absent[:, None, None], value)
        encoded[name] = Encoded(part.vector.masked_fill(absent[:, None], value), tokens, part.mask)
    return Encodings(encoded, encodings.present)


@pytest.mark.parametrize("name", JOINS)
def test_the_payload_of_what_is_absent_changes_no_bit(name: str) -> None:
    network = made(name)
    encodings = network.featurizer.encode(batch())
    expected = network(encodings)
    for value in (0.0, 1e6, NAN):
        assert torch.equal(network(poisoned(encodings, value)), expected)


@pytest.mark.parametrize("name", JOINS)
def test_a_row_without_any_modality_gives_a_finite_prediction(name: str) -> None:
    samples = [*fused_models.samples(3), fused_models.Sample(id="nothing")]
    assert made(name)(collate(samples, SPECS)).isfinite().all()


@pytest.mark.parametrize("name", JOINS)
def test_rows_are_predicted_alone_as_in_company(name: str) -> None:
    network = made(name)
    samples = fused_models.samples(10)
    together = network(collate(samples, SPECS))
    alone = torch.cat([network(collate([sample], SPECS)) for sample in samples])
    assert torch.allclose(together, alone, atol=1e-5)
    assert network(collate([], SPECS)).shape == (0, 1)


@pytest.mark.parametrize("name", ["attentive", *FORMS])
def test_shares_of_the_modalities_sum_to_one_and_are_zero_where_absent(name: str) -> None:
    if name in FORMS:
        join = fusion_join({"kind": "gated", "dim": 8, "form": name})
        network = predictor(table={"kind": "frozen"}, join=join)[0].eval()
    else:
        network = made(name)
    data = collate([*fused_models.samples(12), fused_models.Sample(id="nothing")], SPECS)
    importance = network.predict(data).importance
    assert importance is not None and importance.shape == (len(data.ids), 3)
    there = torch.stack([data.present[modality] for modality in "abc"], dim=1)
    assert (importance[~there] == 0).all() and (importance >= 0).all()
    assert torch.allclose(importance.sum(dim=1), there.any(dim=1).float(), atol=1e-5)


def test_the_share_follows_the_gate() -> None:
    join = fusion_join({"kind": "gated", "dim": 8, "form": "feature"})
    network = predictor(table={"kind": "frozen"}, join=join)[0].eval()
    with torch.no_grad():
        network.featurizer.join.gates["b"].bias.fill_(-20.0)
    assert (network.predict(batch(share=1.0)).importance[:, 1] < 1e-4).all()


def test_a_join_without_weights_says_none() -> None:
    assert made("side by side").predict(batch()).importance is None


def test_tokens_are_cached_where_the_join_reads_them_and_nowhere_else() -> None:
    for name, wanted in (("side by side", False), ("gated", False), ("attentive", True), ("cross_attention", True)):
        rows = EncodedRows.of(made(name).featurizer, [batch()])
        assert (rows.columns["a"].tokens is not None) == wanted, name


def test_a_fusion_of_other_modalities_is_refused() -> None:
    with pytest.raises(ConfigError, match="the row has"):
        predictor(("a", "c"), {"kind": "frozen"}, fusion_join({"kind": "concat", "inputs": ["a", "b"]}))


def test_cached_tokens_of_unlike_length_come_back_with_their_masks() -> None:
    """Two batches padded to unlike lengths, masks with holes: each row gets its own real tokens, and no other."""
    tokens = [torch.randn(2, length, 3) for length in (2, 4)]
    masks = [
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[True, False, True, True], [False] * 4]),
    ]
    parts = [
        Encodings({"a": Encoded(torch.zeros(2, 3), t, m)}, {"a": torch.tensor([True, True])})
        for t, m in zip(tokens, masks, strict=True)
    ]
    encoded = iter(parts)
    network = made("attentive")
    network.featurizer.encode = lambda batch: next(encoded)
    network.featurizer.encoders = torch.nn.ModuleDict({"a": torch.nn.Identity()})
    rows = EncodedRows.of(network.featurizer, [batch(), batch()]).rows(torch.tensor([3, 2, 0]))
    found = rows.encoded["a"]
    assert found.mask is not None and found.tokens is not None
    assert found.mask.sum(dim=1).tolist() == [0, 3, 1]
    assert torch.equal(found.tokens[1][found.mask[1]], tokens[1][0][masks[1][0]])
    assert torch.equal(found.tokens[2][found.mask[2]], tokens[0][0][:1])
    assert (found.tokens[~found.mask] == 0).all()
