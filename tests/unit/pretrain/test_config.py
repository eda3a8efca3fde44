from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.config import FinetuneRecipe, RowConfig
from pretrain.config import Recipe, load_recipe, parse_recipe
from pretrain.encoders.base import ENCODERS
from shards.errors import ConfigError
from shards.recipes import apply_overrides

RECIPE = """
name = "toy"
[data]
path = "somewhere"
batch_size = 12
[modalities.a]
encoder = { kind = "vector", hidden = 8, dim = 4 }
[modalities.dos]
encoder = { kind = "spectrum_transformer", patch = 4, depth = 1, heads = 2, head_dim = 4, mlp_dim = 8, dim = 8 }
augment = { noise = 0.1 }
[objective]
kind = "anchored"
anchor = "a"
temperature = { init = 0.2 }
[optim]
lr = 1e-3
[deepspeed]
zero_optimization = { stage = 1 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_defaults_are_filled_in(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.optim.lr == 1e-3
    assert recipe.optim.grad_clip == 1.0
    assert recipe.encoder("a").kind == "vector"
    assert recipe.objective_options().temperature.learn  # type: ignore[attr-defined]
    assert recipe.modalities["dos"].augment.noise == 0.1


def test_a_resolved_recipe_is_complete_and_means_the_same(path: Path, tmp_path: Path) -> None:
    resolved = load_recipe(path, ["optim.betas=[0.8, 0.99]"]).resolved()
    (tmp_path / "recipe.json").write_text(json.dumps(resolved))
    again = load_recipe(tmp_path / "recipe.json")
    assert again.resolved() == resolved
    assert again.optim == load_recipe(path, ["optim.betas=[0.8, 0.99]"]).optim
    defaults = ENCODERS.get("vector").Config().model_dump()
    assert resolved["modalities"]["a"]["encoder"] == {**defaults, "hidden": 8, "dim": 4}
    default = ENCODERS.get("spectrum_transformer").Config(kind="spectrum_transformer")
    assert resolved["modalities"]["dos"]["encoder"]["dropout"] == default.dropout
    assert resolved["objective"]["temperature"] == {"learn": True, "init": 0.2, "min": 0.01, "per_pair": False}
    assert list(resolved["modalities"]) == ["a", "dos"]


UNKNOWN = [
    ("seeed=1", "seeed", "seed"),
    ("data.batchsize=1", "data.batchsize", "batch_size"),
    ("optim.learning_rte=1", "optim.learning_rte", None),
    ("optim.lrr=1", "optim.lrr", "lr"),
    ("modalities.a.encodr={}", "modalities.a.encodr", "encoder"),
    ("modalities.dos.augment.nois=1", "modalities.dos.augment.nois", "noise"),
    ("modalities.a.encoder.hiden=1", "hiden", "hidden"),
    ("modalities.a.encoder.kind=vectr", "vectr", "vector"),
    ("objective.ancor=a", "ancor", "anchor"),
    ("objective.temperature.inti=1", "temperature.inti", "init"),
    ("objective.kind=anchord", "anchord", "anchored"),
    ("trackin.experiment=x", "trackin", "tracking"),
    ('data.budget={ axs = "crystal.edges", max = 9 }', "data.budget.axs", "axis"),
    ('data.mix=[{ path = "x", wieght = 1 }]', "data.mix.0.wieght", "weight"),
    ("data.order.kind=shufled", "shufled", "shuffled"),
    ('data.order={ kind = "shuffled", block_shard = 2 }', "block_shard", "block_shards"),
]


@pytest.mark.parametrize(("override", "named", "hint"), UNKNOWN)
def test_an_unknown_key_is_refused_with_a_suggestion(path: Path, override: str, named: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, [override])
    assert f"'{named}'" in str(caught.value)
    assert (f"did you mean '{hint}'" if hint else "known:") in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "override",
    ["optim.lr=-1", "optim.lr=fast", "optim.lr=nan", "data.batch_size=0", "seed=-1", "optim.precision=fp8",
     "objective.temperature.init=0", "modalities.a.encoder.dim=0", "modalities.a.encoder=vector", "objective=anchored",
     "modalities.a.encoder.kind=7", "objective.kind=[]", "optim.betas=[0.9]", "checkpoint.keep=0",
     "data.workers=-1", "data.epoch_samples=5", 'data.mix=[{ path = "x" }]', "data.budget={ axis = 'edges', max = 3 }",
     "data.budget={ axis = 'crystal.edges', max = 0 }", "data.order={}"],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(path, [override])


MIX = """
mix = [{ path = "one", weight = 3 }, { path = "two", name = "other", overlays = ["xrd", "s3://bucket/text"] }]
epoch_samples = 500
batch_size = 32
[data.order]
kind = "curriculum"
difficulty = "length:crystal.atoms"
epochs = 20
[data.budget]
axis = "crystal.edges"
max = 20000
"""


def test_a_mix_with_an_order_and_a_budget_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace('path = "somewhere"\nbatch_size = 12\n', MIX))
    recipe = load_recipe(path)
    resolved = recipe.resolved()["data"]
    assert resolved["mix"][0] == {"path": "one", "weight": 3.0, "name": None, "overlays": []}
    assert resolved["mix"][1]["overlays"] == ["xrd", "s3://bucket/text"]
    assert resolved["budget"] == {"axis": "crystal.edges", "max": 20000}
    assert resolved["order"]["start"] == 0.3
    assert (resolved["path"], resolved["epoch_samples"], resolved["workers"]) == (None, 500, 1)
    order = recipe.data.training_order()
    assert order.model_dump(mode="json") == {
        "kind": "mixed", "inner": resolved["order"], "batch_size": 32, "samples": 500,
    }  # fmt: skip
    assert parse_recipe(recipe.resolved(), where="again").data.training_order() == order
    for override, message in [
        ("data.path=x", "give either 'path', or 'mix'"), ("data.mix=[]", "give either 'path', or 'mix'"),
        ('data.overlays=["x"]', "overlays of a mix belong to its data sets"),
        ('data.mix=[{ path = "x", weight = 0 }]', "weight"), ('data.mix=[{ path = "x", weight = inf }]', "weight"),
        ('data.mix=[{ path = "x", name = "a/b" }]', "name"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            load_recipe(path, [override])


@pytest.mark.parametrize("missing", ["name", "data", "objective", "modalities"])
def test_a_missing_table_is_named(path: Path, missing: str) -> None:
    tables = load_recipe(path).resolved()
    del tables[missing]
    with pytest.raises(ConfigError, match=missing):
        parse_recipe(tables, where="here")


@pytest.mark.parametrize(
    ("override", "value"),
    [("seed=3", 3), ("seed = 3", 3), ("name=a b", "a b"), ('name="3"', "3"), ("name=embedded:x", "embedded:x"),
     ("name=a=b", "a=b"), ("name=true", True), ("name=[1, 2]", [1, 2]), ("name=1e-3", 1e-3), ("name=", "")],
)  # fmt: skip
def test_overrides_are_toml_values_or_bare_words(override: str, value: Any) -> None:
    assert apply_overrides({}, [override])[override.split("=")[0].strip()] == value


def test_overrides_reach_into_tables_and_leave_the_original_alone() -> None:
    tables = {"a": {"b": 1}}
    assert apply_overrides(tables, ["a.c=2", "d.e.f=3", "a.c=4"]) == {"a": {"b": 1, "c": 4}, "d": {"e": {"f": 3}}}
    assert tables == {"a": {"b": 1}}
    for wrong in ("a", "a.b.c=1"):
        with pytest.raises(ConfigError):
            apply_overrides(tables, [wrong])


@settings(deadline=None)
@given(st.floats(1e-8, 1e8), st.integers(0, 2**40), st.text(min_size=1, max_size=10).filter(str.isidentifier))
def test_any_value_survives_the_round_trip(rate: float, seed: int, name: str) -> None:
    tables = {"name": name, "seed": seed, "data": {"path": name}, "modalities": {}, "objective": {"kind": "all_pairs"}}
    recipe = parse_recipe({**tables, "optim": {"lr": rate}}, where="here")
    again = parse_recipe(json.loads(json.dumps(recipe.resolved())), where="here")
    assert (again.optim.lr, again.seed, again.name) == (rate, seed, name)


@pytest.mark.parametrize(
    ("name", "text"), [("x.toml", "a = "), ("x.toml", "a = 1\na = 2"), ("x.json", "{"), ("x.toml", None)]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        load_recipe(tmp_path / name)


def test_a_file_that_is_no_text_or_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.json").write_text("[1]")
    for name in ("x.toml", "x.json"):
        with pytest.raises(ConfigError, match=name):
            load_recipe(tmp_path / name)


def test_secrets_of_a_url_are_used_and_not_recorded() -> None:
    """The resolved recipe goes into exports, checkpoints and MLflow."""
    url, shown = "https://user:secret@host/set?token=secret", "https://host/set"
    tables = {"name": "x", "modalities": {}, "objective": {"kind": "all_pairs"}}
    single = parse_recipe({**tables, "data": {"path": url, "overlays": [url, "a folder#1"]}}, where="test")
    mixed = parse_recipe({**tables, "data": {"mix": [{"path": url, "overlays": [url]}]}}, where="test")
    assert (single.data.path, mixed.data.mix[0].path, mixed.data.mix[0].overlays) == (url, url, (url,))
    assert single.resolved()["data"]["path"] == shown
    assert single.resolved()["data"]["overlays"] == [shown, "a folder#1"]
    assert "secret" not in json.dumps(mixed.resolved())
    tuned = FinetuneRecipe(
        name="x", model="m", data=url, overlays=(url,), target="y", rows=(RowConfig(strategy="mean"),)
    )
    assert tuned.data == url and "secret" not in tuned.model_dump_json()


def test_a_recipe_cannot_be_changed(path: Path) -> None:
    recipe = load_recipe(path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    assert isinstance(recipe, Recipe)
