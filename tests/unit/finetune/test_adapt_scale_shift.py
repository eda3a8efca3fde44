"""Scale and shift per missing-modality subset: one set of numbers a subset, used where exactly these are present."""

from __future__ import annotations

import torch

from finetune.adapt.base import ADAPTATIONS
from finetune.adapt.scale_shift import Shift, Subset
from finetune.featurizer import Encodings
from finetune.predictor import Predictor
from pretrain.encoders.base import Encoded
from tests.unit.finetune.predictors import OPTIM, batch, digest, predictor, train

PUBLISHED = {"kind": "scale_shift", "head": "frozen"}


def numbers(made: Predictor) -> list[Shift]:
    return [module for module in made.modules() if isinstance(module, Shift)]


def test_numbers_of_a_subset_move_the_rows_that_have_exactly_these_modalities() -> None:
    made, _ = predictor(table={"kind": "scale_shift"})
    made.eval()
    data = batch(rows=60, share=0.6)
    before = made(data)
    subset: Subset = made.featurizer.join.subset
    wanted = subset.sets.index({"a", "c"})
    with torch.no_grad():
        for shift in numbers(made):
            shift.beta[wanted] += 0.5
    moved = (made(data) != before).any(dim=1)
    exactly = data.present["a"] & ~data.present["b"] & data.present["c"]
    assert 0 < exactly.sum() < len(exactly)
    assert torch.equal(moved, exactly)


def test_as_published_everything_but_the_numbers_keeps_its_bits() -> None:
    made, adaptation = predictor(table=PUBLISHED, dropout=0.5)
    before = digest(made, ".gamma", ".beta")
    train(made, adaptation, batch())
    assert digest(made, ".gamma", ".beta") == before
    assert any(not torch.equal(shift.gamma, torch.ones_like(shift.gamma)) for shift in numbers(made))
    groups = adaptation.groups(made, OPTIM)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0


def test_numbers_of_subsets_that_were_not_seen_stay_one_and_zero() -> None:
    """AdamW would shrink a scale that nothing asks for, were it decayed."""
    made, adaptation = predictor(table=PUBLISHED)
    train(made, adaptation, batch(share=1.0))
    for shift in numbers(made):
        assert torch.equal(shift.gamma, torch.ones_like(shift.gamma))
        assert torch.equal(shift.beta, torch.zeros_like(shift.beta))


def test_the_new_numbers_are_less_than_a_hundredth_of_a_network_of_usual_size() -> None:
    from finetune.featurizer import Featurizer
    from finetune.heads.base import HEADS
    from pretrain.encoders.base import ENCODERS
    from tests.fused_models import FITTED, SPECS

    table = {"kind": "spectrum_transformer", "dim": 192, "depth": 6, "heads": 4, "patch": 8, "scale": "linear"}
    table["summary"] = False
    options = ENCODERS.options(table)
    made = {name: ENCODERS.get(options.kind)(SPECS[name], options, FITTED[name]) for name in "ab"}
    featurizer = Featurizer(made)
    head = HEADS.options({"kind": "regression"})
    whole = Predictor(featurizer, HEADS.get("regression")(head, featurizer.width, ("y_ev",)))
    count = sum(p.numel() for p in whole.parameters())
    ADAPTATIONS.options(PUBLISHED).insert(whole)
    added = sum(p.numel() for shift in numbers(whole) for p in shift.parameters())
    assert 0 < added < 0.01 * count


def toy(rows: int, seed: int, *, complete: bool) -> tuple[Encodings, torch.Tensor]:
    """A modality whose absence moves the mean of the features far from where the head has learned to look."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, 6, generator=generator)
    c = 4 + 0.2 * torch.randn(rows, 6, generator=generator)
    y = a.sum(dim=1, keepdim=True) + c.sum(dim=1, keepdim=True)
    present = {"a": torch.ones(rows).bool(), "c": torch.full((rows,), complete)}
    return Encodings({"a": Encoded(a), "c": Encoded(c)}, present), y


def fitted(made: Predictor, groups: list[dict[str, object]], data: Encodings, y: torch.Tensor) -> None:
    optimizer = torch.optim.Adam([p for group in groups for p in group["params"]], lr=0.01)  # type: ignore[attr-defined]
    made.train()
    for _ in range(400):
        optimizer.zero_grad()
        made.head.loss(made(data), y).backward()
        optimizer.step()
    made.eval()


def test_the_numbers_close_the_gap_that_a_missing_modality_opens_and_a_frozen_network_does_not() -> None:
    options = {"hidden": 32, "loss": "mse"}
    network, full = predictor(("a", "c"), **options)
    whole, y = toy(400, 0, complete=True)
    network.head.fit(y)
    fitted(network, full.groups(network, OPTIM), whole, y)
    lacking, y_lacking = toy(400, 1, complete=False)
    test, y_test = toy(400, 2, complete=False)

    def error(made: Predictor) -> float:
        with torch.no_grad():
            return (made.head.predict(made(test)).value - y_test).square().mean().item()

    alone = error(network)
    adaptation = ADAPTATIONS.options(PUBLISHED)
    adaptation.insert(network)
    adaptation.prepare(network)
    assert error(network) == alone, "before training the numbers change nothing"
    fitted(network, adaptation.groups(network, OPTIM), lacking, y_lacking)
    dedicated, everything = predictor(("a", "c"), **options)
    dedicated.head.fit(y_lacking)
    fitted(dedicated, everything.groups(dedicated, OPTIM), lacking, y_lacking)
    assert error(network) < 0.2 * alone
    assert error(dedicated) < 0.2 * alone
    with torch.no_grad():
        complete, y_complete = toy(400, 3, complete=True)
        whole_error = (network.head.predict(network(complete)).value - y_complete).square().mean().item()
    assert whole_error < 0.2 * alone, "complete rows are predicted as before"
