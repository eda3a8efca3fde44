"""What holds for every registered fusion: U1 to U6 of the contract, gradients, half precision."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, Width
from pretrain.fusion.concat import Concat
from pretrain.fusion.layers import CrossAttention
from shards.errors import ConfigError
from tests.unit.pretrain.fusion.cases import TABLES, WIDTHS, all_tables, build, filled, inputs, scattered, taken

every_fusion = pytest.mark.parametrize("table", all_tables(), ids=str)


def same(a: Encoded, b: Encoded, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a.vector, b.vector, atol=tolerance, rtol=1e-5)
    if a.tokens is not None:
        torch.testing.assert_close(real_tokens(a), real_tokens(b), atol=tolerance, rtol=1e-5)


def real_tokens(encoded: Encoded) -> Tensor:
    return encoded.tokens if encoded.mask is None else encoded.tokens[encoded.mask]


def check_missing_is_invisible(fusion: Fusion) -> None:
    encoded, _ = inputs()
    present = scattered()
    parameters = list(fusion.parameters())
    plain = fusion(filled(encoded, present, 0.0), present)
    slopes = torch.autograd.grad(plain.vector.square().sum(), parameters)
    for content in (1e6, float("nan"), float("inf")):
        other = fusion(filled(encoded, present, content), present)
        assert torch.equal(other.vector, plain.vector), content
        if plain.tokens is not None:
            assert torch.equal(real_tokens(other), real_tokens(plain))
        # what a `where` hides in the output can still spoil the gradient
        found = torch.autograd.grad(other.vector.square().sum(), parameters)
        assert all(torch.equal(a, b) for a, b in zip(found, slopes, strict=True)), content


def check_rows_are_independent(fusion: Fusion) -> None:
    encoded, _ = inputs()
    present = scattered()
    together = fusion(encoded, present)
    for row in range(6):
        index = torch.tensor([row])
        alone = fusion(taken(encoded, index), {name: mask[index] for name, mask in present.items()})
        torch.testing.assert_close(alone.vector[0], together.vector[row], atol=1e-6, rtol=1e-5)


def test_every_fusion_has_a_case() -> None:
    assert set(FUSIONS.kinds()) <= set(TABLES)


@every_fusion
class TestRules:
    def test_what_is_missing_is_invisible(self, table: Mapping[str, object]) -> None:
        check_missing_is_invisible(build(table))

    def test_without_any_input_a_row_is_finite_and_always_the_same(self, table: Mapping[str, object]) -> None:
        fusion, (encoded, present) = build(table), inputs()
        nobody = {name: torch.zeros_like(mask) for name, mask in present.items()}
        vector = fusion(filled(encoded, nobody, float("nan")), nobody).vector
        assert vector.isfinite().all()
        torch.testing.assert_close(vector, vector[:1].expand_as(vector))
        assert vector[0].norm() > 1e-3, "no learned vector stands for nothing"

    def test_rows_are_independent(self, table: Mapping[str, object]) -> None:
        check_rows_are_independent(build(table))

    def test_order_and_names_do_not_matter_beyond_the_parameters(self, table: Mapping[str, object]) -> None:
        encoded, _ = inputs()
        present = scattered()
        expected = build(table)(encoded, present)
        renamed = {"b": "q", "c": "p", "a": "r"}
        text = {**table}
        if "groups" in text:
            text["groups"] = [[renamed[name] for name in group] for group in table["groups"]]
        if "query" in text and table["query"] in renamed:
            text["query"] = renamed[table["query"]]
        other = build(text, {new: WIDTHS[old] for old, new in renamed.items()}, seed=1)
        state = build(table).state_dict()
        other.load_state_dict(
            {
                re.sub(r"(?<![a-z])[abc](?![a-z])", lambda found: renamed[found[0]], key): value
                for key, value in state.items()
            }
        )
        found = other(
            {new: encoded[old] for old, new in renamed.items()}, {new: present[old] for old, new in renamed.items()}
        )
        torch.testing.assert_close(found.vector, expected.vector, atol=2e-6, rtol=1e-5)

    def test_present_inputs_and_their_absence_change_the_output(self, table: Mapping[str, object]) -> None:
        fusion, (encoded, present) = build(table), inputs()
        whole = fusion(encoded, present).vector
        for name, part in encoded.items():
            without = fusion(encoded, {**present, name: torch.zeros_like(present[name])}).vector
            assert ((without - whole).norm(dim=1) > 1e-4).all(), name
            tokens = None if part.tokens is None else part.tokens + torch.randn(part.tokens.shape)
            moved = Encoded(part.vector + 1, tokens, part.mask)
            assert ((fusion({**encoded, name: moved}, present).vector - whole).norm(dim=1) > 1e-4).all(), name

    def test_an_absent_input_may_come_without_tokens(self, table: Mapping[str, object]) -> None:
        """So it does where no row of the batch holds it."""
        fusion, (encoded, present) = build(table), inputs()
        for name, part in encoded.items():
            absent = {**present, name: torch.zeros_like(present[name])}
            same(fusion({**encoded, name: Encoded(part.vector)}, absent), fusion(encoded, absent))

    @pytest.mark.parametrize("case", ["all", "scattered", "lacking a", "lacking b", "lacking c", "nothing"])
    def test_the_gradient_reaches_every_parameter(self, table: Mapping[str, object], case: str) -> None:
        fusion, (encoded, present) = build(table).train(), inputs()
        if case == "scattered":
            present = scattered()
        for name in present:
            if case in (f"lacking {name}", "nothing"):
                present[name] = torch.zeros_like(present[name])
                encoded[name] = Encoded(encoded[name].vector)
        result = fusion(encoded, present)
        (result.vector * torch.randn(result.vector.shape)).sum().backward()
        for name, parameter in fusion.named_parameters():
            assert parameter.grad is not None, name  # ZeRO would hang, or mix up gradients
            assert parameter.grad.isfinite().all(), name
            # `c` is one vector: nothing depends on who asks for it
            if case == "scattered" and not re.search(r"attend\.c\.(norm|query|key)\.", name):
                assert parameter.grad.any(), name

    def test_a_parameter_has_at_least_one_dimension(self, table: Mapping[str, object]) -> None:
        assert all(parameter.ndim > 0 for parameter in build(table).parameters()), "DeepSpeed refuses 0 dimensions"

    def test_bf16_autocast(self, table: Mapping[str, object]) -> None:
        fusion, (encoded, _) = build(table), inputs()
        present = scattered()
        expected = fusion(encoded, present).vector
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fusion(encoded, present).vector
        assert found.isfinite().all()
        torch.testing.assert_close(found.float(), expected, atol=0.06, rtol=0.06)

    def test_tokens_are_as_announced(self, table: Mapping[str, object]) -> None:
        fusion, (encoded, present) = build(table), inputs()
        result = fusion(encoded, present)
        assert result.vector.shape == (6, fusion.dim)
        assert (result.tokens is not None) == fusion.gives_tokens
        if result.tokens is not None:
            assert result.tokens.shape[2] == fusion.dim
            assert result.mask.shape == result.tokens.shape[:2]
            assert fusion(encoded, scattered()).tokens.isfinite().all()


@pytest.mark.parametrize("kind", ["cross_attention", "gmca", "attention_bottleneck"])
def test_one_input_alone_is_refused_where_inputs_attend_to_each_other(kind: str) -> None:
    with pytest.raises(ConfigError, match="two inputs or more"):
        build({"kind": kind}, {"a": WIDTHS["a"]})


@pytest.mark.parametrize("kind", ["cross_attention", "gmca", "attention_bottleneck", "token_transformer"])
def test_a_width_that_cannot_be_cut_into_heads_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="30 cannot be cut into 8 heads"):
        build({"kind": kind, "dim": 30})


# Wrong variants: each must be caught by the rules


class Unmasked(Concat):
    """The payload of absent inputs multiplied by zero, in which NaN survives."""

    def forward(self, encoded, present):
        zeroed = {n: Encoded(part.vector * present[n][:, None]) for n, part in encoded.items()}
        return self.fuse(zeroed, present)


class Centred(Concat):
    """A statistic over the batch."""

    def fuse(self, encoded, present):
        vector = super().fuse(encoded, present).vector
        return Encoded(vector - vector.mean(0))


def concat(plugin: type[Concat]) -> Fusion:
    return plugin(Concat.Config(kind="concat", dim=16), WIDTHS).eval()


def test_wrong_variants_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_missing_is_invisible(concat(Unmasked))
    with pytest.raises(AssertionError):
        check_rows_are_independent(concat(Centred))
    check_missing_is_invisible(concat(Concat))
    check_rows_are_independent(concat(Concat))


def test_attention_of_torch_alone_would_break_the_rules() -> None:
    """Why contexts are emptied and opened: NaN leaks through a mask, and no key at all gives NaN."""
    attend = CrossAttention(8, 2)
    x, context = torch.randn(2, 1, 8), torch.randn(2, 3, 8)
    real = torch.tensor([[True, False, True], [False, False, False]])
    leaking = context.clone()
    leaking[0, 1] = float("nan")
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    assert plain(x, leaking, leaking, key_padding_mask=~real)[0][0].isnan().any()
    assert plain(x, context, context, key_padding_mask=~real)[0][1].isnan().any()
    assert not attend(x, context, real)[1].any()


def test_cross_attention_to_pooled_vectors_is_refused() -> None:
    vectors = {name: Width(4) for name in "abc"}
    two = {name: vectors[name] for name in "ab"}
    with pytest.raises(ConfigError, match="does not depend on the query"):
        build({"kind": "cross_attention"}, two)
    with pytest.raises(ConfigError, match="does not depend on the query"):
        build({"kind": "cross_attention", "context": "pairs"}, vectors)
    build({"kind": "cross_attention"}, vectors)  # two keys in each context
    build({"kind": "cross_attention"}, {"a": Width(4, True), "b": Width(4)})
    # what is refused: the gradient with respect to the query is zero with one key, and only then
    attend = CrossAttention(8, 2)
    slopes = []
    for keys in (1, 2):
        x = torch.randn(3, 1, 8, requires_grad=True)
        attend(x, torch.randn(3, keys, 8), torch.ones(3, keys, dtype=torch.bool)).sum().backward()
        slopes.append(float(x.grad.abs().max()))
    assert slopes[0] < 1e-6 < 1e-3 < slopes[1]
