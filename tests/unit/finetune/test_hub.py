"""Models up to a hub and down again, bitwise; what is damaged, forged or no model is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from finetune.hub import HubModel, download
from finetune.loading import Foundation, PropertyModel, load
from finetune.registry import resolve
from finetune.registry.contents import FILES
from shards.errors import CheckpointError, ConfigError, RegistryError
from shards.reader import Dataset
from shards.sealed import SEAL, sealing, verify
from tests.hub_server import Hub, hub
from tests.unit.finetune.test_streaming import written

REPO = "lab/toy"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        # what the library makes of the variable when it is imported
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
        yield served


@pytest.fixture
def model(export_folder: Path, tmp_path: Path) -> PropertyModel:
    return written(export_folder, tmp_path / "predictor")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_an_export_is_read_by_load_and_by_from_pretrained(
    foundation: Foundation, model: PropertyModel, toy: Dataset, tmp_path: Path
) -> None:
    for name, given in (("f", foundation), ("p", model)):
        given.save_pretrained(tmp_path / name)
        verify(tmp_path / name)
        assert {"model.safetensors", "config.json", "README.md"} <= {p.name for p in (tmp_path / name).iterdir()}
    again, hubbed = load(str(tmp_path / "f")), HubModel.from_pretrained(tmp_path / "f")
    assert isinstance(again, Foundation) and same_weights(again.model, foundation.model)
    assert same_weights(hubbed.network, foundation.model)
    np.testing.assert_array_equal(again.embed(list(toy), "a"), foundation.embed(list(toy), "a"))
    predictor = PropertyModel.from_pretrained(str(tmp_path / "p"))
    np.testing.assert_array_equal(predictor.predict(list(toy)).values, model.predict(list(toy)).values)
    with pytest.raises(ConfigError, match="no Foundation"):
        Foundation.from_pretrained(str(tmp_path / "p"))


def test_config_and_card_say_what_the_model_is(model: PropertyModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "p")
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert config["targets"] == ["gap_ev"] and config["modalities"] == ["a", "b"] and config["parameters"] > 0
    card = huggingface_hub.ModelCard.load(tmp_path / "p" / "README.md")
    assert card.data.library_name == "matloom" and "# gap_ev" in card.text


def test_changed_weights_are_saved_as_they_are(export_folder: Path, tmp_path: Path) -> None:
    changed = HubModel(str(export_folder))
    with torch.no_grad():
        next(changed.network.parameters()).add_(1.0)
    changed.save_pretrained(tmp_path / "changed")
    again = load(str(tmp_path / "changed"))
    assert isinstance(again, Foundation) and same_weights(again.model, changed.network)


def test_up_and_down_again_is_bitwise(server: Hub, model: PropertyModel, foundation: Foundation) -> None:
    url = model.push_to_hub(REPO, token="hf_x")
    foundation.push_to_hub("lab/foundation", token="hf_x")
    assert server.url in str(url) and "README.md" in server.commits[REPO][-1][1]
    for uri in (f"hf://{REPO}", REPO, f"{REPO}@main", f"hf://{REPO}@{server.commits[REPO][-1][0]}"):
        found = load(str(download(uri)))
        assert isinstance(found, PropertyModel) and same_weights(found.predictor, model.predictor)
        assert found.info == model.info
    assert same_weights(HubModel.from_pretrained("lab/foundation").network, foundation.model)


def test_only_sealed_files_are_fetched(server: Hub, model: PropertyModel) -> None:
    model.push_to_hub(REPO, token="hf_x")
    server.commit(REPO, {"pytorch_model.bin": b"pickle", "modeling.py": b"import os", ".gitattributes": b"*"})
    folder = download(REPO)
    assert not {"pytorch_model.bin", "modeling.py", ".gitattributes"} & {path.name for path in folder.iterdir()}
    assert not {"pytorch_model.bin", "modeling.py", ".gitattributes"} & set(server.fetched)


def test_a_damaged_file_is_refused_by_name(server: Hub, model: PropertyModel) -> None:
    model.push_to_hub(REPO, token="hf_x")
    for name, data in list(server.commits[REPO][-1][1].items()):
        if name != SEAL:
            server.commit(REPO, {name: data[:-1] + bytes([data[-1] ^ 1])})
            with pytest.raises(CheckpointError, match=rf"damaged\n.*{name}"):
                download(REPO)
            server.commit(REPO, {name: data})
    download(REPO)


@pytest.mark.parametrize("name", ["weights.bin", "run.py", "../../escape.json", "a/b.json", "model.pkl", "extra.json"])
def test_a_seal_that_names_anything_else_fetches_nothing(name: str, server: Hub, model: PropertyModel) -> None:
    model.push_to_hub(REPO, token="hf_x")
    seal = json.loads(server.commits[REPO][-1][1][SEAL])
    seal["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    server.commit(REPO, {SEAL: json.dumps(seal).encode()})
    with pytest.raises(CheckpointError, match="the model holds"):
        download(REPO)
    assert set(server.fetched) == {SEAL}


def test_what_is_not_there_is_said(server: Hub, model: PropertyModel) -> None:
    model.push_to_hub(REPO, token="hf_x")
    server.commit("lab/other", {"config.json": b"{}"})
    for uri, message in (
        ("lab/none", "no such model"),
        (f"{REPO}@v9", "no such revision"),
        ("lab/other", "no model of matloom"),
        ("hf://lab", "names no model"),
        ("hf://../../etc/passwd", "names no model"),
    ):
        with pytest.raises(RegistryError, match=message):
            download(uri)


def test_without_a_connection_the_cache_is_taken(
    server: Hub, model: PropertyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.push_to_hub(REPO, token="hf_x")
    folder = download(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    # nobody listens there, and the library would ask six times
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("it is asked again"))
    assert download(REPO) == folder
    with pytest.raises(RegistryError, match="cannot be reached"):
        download("lab/none")


@pytest.mark.parametrize("uri", ["runs/dem", "./dem", "../dem", "~/dem", "missing/best.safetensors", "runs/../dem"])
def test_a_path_that_is_misspelt_is_looked_for_on_no_hub(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    monkeypatch.setattr("finetune.hub.download", lambda uri: pytest.fail("the hub is asked"))
    with pytest.raises(RegistryError, match="there is no model folder") as error:
        resolve(uri)
    assert ("did you mean 'demo'" in str(error.value)) == (uri == "runs/dem") and "hf://" in str(error.value)


def test_what_has_no_folder_here_is_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr("finetune.hub.download", lambda uri: asked.append(uri) or tmp_path)
    for uri in ("lab/toy", "lab/toy@v1", "hf://lab/toy"):
        resolve(uri)
    (tmp_path / "lab").mkdir()
    resolve("hf://lab/toy")
    assert asked == ["lab/toy", "lab/toy@v1", "hf://lab/toy", "hf://lab/toy"]


def test_a_card_is_no_markup(export_folder: Path, tmp_path: Path) -> None:
    with sealing(tmp_path / "hostile") as stage:
        shutil.copytree(export_folder, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SEAL))
        (stage / "MODEL_CARD.md").write_bytes(b"# x\n<script>alert(1)</script>\x1b[2J\xff")
        (stage / "notes.txt").write_text("mine")
    HubModel(str(tmp_path / "hostile")).save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "&lt;script>" in text and "<script" not in text and "\x1b" not in text
    # what no export has does not go out
    assert {path.name for path in (tmp_path / "out").iterdir()} <= FILES
