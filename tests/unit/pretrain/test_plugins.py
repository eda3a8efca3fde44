from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from pretrain.config import parse_recipe
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from pretrain.parts import check_modalities, fit_encoders
from shards.errors import ConfigError
from shards.plugins import Options, Registry
from shards.reader import Dataset
from shards.stream import BatchStream

THIRD_PARTY = '''
from typing import Literal

from torch import nn

from pretrain.encoders.base import Encoded, Encoder
from shards.plugins import Options


class MineEncoder(Encoder):
    """A complete third-party plug-in: it only returns a vector."""

    class Config(Options):
        kind: Literal["mine"] = "mine"
        dim: int = 4

    reads = frozenset({"vector"})

    def __init__(self, spec, config, fitted):
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.linear = nn.Linear(spec.fields["values"].shape[0], config.dim)

    def forward(self, inputs):
        return Encoded(self.linear(inputs["values"]))
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip leaves it: a module and its entry points."""
    (tmp_path / "their_package.py").write_text(THIRD_PARTY)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[matloom.encoders]\nmine = their_package:MineEncoder\n"
        "lost = their_package:Nothing\nvector = their_package:MineEncoder\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ENCODERS.builtin:  # registered by an import, which happens once
        ENCODERS.get(kind)
    monkeypatch.setattr(ENCODERS, "_plugins", dict(ENCODERS._plugins))
    yield
    sys.modules.pop("their_package", None)


def toy_recipe(**encoders: object) -> dict[str, object]:
    return {
        "name": "t",
        "data": {"path": "x"},
        "modalities": {name: {"encoder": table} for name, table in encoders.items()},
        "projection": {"dim": 3},
        "objective": {"kind": "all_pairs"},
    }


@pytest.mark.usefixtures("third_party")
def test_a_third_party_encoder_is_found_built_and_trained(toy: Dataset) -> None:
    assert {"mine", "vector", "spectrum_transformer"} <= set(ENCODERS.kinds())
    recipe = parse_recipe(toy_recipe(a={"kind": "mine"}, b={"kind": "vector"}), where="here")
    check_modalities(recipe, toy.modalities)
    fitted = fit_encoders(recipe, toy.modalities, lambda name: [s.arrays[name] for s in toy if name in s.arrays])
    model = MultimodalModel(recipe, toy.modalities, fitted)
    batch = next(BatchStream(toy, toy.positions("chemical_system", "train"), batch_size=8).epoch(0))
    loss, _ = model.objective(gather_batch(*model(batch)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoders["a"].linear.weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("third_party")
def test_options_of_a_third_party_encoder_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dim'"):
        ENCODERS.options({"kind": "mine", "dimm": 3})
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        ENCODERS.options({"kind": "mime"})


@pytest.mark.usefixtures("third_party")
def test_an_entry_point_that_cannot_be_loaded_is_named() -> None:
    with pytest.raises(ConfigError, match="their_package:Nothing"):
        ENCODERS.get("lost")


@pytest.mark.usefixtures("third_party")
def test_a_third_party_plugin_does_not_replace_a_built_in_one() -> None:
    assert ENCODERS.get("vector").__module__ == "pretrain.encoders.vector"


def test_two_plugins_of_one_kind_are_refused() -> None:
    registry: Registry[type] = Registry("encoder", {})

    @registry.register("x")
    class First: ...

    registry.register("x")(First)
    with pytest.raises(ConfigError, match="'x' is registered twice"):
        registry.register("x")(type("Second", (), {}))
    assert registry.get("x") is First


@pytest.mark.parametrize("table", [{}, {"dim": 3}])
def test_a_table_without_a_kind_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"no 'kind'[\s\S]*vector"):
        ENCODERS.options(table)


def test_an_encoder_that_cannot_read_the_modality_is_refused(toy: Dataset) -> None:
    recipe = parse_recipe(toy_recipe(dos={"kind": "vector"}), where="here")
    with pytest.raises(ConfigError, match="cannot read modality 'dos' of kind 'spectrum'"):
        check_modalities(recipe, toy.modalities)
    recipe = parse_recipe(toy_recipe(cristal={"kind": "vector"}), where="here")
    with pytest.raises(ConfigError, match="did you mean 'crystal'"):
        check_modalities(recipe, toy.modalities)


def test_options_are_frozen() -> None:
    options = ENCODERS.options({"kind": "vector"})
    with pytest.raises(ValueError, match="frozen"):
        options.hidden = 3  # type: ignore[attr-defined]


def test_an_encoder_of_ten_lines_is_complete() -> None:
    class Tiny(Encoder):
        class Config(Options):
            kind: Literal["tiny"] = "tiny"

        reads = frozenset({"vector"})

        def forward(self, inputs):
            return Encoded(torch.ones(len(inputs["x"]), 2))

    assert Tiny.fit(None, None, []) == {}
    assert Tiny(None, Tiny.Config(), {})({"x": torch.zeros(3)}).tokens is None
