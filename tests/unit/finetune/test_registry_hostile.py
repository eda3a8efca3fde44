"""What a registry may claim, and what is made of it: tags that are no digests, rewritten seals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from finetune.registry import cache, resolve, uris
from finetune.registry.contents import check_contents
from finetune.registry.entries import find
from finetune.registry.promotions import promote_version, promoted, rollback
from shards.errors import CheckpointError, RegistryError
from shards.sealed import SEAL, publish, sha256
from tests.unit.finetune.test_registry import register, store

__all__ = ["store"]


def in_cache(export: Path, root: Path) -> Path:
    folder = root / "cache" / "models" / sha256(export / SEAL)
    shutil.copytree(export, folder)
    return folder


def test_a_rewritten_seal_is_refused_by_the_id_of_the_model(store: Path, export_folder: Path, tmp_path: Path) -> None:
    register(export_folder, tmp_path / "run", "by-id", 0.5)
    entry, folder = find("models:/by-id/1"), resolve("models:/by-id/1")
    assert entry is not None
    stage = folder.parent / f".{folder.name}.partial"
    shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(SEAL))
    (stage / "MODEL_CARD.md").write_text("changed")
    publish(folder)
    with pytest.raises(CheckpointError, match="not the model that was registered"):
        resolve(f"models:/{entry.model_id}")


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
