"""What a recipe changes of a model before training: starting weights, activations computed again, compiled encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.accumulate import contrast
from pretrain.config import Recipe
from pretrain.export import write_export
from pretrain.model import MultimodalModel
from pretrain.parts import fit_encoders
from pretrain.prepare import prepare
from shards.errors import CheckpointError, ConfigError
from tests.small_models import FITTED, NAMES, SPECS, batch, model, recipe, samples


def gradients(net: MultimodalModel) -> tuple[float, dict[str, Tensor]]:
    net.zero_grad()
    torch.manual_seed(3)
    loss, _ = contrast(net, net.objective, Tensor.backward, batch(samples(8)))
    return float(loss), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def prepared(seed: int = 0, autocast: torch.dtype | None = None, **tables: Any) -> MultimodalModel:
    config = recipe(tables.pop("objective", "anchored"), dropout=tables.pop("dropout", 0.0), **tables)
    net = model(config, seed=seed, autocast=autocast)
    prepare(net, config)
    return net


def held(net: MultimodalModel) -> int:
    """Bytes that the encoders leave for the backward pass, without parameters and inputs."""
    own = {p.data_ptr() for p in [*net.parameters(), *net.buffers()]}
    whole = batch(samples(64, share=1.0))
    found = {value["values"].data_ptr() for value in whole.inputs.values()}  # type: ignore[union-attr]
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own | found:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # held, so that no address is used twice
        graph = net(whole)
    assert graph
    return sum(kept.values())


@pytest.mark.parametrize("objective", ["anchored", "test_views"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_activations_computed_again_give_the_same_gradient(objective: str, autocast: torch.dtype | None) -> None:
    runs = []
    options = {"objective": objective, "dropout": 0.4, "autocast": autocast, "b": {"freeze": "encoder"}}
    for again in (False, True):
        net = prepared(optim={"checkpoint_activations": again}, **options)
        calls: list[bool] = []
        net.encoders["a"].register_forward_pre_hook(lambda *_, calls=calls: calls.append(True))
        runs.append((*gradients(net), len(calls)))
    (loss, grads, once), (same, others, twice) = runs
    assert twice == 2 * once
    assert loss == same
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, atol=1e-7, rtol=1e-6)


def test_activations_computed_again_are_not_held() -> None:
    deep = {name: {"encoder": {"kind": "vector", "layers": 6, "hidden": 64, "dim": 6}} for name in NAMES}
    less, more = (held(prepared(optim={"checkpoint_activations": again}, **deep)) for again in (True, False))
    assert less < 0.2 * more


def test_without_a_gradient_nothing_is_computed_again() -> None:
    net = prepared(optim={"checkpoint_activations": True})
    with torch.no_grad():
        z, _ = net(batch(samples(4)))
    assert not any(value.requires_grad for value in z.values())


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return exported(tmp_path / "best")


def exported(folder: Path, config: Recipe | None = None) -> Path:
    config = config or recipe()
    net = model(config, seed=11)
    with torch.no_grad():
        net.encoders["a"].centre += 0.25
    fitted: Any = {name: {**values, "mean": [0.25] * 6} for name, values in FITTED.items()}
    write_export(
        folder, net, config, fitted, step=1, data_name="d", data_sha256="0", data_contents=[], validation=[]
    )  # fmt: skip
    return folder


def same(one: MultimodalModel, two: MultimodalModel, part: str) -> bool:
    mine, theirs = ({n: v for n, v in net.state_dict().items() if n.startswith(f"{part}.")} for net in (one, two))
    assert mine and mine.keys() == theirs.keys()
    return all((mine[name] == theirs[name]).all() for name in mine)


def test_an_encoder_starts_from_an_export_and_the_others_do_not(export: Path) -> None:
    theirs = model(recipe(), seed=11)
    theirs.encoders["a"].centre += 0.25
    config = recipe(a={"weights": str(export), "freeze": "all"})
    net = model(config, seed=0)
    assert prepare(net, config) == [f"encoder and projection of 'a' from {export}"]
    parts = [f"{kind}.{name}" for kind in ("encoders", "projections") for name in NAMES]
    assert {part for part in parts if same(net, theirs, part)} == {"encoders.a", "projections.a"}
    assert not net.encoders["a"].training


def test_a_resumed_run_reads_no_starting_weights(export: Path) -> None:
    config = recipe(a={"weights": str(export / "gone")})
    assert prepare(model(config), config, resumed=True) == []


@pytest.mark.parametrize(
    "other", [{"projection": {"dim": 4}}, {"projection": {"dim": 5, "shared": True}}, {"projection": {"kind": "mlp"}}]
)
def test_a_projection_that_does_not_fit_stays_new(export: Path, other: dict[str, Any]) -> None:
    config = recipe(a={"weights": str(export)}, **other)
    assert prepare(model(config), config) == [f"encoder of 'a' from {export}"]


def test_what_the_exported_encoder_was_fitted_to_is_taken_over(export: Path) -> None:
    def values(name: str) -> Any:
        assert name != "a", "nothing needs to be read for it"
        return [sample.arrays[name] for sample in samples(9, share=1.0)]

    fitted = fit_encoders(recipe(a={"weights": str(export)}, dropout=0.2), SPECS, values)
    assert fitted["a"] == {"mean": [0.25] * 6, "std": [1.0] * 6, "weights_follow": True}
    assert fitted["b"]["mean"] != [0.25] * 6


def test_an_encoder_with_other_options_or_other_data_is_refused_by_name(export: Path) -> None:
    table: dict[str, Any] = {"kind": "vector", "hidden": 9, "dim": 6, "activation": "relu"}
    with pytest.raises(ConfigError, match=r"hidden = 8 there, 9 here.*activation = 'gelu' there, 'relu' here"):
        fit_encoders(recipe(a={"weights": str(export), "encoder": table}), SPECS, lambda name: [])
    field = SPECS["a"].fields["values"].model_copy(update={"unit": "eV"})
    other = {**SPECS, "a": SPECS["a"].model_copy(update={"fields": {"values": field}})}
    with pytest.raises(ConfigError, match=r"reads other data[\s\S]*fields"):
        fit_encoders(recipe(a={"weights": str(export)}), other, lambda name: [])


def test_an_export_that_is_missing_damaged_or_of_other_modalities_is_refused(export: Path, tmp_path: Path) -> None:
    config = recipe(a={"weights": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"no exported model[\s\S]*modalities.a.weights"):
        prepare(model(config), config)
    weights = export / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    config = recipe(a={"weights": str(export)})
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        prepare(model(config), config)
    whole = config.resolved()
    whole["modalities"] = {name: whole["modalities"][name] for name in "ab"}
    two = exported(tmp_path / "two", Recipe.model_validate(whole | {"objective": recipe().objective}))
    config = recipe(c={"weights": str(two)})
    with pytest.raises(ConfigError, match=r"no modality 'c'[\s\S]*a, b"):
        prepare(model(config), config)


@pytest.mark.slow
def test_compiled_encoders_give_the_same_gradient_under_the_same_names() -> None:
    plain, fast = prepared(), prepared(optim={"compile": True})
    assert list(plain.state_dict()) == list(fast.state_dict())
    (loss, grads), (same_loss, others) = gradients(plain), gradients(fast)
    assert same_loss == pytest.approx(loss, abs=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, atol=1e-5, rtol=1e-5)
    assert all(encoder._compiled_call_impl is not None for encoder in fast.encoders.values())
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    for rows in (9, 13, 21):
        contrast(fast, fast.objective, Tensor.backward, batch(samples(rows)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= compiled + 3, "one more a number of rows"


def test_where_nothing_can_be_compiled_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nand so on")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"optim.compile[\s\S]*RuntimeError: no compiler\n"):
        prepared(optim={"compile": True})
