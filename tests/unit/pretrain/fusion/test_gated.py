"""Gates and products: what each form does where inputs are absent, and what it can and cannot learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import Fusion, Width
from pretrain.fusion.gated import mean_entropy
from pretrain.fusion.gmca import GatedMerge
from shards.errors import ConfigError
from tests.unit.pretrain.fusion.cases import build, inputs, scattered

Draw = Callable[[int, torch.Generator], tuple[dict[str, Tensor], Tensor]]


def error(fusion: Fusion, draw: Draw, *, steps: int = 300, width: int = 1, classes: bool = False) -> float:
    """Train a fusion with a linear head and return its error (mean square, or share of wrong signs) on new rows."""
    rng = torch.Generator().manual_seed(1)
    head = nn.Linear(fusion.dim, width)
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=1e-2)

    def predicted(count: int) -> tuple[Tensor, Tensor]:
        vectors, y = draw(count, rng)
        present = {name: torch.ones(count, dtype=torch.bool) for name in vectors}
        return head(fusion({name: Encoded(x) for name, x in vectors.items()}, present).vector)[:, 0], y

    for _ in range(steps):
        p, y = predicted(256)
        loss = F.binary_cross_entropy_with_logits(p, (y > 0).float()) if classes else F.mse_loss(p, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        p, y = predicted(4000)
    return float(((p > 0) != (y > 0)).float().mean()) if classes else float(F.mse_loss(p, y))


def sensors(count: int, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Two sensors of a hidden y: in each row one has a deviation of 0.1, the other of 2, and says so."""
    y = torch.randn(count, generator=rng)
    good = torch.rand(count, generator=rng) < 0.5
    vectors = {}
    for name, mine in (("a", good), ("b", ~good)):
        deviation = torch.where(mine, 0.1, 2.0)
        reading = y + deviation * torch.randn(count, generator=rng)
        vectors[name] = torch.stack([reading, deviation], dim=1)
    return vectors, y


TWO = {"a": Width(2), "b": Width(2)}


class Static(nn.Module):
    """The wrong variant: weights that are learned but the same in every row."""

    dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))
        self.map = nn.Linear(2, self.dim)

    def forward(self, encoded: dict[str, Encoded], present: dict[str, Tensor]) -> Encoded:
        weights = self.weights.softmax(0)
        return Encoded(sum(w * self.map(part.vector) for w, part in zip(weights, encoded.values(), strict=True)))


def test_a_gate_finds_the_good_sensor_and_static_weights_do_not() -> None:
    torch.manual_seed(0)
    static = error(Static(), sensors)
    plain = error(build({"kind": "concat", "dim": 16}, TWO).train(), sensors)
    for form in ("scalar", "feature", "attention"):
        gated = error(build({"kind": "gated", "dim": 16, "form": form, "norm": "none"}, TWO).train(), sensors)
        assert gated < 0.1 * static, form
    assert 0.8 < plain / static < 1.2  # a linear map cannot weigh by row either


def test_a_gate_stands_for_the_good_sensor() -> None:
    fusion = build({"kind": "gated", "dim": 16, "norm": "sum"}, TWO).train()
    assert error(fusion, sensors) < 0.05
    vectors, _ = sensors(1000, torch.Generator().manual_seed(2))
    present = {name: torch.ones(1000, dtype=torch.bool) for name in vectors}
    gates, _ = fusion.gated({name: Encoded(x) for name, x in vectors.items()}, present)
    share = (gates / gates.sum(dim=1, keepdim=True))[:, 0, 0]
    good = (vectors["a"][:, 1] < 1).float()
    assert float(torch.corrcoef(torch.stack([share, good]))[0, 1]) > 0.9


@pytest.mark.parametrize("form", ["scalar", "feature"])
def test_independent_gates_do_not_change_where_another_input_is_dropped(form: str) -> None:
    fusion, (encoded, present) = build({"kind": "gated", "dim": 16, "form": form}), inputs()
    whole, _ = fusion.gated(encoded, present)
    rest, _ = fusion.gated(encoded, {**present, "b": torch.zeros_like(present["b"])})
    assert torch.equal(rest[:, [0, 2]], whole[:, [0, 2]])
    assert not rest[:, 1].any()


def test_attention_is_renormalised_where_an_input_is_dropped() -> None:
    fusion, (encoded, present) = build({"kind": "gated", "dim": 16, "form": "attention"}), inputs()
    whole = fusion.weights(encoded, present)
    rest = fusion.weights(encoded, {**present, "b": torch.zeros_like(present["b"])})
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(6))
    kept = whole[:, [0, 2]]
    torch.testing.assert_close(rest[:, [0, 2]], kept / kept.sum(dim=1, keepdim=True))
    assert not rest[:, 1].any()


def test_the_sum_of_gates_is_divided_out() -> None:
    fusion, (encoded, present) = build({"kind": "gated", "dim": 16, "norm": "sum"}), inputs()
    for gate in fusion.gates.values():
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
    expected = torch.stack([fusion.maps[name](part.vector) for name, part in encoded.items()]).mean(dim=0)
    torch.testing.assert_close(fusion(encoded, present).vector, expected, atol=1e-5, rtol=1e-5)


def test_the_entropy_is_one_for_even_weights_and_zero_for_one_input_alone() -> None:
    present = scattered(8)
    count = torch.stack(list(present.values()), dim=1)
    even = count / count.sum(dim=1, keepdim=True).clamp_min(1)
    assert float(mean_entropy(even, present)) == pytest.approx(1.0)
    first = F.one_hot(count.int().argmax(dim=1), 3).float() * count
    assert float(mean_entropy(first, present)) == pytest.approx(0.0, abs=1e-5)
    everywhere = {name: torch.ones(1, dtype=torch.bool) for name in "abc"}
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    assert float(mean_entropy(weights, everywhere)) == pytest.approx(1.5 * math.log(2) / math.log(3))
    nobody = {name: torch.zeros(1, dtype=torch.bool) for name in "abc"}
    assert float(mean_entropy(torch.zeros(1, 3), nobody)) == 0.0


def test_the_entropy_of_the_last_call_is_kept_and_rewarding_it_evens_the_weights() -> None:
    fusion, (encoded, present) = build({"kind": "gated", "dim": 16, "form": "attention"}).train(), inputs(40)
    fusion(encoded, present)
    before = float(fusion.entropy)
    assert before == pytest.approx(float(mean_entropy(fusion.weights(encoded, present), present)), abs=1e-6)
    assert not fusion.entropy.requires_grad
    assert "entropy" not in fusion.state_dict()
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        (-mean_entropy(fusion.weights(encoded, present), present)).backward()
        optimizer.step()
    fusion(encoded, present)
    assert before < 0.999 < float(fusion.entropy)


def asked(count: int, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Two tasks with opposite reliable inputs: task 0 is answered by a, task 1 by b; nothing in a or b says which."""
    y, noise = torch.randn(count, generator=rng), torch.randn(count, generator=rng)
    task = torch.rand(count, generator=rng) < 0.5
    vectors = {"a": torch.where(task, noise, y)[:, None], "b": torch.where(task, y, noise)[:, None]}
    return {**vectors, "task": F.one_hot(task.long(), 2).float()}, y


def test_a_query_reaches_the_optimum_of_both_tasks_and_a_gate_without_one_stays_between() -> None:
    widths = {"a": Width(1), "b": Width(1), "task": Width(2)}
    table = {"kind": "gated", "dim": 16, "norm": "none"}
    with_query = error(build({**table, "query": "task"}, widths).train(), asked)
    without = error(build(table, widths).train(), asked)
    assert with_query < 0.02
    assert without > 0.4  # half of the sum of both is the best


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="'feature' have no query"):
        build({"kind": "gated", "form": "feature", "query": "a"})
    with pytest.raises(ConfigError, match="did you mean 'a'"):
        build({"kind": "gated", "query": "aa"})
    with pytest.raises(ConfigError, match="norm = 'sum' does nothing"):
        build({"kind": "gated", "form": "attention", "norm": "sum"})


# GMCA and tensor fusion: products of inputs


def test_the_limits_of_the_merge() -> None:
    merge, x, c = GatedMerge(8, -2.0), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    found = torch.ones(3, dtype=torch.bool)
    for bias, expected in ((-1e4, x), (1e4, c)):
        nn.init.constant_(merge.gate.bias, bias)
        assert torch.equal(merge(x, c, found), merge.norm(expected))
    nn.init.constant_(merge.gate.bias, -2.0)
    assert torch.equal(merge(x, c, ~found), merge.norm(x))
    x.requires_grad_()
    c.requires_grad_()
    merge(x, c, found).square().mul(torch.randn(8)).sum().backward()
    assert x.grad.any(dim=-1).all()
    assert c.grad.any(dim=-1).all()


def test_the_gate_of_the_merge_sees_both_sides() -> None:
    merge, x, c = GatedMerge(8, -2.0), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    of_x, of_c = merge.gate.weight.chunk(2, dim=1)
    g = (x @ of_x.T + c @ of_c.T + merge.gate.bias).sigmoid()
    merged = merge(x, c, torch.ones(3, dtype=torch.bool))
    assert torch.allclose(merged, merge.norm(g * c + (1 - g) * x), atol=1e-6)
    # the wrong variant: a gate of the input alone
    alone = (x @ (of_x + of_c).T + merge.gate.bias).sigmoid()
    assert not torch.allclose(merged, merge.norm(alone * c + (1 - alone) * x), atol=1e-2)


def test_gmca_starts_near_the_inputs() -> None:
    """Five sixths of a merged vector are the input's own."""
    fusion, (encoded, present) = build({"kind": "gmca", "dim": 16, "heads": 4}), inputs()
    tokens = fusion.adapters(encoded, present)
    for name, (x, _) in tokens.items():
        gate = fusion.merge[name].gate(torch.cat([x, torch.zeros_like(x)], dim=-1)).sigmoid()
        assert 0.08 < float(gate.mean()) < 0.2


def xor(count: int, rng: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    x = torch.randn(count, 2, generator=rng)
    return {"a": x[:, :1], "b": x[:, 1:]}, x.prod(dim=1)


ONE = {"a": Width(1), "b": Width(1)}


def test_products_of_inputs_are_learned_where_a_gate_sees_both_and_only_there() -> None:
    scalar = error(build({"kind": "gated", "dim": 32, "norm": "none"}, ONE).train(), xor, classes=True, steps=150)
    gmca = error(build({"kind": "gmca", "dim": 32, "heads": 4, "dropout": 0}, ONE).train(), xor, classes=True)
    assert gmca < 0.05
    assert scalar > 0.35


def test_tensor_fusion_learns_products_and_concatenation_does_not() -> None:
    tensor = error(build({"kind": "low_rank_tensor", "dim": 16}, ONE).train(), xor, classes=True)
    concat = error(build({"kind": "concat", "dim": 16}, ONE).train(), xor, classes=True, steps=150)
    assert tensor < 0.05
    assert concat > 0.35


def test_an_absent_input_makes_the_product_one_of_lower_order() -> None:
    fusion, (encoded, present) = build({"kind": "low_rank_tensor", "dim": 16}, ONE), inputs(widths=ONE)
    only_a = fusion(encoded, {**present, "b": torch.zeros_like(present["b"])}).vector
    first = fusion.factors["a"](encoded["a"].vector) * fusion.factors["b"].bias
    torch.testing.assert_close(only_a, first.unflatten(1, (4, 16)).mean(dim=1))
