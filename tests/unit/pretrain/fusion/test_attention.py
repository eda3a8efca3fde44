"""Cross-attention, the bottleneck and the token transformer: who sees whom, and with what weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.encoders.layers import Block
from pretrain.fusion.base import Fusion, Width
from pretrain.fusion.cross_attention import CrossBlock
from pretrain.fusion.layers import AttentionOptions, CrossAttention
from shards.errors import ConfigError
from tests.unit.pretrain.fusion.cases import build, inputs

SMALL = {"dim": 16, "heads": 4}


def of_torch(module: CrossAttention) -> nn.MultiheadAttention:
    """Torch's own attention with the same weights."""
    attention = nn.MultiheadAttention(16, module.heads, batch_first=True).eval()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([module.query.weight, module.key.weight, module.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([module.query.bias, torch.zeros(16), module.value.bias]))
    attention.out_proj.load_state_dict(module.out.state_dict())
    return attention


def attending() -> tuple[CrossAttention, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 1, 1], [0, 1, 0, 0, 0]]).bool()
    module = CrossAttention(16, 4).eval()
    # larger weights, so that the attention is uneven
    for linear in (module.query, module.key, module.value, module.out):
        nn.init.normal_(linear.weight, std=0.6)
        if linear.bias is not None:
            nn.init.normal_(linear.bias)
    return module, torch.randn(3, 2, 16), torch.randn(3, 5, 16), real


def test_cross_attention_is_that_of_torch_and_a_wrong_scale_is_seen() -> None:
    module, x, context, real = attending()

    def torch_says() -> tuple[Tensor, Tensor]:
        asked, offered = module.norm(x), module.norm_context(context)
        return of_torch(module)(asked, offered, offered, key_padding_mask=~real, average_attn_weights=False)

    def entropy(weights: Tensor) -> float:
        return float(-torch.special.xlogy(weights, weights)[:2].sum(dim=-1).mean())

    expected, weights = torch_says()
    torch.testing.assert_close(module(x, context, real), expected, atol=1e-5, rtol=1e-5)
    # the wrong scale, sqrt(dim) in place of sqrt(dim / heads), is that of queries half as long: evener attention
    with torch.no_grad():
        module.query.weight /= 2
        module.query.bias /= 2
    wrong, evener = torch_says()
    assert (wrong - expected).abs().max() > 1e-2
    assert entropy(evener) > 1.05 * entropy(weights)


def test_the_order_of_keys_does_not_matter_and_that_of_queries_is_kept() -> None:
    module, x, context, real = attending()
    found = module(x, context, real)
    keys, queries = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([1, 0])
    torch.testing.assert_close(module(x, context[:, keys], real[:, keys]), found, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(module(x[:, queries], context, real), found[:, queries], atol=1e-6, rtol=1e-5)


def test_a_block_averages_over_the_contexts_that_are_there() -> None:
    torch.manual_seed(0)
    block = CrossBlock(["b", "c"], AttentionOptions(kind="t", **SMALL, dropout=0)).eval()
    x, b, c = torch.randn(2, 3, 16), torch.randn(2, 4, 16), torch.randn(2, 1, 16)
    real = {"b": torch.ones(2, 4).bool(), "c": torch.tensor([[True], [False]])}
    found = block(x, {"b": (b, real["b"]), "c": (c, real["c"])})
    from_b, from_c = block.attend["b"](x, b, real["b"]), block.attend["c"](x, c, real["c"])
    expected = torch.cat([x[:1] + (from_b + from_c)[:1] / 2, x[1:] + from_b[1:]])
    torch.testing.assert_close(found, expected + block.mlp(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("context", ["others", "pairs"])
def test_every_input_hears_of_every_other_and_reports_tokens(context: str) -> None:
    fusion = build({"kind": "cross_attention", **SMALL, "layers": 1, "context": context})
    encoded, present = inputs()
    leaves = {
        name: Encoded(
            part.vector.clone().requires_grad_(),
            None if part.tokens is None else part.tokens.clone().requires_grad_(),
            part.mask,
        )
        for name, part in encoded.items()
    }
    result = fusion(leaves, present)
    assert result.tokens.shape[1] == 8 + 4 + 1
    parts = dict(zip("abc", result.tokens.split([8, 4, 1], dim=1), strict=True))
    for name, tokens in parts.items():
        for other, part in leaves.items():
            slope = torch.autograd.grad(
                (tokens[:, :2] * torch.randn(16)).sum(),
                part.vector if part.tokens is None else part.tokens,
                retain_graph=True,
            )[0]
            assert slope.any(), (name, other)


def test_matmcl_joint_encoder_is_expressible() -> None:
    """Five blocks both ways, five of self-attention each, over 7 tokens of a table and 49 of an image."""
    widths = {"table": Width(24, True), "image": Width(32, True)}
    table = {"kind": "cross_attention", "dim": 30, "heads": 5, "layers": 5, "self_layers": 5}
    fusion = build(table, widths)
    encoded = {
        "table": Encoded(torch.randn(4, 24), torch.randn(4, 7, 24)),
        "image": Encoded(torch.randn(4, 32), torch.randn(4, 49, 32)),
    }
    present = {name: torch.ones(4).bool() for name in widths}
    whole = fusion(encoded, present)
    assert whole.vector.shape == (4, 30)
    # not causal: the first token of a stream hears of the last of the other
    image = encoded["image"].tokens.clone()
    image[:, -1] += 1
    moved = fusion({**encoded, "image": Encoded(encoded["image"].vector, image)}, present)
    assert ((moved.tokens - whole.tokens)[:, 0].norm(dim=1) > 1e-4).all()


# The bottleneck


def bottleneck(layers: int, groups: object = (("a", "c"), ("b",))) -> Fusion:
    return build({"kind": "attention_bottleneck", **SMALL, "layers": layers, "groups": groups})


def slope(fusion: Fusion, *, closed: bool = False, of: str = "a", to: str = "b") -> float:
    """Largest gradient of a token of one input with respect to a token of another, after all blocks.

    ``closed``: nobody sees the bottleneck tokens, as without them.
    """
    encoded, present = inputs()
    tokens = encoded[to].tokens.clone().requires_grad_()
    encoded[to] = Encoded(encoded[to].vector, tokens, encoded[to].mask)
    x, mask = fusion.laid_out(encoded, present)
    first = fusion.config.bottlenecks
    if closed:
        mask = mask.clone()
        mask[:, first:, :first] = False
    for block in fusion.blocks:
        x = block(x, mask)
    start = first + sum({"a": 8, "b": 4, "c": 1}[name] for name in "abc"[: "abc".index(of)])
    (x[:, start] * torch.randn(16)).sum().backward()
    return float(tokens.grad.abs().max())


def test_groups_exchange_through_the_bottleneck_and_only_there() -> None:
    assert slope(bottleneck(1)) == 0.0
    assert slope(bottleneck(2)) > 1e-5
    assert slope(bottleneck(2), closed=True) == 0.0
    # within a group at once
    assert slope(bottleneck(1, (("a", "b"), ("c",)))) > 1e-5
    assert slope(bottleneck(1, ()), of="a", to="b") == 0.0


def test_the_wrong_mask_would_be_caught() -> None:
    """Keys masked by padding alone, as the plain transformer does: groups see each other in the first layer."""
    fusion = bottleneck(1)
    laid_out = fusion.laid_out

    def open_to_all(encoded, present):
        x, mask = laid_out(encoded, present)
        return x, mask.any(dim=1, keepdim=True).expand_as(mask)

    fusion.laid_out = open_to_all
    assert slope(fusion) > 1e-5


def test_the_joint_vector_reads_the_bottleneck_and_every_input_reaches_it() -> None:
    fusion, (encoded, present) = bottleneck(1), inputs()
    result = fusion(encoded, present)
    assert result.tokens.shape == (6, 4, 16)
    real = torch.ones(6, 4).bool()
    torch.testing.assert_close(fusion.pool(result.tokens, real), result.vector)


@pytest.mark.parametrize(
    "groups", [(("a", "b", "c"),), (("a",), ("b",)), (("a", "b"), ("b", "c")), (("a", "b"), ("d",))]
)
def test_groups_that_do_not_hold_every_input_once_are_refused(groups: object) -> None:
    with pytest.raises(ConfigError, match="hold every input once"):
        bottleneck(2, groups)


# The token transformer


def test_the_padding_mask_reaches_attention_in_training_as_in_evaluation() -> None:
    """Removing padded tokens altogether changes nothing, in either mode: with a mask that is lost it would."""
    fusion, (encoded, present) = build({"kind": "token_transformer", **SMALL}), inputs(1)
    part = encoded["a"]
    length = int(part.mask.sum())
    assert length < 7
    shorter = {**encoded, "a": Encoded(part.vector, part.tokens[:, :length], part.mask[:, :length])}
    for mode in (True, False):
        fusion.train(mode)
        torch.testing.assert_close(
            fusion(encoded, present).vector, fusion(shorter, present).vector, atol=1e-6, rtol=1e-5
        )
    # the trap of the published code: the mask does not arrive where inputs are masked out
    original = Block.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", lambda self, x, mask=None: original(self, x))
        assert (fusion(encoded, present).vector - fusion(shorter, present).vector).abs().max() > 1e-3


def test_one_input_alone_equals_a_transformer_over_its_vector_and_tokens() -> None:
    fusion, (encoded, present) = build({"kind": "token_transformer", **SMALL, "layers": 2}), inputs()
    only_b = {name: mask if name == "b" else torch.zeros_like(mask) for name, mask in present.items()}
    tokens = torch.cat([encoded["b"].vector[:, None], encoded["b"].tokens], dim=1)
    x = torch.cat([fusion.cls.expand(6, -1, -1), fusion.adapters.maps["b"](tokens)], dim=1)
    for block in fusion.blocks:
        x = block(x)
    expected = fusion.norm(x)[:, 0]
    torch.testing.assert_close(fusion(encoded, only_b).vector, expected, atol=1e-6, rtol=1e-5)


def test_the_order_of_tokens_within_an_input_does_not_matter() -> None:
    fusion, (encoded, present) = build({"kind": "token_transformer", **SMALL}), inputs()
    turned = Encoded(encoded["b"].vector, encoded["b"].tokens.flip(1))
    torch.testing.assert_close(
        fusion({**encoded, "b": turned}, present).vector, fusion(encoded, present).vector, atol=1e-6, rtol=1e-5
    )
