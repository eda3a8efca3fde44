"""Every adaptation: what it changes at the start (nothing), what it leaves as it is (bitwise), and what it trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from finetune.adapt.base import ADAPTATIONS, Adaptation
from finetune.adapt.full import stages
from finetune.encodings import EncodedRows
from finetune.featurizer import Encodings
from finetune.predictor import Predictor
from pretrain.encoders.base import Encoded
from shards.errors import ConfigError
from tests.unit.finetune.predictors import OPTIM, batch, digest, predictor, train

# what brings encoders of its own has tests of its own
KINDS = [kind for kind in ADAPTATIONS.kinds() if not ADAPTATIONS.get(kind).own_encoders]
ON_FROZEN = [kind for kind in KINDS if ADAPTATIONS.get(kind).cached]


def encoders_of(made: Predictor) -> nn.Module:
    return made.featurizer.encoders


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "attentive"])
def test_before_training_nothing_has_changed_bitwise(kind: str) -> None:
    plain, _ = predictor()
    adapted, _ = predictor(table={"kind": kind})
    data = batch()
    assert torch.equal(adapted.eval()(data), plain.eval()(data))


@pytest.mark.parametrize("kind", ON_FROZEN)
@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "n")])
def test_frozen_encoders_keep_every_bit_batch_statistics_too(kind: str, names: tuple[str, ...]) -> None:
    made, adaptation = predictor(names, {"kind": kind})
    before, top = digest(encoders_of(made)), digest(made.head)
    train(made, adaptation, batch(share=1.0 if "n" in names else 0.7, names=tuple(made.featurizer.specs)))
    assert digest(encoders_of(made)) == before
    assert digest(made.head) != top


def test_parameters_without_gradient_alone_let_batch_statistics_drift() -> None:
    """The defect of the published code: requires_grad is False, and .train() is called on every step."""
    made, adaptation = predictor(("a", "n"))
    encoders_of(made).requires_grad_(False)
    before, parameters = digest(encoders_of(made)), digest(encoders_of(made), "running_", "num_batches")
    train(made, adaptation, batch(share=1.0, names=("a", "c")))
    assert digest(encoders_of(made), "running_", "num_batches") == parameters
    assert digest(encoders_of(made)) != before


def changed(kind: str, names: tuple[str, ...] = ("a", "n"), epoch: int = 0, **options: object) -> set[str]:
    """Names of the encoders' parameters and buffers that training moved."""
    made, adaptation = predictor(names, {"kind": kind, **options})
    before = {name: value.clone() for name, value in encoders_of(made).state_dict().items()}
    train(made, adaptation, batch(share=1.0, names=tuple(made.featurizer.specs)), epoch=epoch)
    after = encoders_of(made).state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_last_stage_alone_is_trained_with_its_statistics() -> None:
    moved = {name for name in changed("last_n", n=1) if name.startswith("c.")}
    assert moved and all(name.startswith("c.blocks.1.") for name in moved)
    assert "c.blocks.1.1.running_mean" in moved
    assert {n for n in changed("last_n", n=2) if n.startswith("c.blocks.0.")}


def test_staged_unfreezing_begins_with_the_head_and_goes_down() -> None:
    at = {epoch: changed("staged", ("n",), epoch, epochs=(2, 4, 6)) for epoch in (0, 2, 4, 6)}
    assert at[0] == set()
    assert at[2] and all(name.startswith("c.blocks.1.") for name in at[2])
    assert any(name.startswith("c.blocks.0.") for name in at[4])
    assert at[2] < at[4] <= at[6]


def test_a_stage_that_is_thawed_gets_its_training_mode_back() -> None:
    made, adaptation = predictor(("n",), {"kind": "staged", "epochs": [1]})
    norms = [module for module in encoders_of(made).modules() if isinstance(module, nn.BatchNorm1d)]
    for epoch, mode in ((0, False), (1, True), (0, False)):
        made.train()
        adaptation.begin_epoch(made, epoch)
        assert [norm.training for norm in norms] == [mode, mode]


def test_bitfit_trains_the_biases_and_nothing_else_of_the_encoders() -> None:
    moved = changed("bitfit")
    assert moved and all(name.endswith("bias") for name in moved)


def test_learning_rates_fall_from_the_output_to_the_input() -> None:
    made, adaptation = predictor(("n",), {"kind": "full", "layer_decay": 0.5})
    (encoder,) = encoders_of(made).values()
    rates = {id(p): group["lr"] for group in adaptation.groups(made, OPTIM) for p in group["params"]}
    low, high = (rates[id(stage[0])] for stage in stages(encoder))
    assert (low, high) == pytest.approx((OPTIM.encoder_lr / 2, OPTIM.encoder_lr))
    assert rates[id(next(made.head.parameters()))] == OPTIM.lr
    assert len(rates) == len(list(made.parameters())), "every parameter is in a group, once"


def test_lora_leaves_the_base_and_merging_changes_no_prediction() -> None:
    made, adaptation = predictor(table={"kind": "lora", "rank": 2})
    plain, _ = predictor()
    data = batch()
    before = digest(encoders_of(made), "lora_")
    train(made, adaptation, data)
    assert digest(encoders_of(made), "lora_") == before
    predicted = made.eval()(data)
    assert not torch.allclose(predicted, plain.eval()(data))
    adaptation.settle(made)
    assert encoders_of(made).state_dict().keys() == encoders_of(plain).state_dict().keys()
    assert torch.allclose(made(data), predicted, atol=1e-5)


def test_lora_moves_its_updates_and_no_batch_statistics() -> None:
    """peft freezes parameters only: without more, normalisations between the maps would go on counting."""
    moved = changed("lora", rank=2)
    assert moved and all("lora_" in name for name in moved)


def test_lora_that_is_kept_apart_is_inserted_again_where_its_weights_are_loaded() -> None:
    table = {"kind": "lora", "rank": 2, "merge": False}
    made, adaptation = predictor(table=table)
    train(made, adaptation, batch())
    adaptation.settle(made)
    again, _ = predictor()
    ADAPTATIONS.options(table).insert(again, stored=True)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(batch()), made.eval()(batch()))


def test_new_parameters_of_lora_are_few() -> None:
    made, adaptation = predictor(table={"kind": "lora", "rank": 1})
    lora = [p for name, p in made.named_parameters() if "lora_" in name]
    groups = adaptation.groups(made, OPTIM)
    assert {id(p) for p in lora} == {id(p) for p in groups[1]["params"]}


@pytest.mark.parametrize("kind", ON_FROZEN)
def test_cached_encodings_give_what_the_batches_give(kind: str) -> None:
    """Rows in another order and company: their tokens are padded anew."""
    made, _ = predictor(table={"kind": kind})
    made.eval()
    parts = [batch(5, seed) for seed in range(3)]
    rows = EncodedRows.of(made.featurizer, parts)
    expected = torch.cat([made(part) for part in parts])
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made(rows.rows(order)), expected[order], atol=1e-5)


def test_an_attentive_probe_finds_what_tokens_hold_and_their_mean_does_not() -> None:
    """Which of the tokens is the loud one says the class; the mean of the tokens is the same for all."""
    torch.manual_seed(0)
    rows, width, there = 200, 6, torch.ones(200).bool()
    which = torch.randint(4, (rows,))
    tokens = torch.randn(4, width) + 3.0 * one_hot(which, 4)[..., None]
    y = (which == 0).float()[:, None]
    mean = tokens.mean(dim=1)
    seen = {
        "tokens": Encoded(mean, tokens, torch.ones(rows, 4).bool()),
        "mean": Encoded(mean, mean[:, None], torch.ones(rows, 1).bool()),
    }
    errors = {}
    for name, encoded in seen.items():
        made, adaptation = predictor(("a",), {"kind": "attentive", "dim": 16, "heads": 2})
        parameters = [p for group in adaptation.groups(made, OPTIM) for p in group["params"]]
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (made(Encodings({"a": encoded}, {"a": there})) - y).square().mean()
            loss.backward()
            optimizer.step()
        errors[name] = loss.item()
    assert errors["tokens"] < 0.02 < 0.1 < errors["mean"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_no_group_has_no_gradient_and_the_other_way_round(kind: str) -> None:
    made, adaptation = predictor(table={"kind": kind})
    adaptation.begin_epoch(made, 1_000)
    trained = {id(p) for group in adaptation.groups(made, OPTIM) for p in group["params"]}
    assert trained == {id(p) for p in made.parameters() if p.requires_grad}


def test_options_that_make_no_sense_are_refused() -> None:
    for table, message in (
        ({"kind": "staged", "epochs": [5, 5]}, "must rise"),
        ({"kind": "attentive", "dim": 10, "heads": 4}, "heads"),
        ({"kind": "last_m"}, "did you mean 'last_n'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ADAPTATIONS.options(table)
    with pytest.raises(ConfigError, match="2 to 6 modalities"):
        predictor(("a",), {"kind": "scale_shift"})


def test_every_kind_is_an_adaptation() -> None:
    assert all(issubclass(ADAPTATIONS.get(kind), Adaptation) for kind in KINDS)
