from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from finetune.experts import Experts, ExpertsConfig
from finetune.gates import InputGate, NoisyTopKGate, StaticGate, squared_variation, top_k_softmax
from finetune.loading import Foundation
from finetune.predictor import Featurizer
from shards.batch import Batch, collate
from shards.errors import ConfigError
from shards.reader import Dataset
from tests.small_models import SPECS, WIDTH, batch, samples


class Toy(nn.Module):
    """An expert over the vector ``a``; counts its calls and rows, and has statistics that must not move."""

    def __init__(self, width: int = 4, seed: int = 0, weight: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.width, self.specs = width, {"a": SPECS["a"]}
        self.linear, self.norm = nn.Linear(WIDTH, width), nn.BatchNorm1d(width)
        if weight is not None:
            self.linear = nn.Linear(WIDTH, width, bias=False)
            self.linear.weight.data = weight.clone()
        self.calls, self.rows = 0, 0

    def forward(self, batch: Batch) -> Tensor:
        x = batch.inputs["a"]["values"]
        assert isinstance(x, Tensor)
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.norm(self.linear(x))


def toys(count: int = 4, width: int = 4) -> list[Toy]:
    return [Toy(width, seed) for seed in range(count)]


def rows(count: int = 12, seed: int = 0) -> Batch:
    return batch(samples(count, seed=seed, share=1.0))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


GATES = [ExpertsConfig(), ExpertsConfig(heads=2), ExpertsConfig(gate="input"), ExpertsConfig(gate="noisy_top_k")]


@pytest.mark.parametrize("config", GATES, ids=lambda config: f"{config.gate}-{config.heads}")
@pytest.mark.parametrize("aggregation", ["add", "concat"])
def test_width_is_what_comes_out_and_exactly_k_scores_are_not_zero(config: ExpertsConfig, aggregation: str) -> None:
    config = config.model_copy(update={"aggregation": aggregation})
    experts = Experts(toys(), config)
    assert experts(rows()).shape == (12, experts.width)
    if config.gate == "static":
        scores = experts.scores()
    else:
        scores, _ = experts.gate(torch.randn(12, 4))
    assert ((scores != 0).sum(-1) == 2).all() and torch.allclose(scores.sum(-1), torch.ones(len(scores)))


@pytest.mark.parametrize("aggregation", ["add", "concat"])
@pytest.mark.parametrize("gate", ["static", "input", "noisy_top_k"])
def test_the_result_is_the_weighted_mixture_of_the_experts_vectors(gate: str, aggregation: str) -> None:
    experts = Experts(toys(), ExpertsConfig(gate=gate, aggregation=aggregation)).eval()
    with torch.no_grad():
        for parameter in experts.gate.parameters():
            parameter.normal_()
        vectors = torch.stack([toy(rows()) for toy in experts.experts], dim=1)
        scores = experts.scores().expand(12, -1) if gate == "static" else experts.gate(vectors[:, 0])[0]
        parts = vectors * scores[..., None]
        wanted = parts.sum(1) if aggregation == "add" else parts.flatten(1)
        assert torch.allclose(experts(rows()), wanted, atol=1e-6)
        assert torch.allclose(experts.combine(experts.vectors(rows())), wanted, atol=1e-6)


def test_experts_that_are_not_selected_are_not_evaluated() -> None:
    static = Experts(toys(), ExpertsConfig(k=2))
    static.gate.logits.data = torch.tensor([[1.0, 3.0, 0.0, 2.0]])
    for _ in range(3):
        static(rows())
    assert [toy.calls for toy in static.experts] == [0, 3, 0, 3]

    routed = Experts(toys(), ExpertsConfig(gate="input", router=2))
    routed.gate.linear.weight.data.normal_(std=5)
    found = routed(rows())
    scores, _ = routed.gate(routed.experts[2](rows()))
    chosen = (scores != 0).sum(0).tolist()
    assert len(set(chosen)) > 1, "rows want different experts"
    # the router ran on all rows, once, and once more for this test
    assert [toy.rows for toy in routed.experts] == [n if i != 2 else 24 for i, n in enumerate(chosen)]
    assert found.shape == (12, 4)


def test_every_row_is_independent_of_the_others() -> None:
    experts = Experts(toys(), ExpertsConfig(gate="input")).eval()
    experts.gate.linear.weight.data.normal_(std=5)
    whole = samples(12, share=1.0)
    alone = torch.cat([experts(collate([sample], SPECS)) for sample in whole])
    assert torch.allclose(experts(collate(whole, SPECS)), alone, atol=1e-6)


@pytest.mark.parametrize("config", GATES, ids=lambda config: f"{config.gate}-{config.heads}")
def test_frozen_experts_do_not_change_and_the_gate_learns(config: ExpertsConfig) -> None:
    experts = Experts([*toys(3), Toy(6, 3)], config.model_copy(update={"k": 3}))
    model = nn.Sequential(experts, nn.Linear(experts.width, 1))
    before, gate = [state(toy) for toy in experts.experts], state(experts.gate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model.train()
    for seed in range(3):
        optimizer.zero_grad()
        (model(rows(seed=seed)).square().sum() + experts.auxiliary).backward()
        optimizer.step()
    for toy, values in zip(experts.experts, before, strict=True):
        assert all(torch.equal(values[name], value) for name, value in toy.state_dict().items())
    assert any(not torch.equal(gate[name], value) for name, value in experts.gate.state_dict().items())
    copy.deepcopy(model)


def test_experts_that_are_not_frozen_move_their_statistics_too() -> None:
    """The published code freezes parameters and calls train() on the extractors: batch statistics drift."""
    experts = Experts(toys(2), ExpertsConfig(), frozen=False).train()
    before = state(experts.experts[0])
    experts(rows())
    assert not torch.equal(before["norm.running_mean"], experts.experts[0].state_dict()["norm.running_mean"])


def test_every_projection_gets_a_gradient_on_every_rank() -> None:
    experts = Experts([Toy(4), Toy(5, 1), Toy(6, 2)], ExpertsConfig(width=7))
    experts(rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in experts.projections.parameters())
    assert len(list(experts.projections.parameters())) == 6 and experts.width == 7


def train(gate: StaticGate, vectors: Tensor, target: Tensor, steps: int = 300) -> set[int]:
    """Train a gate and a linear head; return every expert that was ever selected."""
    head, tried = nn.Linear(vectors.shape[-1], 1), set()
    optimizer = torch.optim.Adam([*gate.parameters(), *head.parameters()], lr=0.03)
    for _ in range(steps):
        scores, auxiliary = gate()
        tried |= set(scores[0].nonzero()[:, 0].tolist())
        predicted = head(torch.einsum("m,bmd->bd", scores[0], vectors))[:, 0]
        loss = (predicted - target).square().mean() + auxiliary
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tried


@pytest.mark.parametrize("k", [1, 2, 4])
def test_of_one_expert_the_gate_never_learns_that_another_is_better(k: int) -> None:
    """Six random experts, the target linear in the last: k = 1 stays where it began, k >= 2 finds it."""
    torch.manual_seed(0)
    vectors = torch.randn(256, 6, 4)
    target = vectors[:, 5] @ torch.ones(4)
    gate = StaticGate(6, k=k)
    tried = train(gate, vectors, target)
    if k == 1:
        assert len(tried) == 1 and gate.logits.grad is not None and not gate.logits.grad.any()
    else:
        assert 5 in tried and int(gate.scores()[0].argmax()) == 5


def test_k_of_one_is_refused_but_for_one_expert() -> None:
    for gate in ("static", "input", "noisy_top_k"):
        with pytest.raises(ConfigError, match="cannot learn to route"):
            Experts(toys(), ExpertsConfig(gate=gate, k=1))
    assert Experts(toys(1), ExpertsConfig(k=1))(rows()).shape == (12, 4)


def test_the_gate_ranks_experts_by_their_use() -> None:
    """One is trained for the target, one for a related property, one is noise: their vectors are less and less sure."""
    torch.manual_seed(0)
    cause = torch.randn(512, 4)
    target = cause @ torch.tensor([1.0, -1.0, 0.5, 2.0])
    noise = torch.randn_like(cause)
    related, trained = cause + torch.randn_like(cause), cause + 0.4 * torch.randn_like(cause)
    for order in ((0, 1, 2), (2, 0, 1)):
        vectors = torch.stack([[noise, related, trained][i] for i in order], dim=1)
        for k in (2, 3):
            gate = StaticGate(3, k=k)
            train(gate, vectors, target)
            score = {name: gate.scores()[0, order.index(name)].item() for name in range(3)}
            assert score[2] > 0.7 > score[1] > 1.5 * score[0], (k, score)


def test_the_regulariser_sharpens_one_head_and_parts_several() -> None:
    def after(heads: int, weight: float) -> Tensor:
        torch.manual_seed(0)
        gate = StaticGate(4, k=4, heads=heads, weight=weight)
        gate.logits.data += 0.01 * torch.randn_like(gate.logits)
        optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            gate()[1].backward()
            optimizer.step()
        return gate.scores().detach()

    assert after(1, 1.0).max() > 0.9, "least for a gate that chose one"
    heads = after(3, 1.0)
    assert len(set(heads.argmax(1).tolist())) == 3
    equal = StaticGate(4, k=4)
    assert equal()[1].item() == pytest.approx(0.01 * (4 / 16 - 1) ** 2)


def test_the_noisy_gate_balances() -> None:
    torch.manual_seed(0)
    gate = NoisyTopKGate(5, 4, k=2, weight=1.0)
    x = torch.randn(256, 5)
    with torch.no_grad():
        # one feature that all rows share lets a gate prefer the same experts for all of them
        x[:, 0] = 2.0
        gate.clean.weight[:, 0] = torch.tensor([1.0, 0.9, -1.0, -1.0])
    start = gate(x)[1].item()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        gate(x)[1].backward()
        optimizer.step()
    assert start > 1.0 and gate(x)[1].item() < 0.2
    gate.eval()
    assert torch.equal(gate(x)[0], gate(x)[0]) and gate(x)[1] == 0.0
    assert gate.train()(x)[0].ne(gate(x)[0]).any(), "noise in training"


def test_what_the_noisy_gate_adds_is_the_variation_of_importance_and_of_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shazeer et al., equations 7 and 11: both terms, each of which alone would balance something."""
    torch.manual_seed(0)
    gate = NoisyTopKGate(3, 5, k=2, weight=0.01)
    nn.init.normal_(gate.clean.weight)
    x = torch.randn(64, 3)
    # without the draw, so that the expectation can be written down
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    scores, added = gate(x)
    clean, scale = gate.clean(x), torch.nn.functional.softplus(gate.noise(x)) + 1e-2
    load = torch.zeros(5)
    for row, deviation in zip(clean, scale, strict=True):
        for expert in range(5):
            others = torch.cat([row[:expert], row[expert + 1 :]])
            load[expert] += torch.distributions.Normal(0, 1).cdf(
                (row[expert] - others.topk(2).values[-1]) / deviation[expert]
            )
    importance = scores.sum(0)
    terms = [(values.std() / values.mean()) ** 2 for values in (importance, load)]
    assert added.item() == pytest.approx(0.01 * float(terms[0] + terms[1]), rel=1e-4)
    assert min(terms) > 0.01, "neither is nothing"


def test_the_expected_load_is_how_often_an_expert_is_drawn() -> None:
    torch.manual_seed(0)
    gate = NoisyTopKGate(3, 5, k=2)
    nn.init.normal_(gate.clean.weight)
    x = torch.randn(400, 3)
    clean = gate.clean(x)
    scale = torch.full_like(clean, 0.7)
    loads, counts = [], []
    for _ in range(40):
        noisy = clean + torch.randn_like(clean) * scale
        loads.append(gate.load(clean, noisy, scale))
        counts.append((top_k_softmax(noisy, 2) != 0).sum(0).float())
    assert torch.allclose(torch.stack(loads).mean(0), torch.stack(counts).mean(0), rtol=0.05)
    assert squared_variation(torch.tensor([1.0, 1.0])) == 0.0 and squared_variation(torch.tensor([3.0])) == 0.0


def test_a_router_of_its_own_is_what_the_gate_looks_at() -> None:
    router = Toy(3, seed=9)
    experts = Experts(toys(), ExpertsConfig(gate="input"), router=router)
    experts(rows())
    assert isinstance(experts.gate, InputGate) and experts.gate.linear.in_features == 3 and router.calls == 1
    seen = router(rows())
    assert torch.allclose(experts.combine(experts.vectors(rows()), seen), experts(rows()), atol=1e-6)


def test_over_featurizers_of_a_checkpoint_with_missing_modalities(foundation: Foundation, toy: Dataset) -> None:
    """Rows are routed with what they lack; a mixture stands where a featurizer does."""
    encoders = foundation.model.encoders
    parts = [Featurizer({name: encoders[name]}) for name in ("a", "b", "c")]
    specs = {name: toy.modalities[name] for name in ("a", "b", "c")}
    several = [toy[i] for i in range(20)]
    for gate in ("static", "input"):
        experts = Experts(parts, ExpertsConfig(gate=gate)).eval()
        assert set(experts.specs) == {"a", "b", "c"}
        whole = experts(collate(several, specs))
        alone = torch.cat([experts(collate([sample], specs)) for sample in several])
        assert whole.shape == (20, experts.width) and torch.allclose(whole, alone, atol=1e-5)


def test_experts_of_different_features_and_impossible_options_are_refused() -> None:
    other = Toy(seed=1)
    other.specs = {"a": replace_spec()}
    with pytest.raises(ConfigError, match="another 'a'"):
        Experts([Toy(), other], ExpertsConfig())
    with pytest.raises(ConfigError, match="k = 3 of 2"):
        Experts(toys(2), ExpertsConfig(k=3))
    with pytest.raises(ConfigError, match="router = 7"):
        Experts(toys(2), ExpertsConfig(gate="input", router=7))
    with pytest.raises(ConfigError, match="none of its own"):
        Experts(toys(2), ExpertsConfig(gate="input")).scores()
    with pytest.raises(ValueError, match="several heads"):
        ExpertsConfig(gate="input", heads=2)


def replace_spec():
    return SPECS["a"].model_copy(update={"feature": {"step": "other"}})
