"""What a registry may claim, and what is made of it: tags that are no digests, rewritten seals."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from finetune.files import EXPERTS
from finetune.hub import HubModel
from finetune.loading import load
from finetune.registry import cache, contents, reachable, resolve, uris
from finetune.registry.contents import check_contents
from finetune.registry.entries import entries, find
from finetune.registry.promotions import promote_version, promoted, rollback
from pretrain.export_files import WEIGHTS
from shards import sealed
from shards.errors import CheckpointError, MatloomError, RegistryError
from shards.sealed import SEAL, publish, sealing, sha256
from tests.unit.finetune.test_registry import register, store
from tests.unit.finetune.test_streaming import written

__all__ = ["store"]


def in_cache(export: Path, root: Path) -> Path:
    folder = root / "cache" / "models" / sha256(export / SEAL)
    shutil.copytree(export, folder)
    return folder


def test_a_rewritten_seal_is_refused_by_the_id_of_the_model(store: Path, export_folder: Path, tmp_path: Path) -> None:
    register(export_folder, tmp_path / "run", "by-id", 0.5)
    entry = find("models:/by-id/1")
    assert entry is not None
    rewrite(resolve("models:/by-id/1"))
    with pytest.raises(CheckpointError, match="not the model that was registered"):
        resolve(f"models:/{entry.model_id}")


def rewrite(folder: Path) -> None:
    """Change a card and seal it again, as somebody may who can write to the disk of the store."""
    stage = folder.parent / f".{folder.name}.partial"
    shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(SEAL))
    (stage / "MODEL_CARD.md").write_text("changed")
    publish(folder)


def test_a_rewritten_seal_is_refused_by_the_run_that_registered_it(
    store: Path, export_folder: Path, tmp_path: Path
) -> None:
    register(export_folder, tmp_path / "run", "by-run", 0.5)
    entry = find("models:/by-run/1")
    assert entry is not None
    uri = f"runs:/{entry.run_id}/by-run"
    folder = resolve(uri)
    assert folder == resolve("models:/by-run/1")
    rewrite(folder)
    with pytest.raises(CheckpointError, match="not the model that was registered"):
        resolve(uri)


def test_files_that_a_run_has_logged_are_read_by_their_own_seal(
    store: Path, export_folder: Path, tmp_path: Path
) -> None:
    register(export_folder, tmp_path / "run", "logged", 0.5)
    entry, client = find("models:/logged/1"), MlflowClient()
    assert entry is not None
    client.log_artifacts(entry.run_id, str(export_folder), "files/model")
    folder = resolve(f"runs:/{entry.run_id}/files/model")
    assert check_contents(folder) == sha256(export_folder / SEAL) and "files" in folder.parts
    for path in ("", "files/../../..", "..", "../by-run", "nothing"):
        with pytest.raises(MatloomError, match=r"names no folder of a run|no folder of a model"):
            resolve(f"runs:/{entry.run_id}/{path}")


def test_an_alias_that_moves_meanwhile_is_no_forgery(
    store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that was looked up is what is fetched."""
    other = shutil.copytree(export_folder, tmp_path / "other")
    rewrite(other)
    register(export_folder, tmp_path / "first", "moving", 0.5)
    register(other, tmp_path / "second", "moving", 0.4)
    look_up = uris.find

    def moved(uri: str) -> object:
        found = look_up(uri)
        MlflowClient().set_registered_model_alias("moving", "champion", "2")
        return found

    monkeypatch.setattr(uris, "find", moved)
    assert sha256(resolve("models:/moving@champion") / SEAL) == sha256(export_folder / SEAL)
    assert sha256(resolve("models:/moving@champion") / SEAL) == sha256(other / SEAL)


def test_the_files_of_a_model_are_those_that_are_written(export_folder: Path, tmp_path: Path) -> None:
    written(export_folder, tmp_path / "predictor").save_pretrained(tmp_path / "a")
    HubModel(str(export_folder)).save_pretrained(tmp_path / "b")
    found = {path.name for folder in ("a", "b", "predictor") for path in (tmp_path / folder).iterdir()}
    # a mixture's experts alone are missing here
    assert found | {EXPERTS} == contents.FILES
    assert contents.WEIGHTS == WEIGHTS


@pytest.mark.parametrize("name", ["extra.json", "calibration.json", "NOTES.md", "more.safetensors", "a/recipe.json"])
def test_a_sealed_file_that_no_export_has_is_refused_by_name(name: str, export_folder: Path, tmp_path: Path) -> None:
    with sealing(tmp_path / "model") as stage:
        shutil.copytree(export_folder, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SEAL))
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text("{}")
    with pytest.raises(CheckpointError, match=name.partition("/")[0]):
        check_contents(tmp_path / "model")


def test_loading_hashes_every_file_once_and_refuses_a_damaged_one(
    store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(export_folder, tmp_path / "run", "once", 0.5)
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "sha256", counted)
        load("models:/once/1")
    assert sorted(hashed) == sorted(path.name for path in export_folder.iterdir() if path.name != SEAL)
    card = resolve("models:/once/1") / "MODEL_CARD.md"
    card.write_text(card.read_text().swapcase())
    with pytest.raises(CheckpointError, match="damaged"):
        load("models:/once/1")


def test_a_copy_in_the_cache_that_was_damaged_is_fetched_anew_when_it_is_loaded(
    store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(uris, "is_local", lambda: False)
    weights = load("models:/toy/1").folder / WEIGHTS
    assert weights.is_relative_to(tmp_path / "cache")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert load("models:/toy/1").folder / WEIGHTS == weights and weights.read_bytes() == data


@pytest.mark.parametrize(
    ("uri", "what", "do"),
    [
        ("postgresql://user:secret@host/db", "no driver for a store of the kind 'postgresql'", "postgresql"),
        ("mssql+nothing://user:secret@host/db", "no driver for a store of the kind 'mssql'", "MLflow server"),
        ("postgres://user:secret@host/db", "cannot be read", "MLFLOW_TRACKING_URI"),
        ("nonsense://user:secret@host", "cannot be read", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_store_without_a_driver_is_said_without_its_password(
    uri: str, what: str, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what SQLAlchemy tries first for PostgreSQL
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError) as error:
        entries()
    assert what in str(error.value) and error.value.do is not None and do in error.value.do
    assert "secret" not in str(error.value)
    assert "secret" not in "".join(reachable()) and reachable()[1]


def test_a_seal_that_overruns_the_parser_is_damaged(export_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(export_folder, tmp_path / "model")
    (folder / SEAL).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="seal is damaged"):
        check_contents(folder)


def test_a_tag_that_is_no_digest_removes_nothing(
    export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    cache.remember("models:/toy/1", export_folder)
    before = sorted(tmp_path.rglob("*"))
    assert cache.cached("uris") is None and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("uri", ["models:/toy/1", "models:/m-0123", "runs:/ab/model"])
def test_every_kind_of_uri_is_known_while_the_server_is_away(
    uri: str, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = in_cache(export_folder, tmp_path)
    cache.remember(uri, export_folder)
    assert resolve(uri) == folder


def test_a_version_that_was_deleted_is_not_taken_from_the_cache(
    store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that answers has said no: whoever withdrew a model meant it."""
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path / "cache"))
    register(export_folder, tmp_path / "run", "withdrawn", 0.5)
    in_cache(export_folder, tmp_path)
    cache.remember("models:/withdrawn/1", export_folder)
    monkeypatch.setattr(uris, "is_local", lambda: False)
    MlflowClient().delete_model_version("withdrawn", "1")
    with pytest.raises(RegistryError, match="has no 'models:/withdrawn/1'"):
        resolve("models:/withdrawn/1")


def test_a_reason_that_sounds_like_a_rollback_is_none(store: Path) -> None:
    for version, why in (("1", "a"), ("2", "b"), ("3", "rollback of the data, new model")):
        promote_version("toy", version, alias="word", why=why)
    assert rollback("toy", alias="word", why="no good").version == "2"
    assert [record.back for record in promoted("toy", "word")] == [False, False, False, True]


def test_a_logged_model_cannot_be_promoted_by_its_id() -> None:
    with pytest.raises(RegistryError, match="has no versions"):
        promote_version("m-0123", "1", why="x")
