"""The registry on a real store: look-ups, conditions, promotions, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.loading import Foundation, load
from finetune.registry import resolve
from finetune.registry.contents import check_contents
from finetune.registry.entries import entries, find, search
from finetune.registry.promotions import promote_version, promoted, rollback
from pretrain.tracking import SEAL_TAG, Tracker, tracking_uri
from shards.errors import CheckpointError, ConfigError, MatloomError, RegistryError
from shards.sealed import SEAL, publish, sealing

CONTEST = {"data": "toy", "data_sha256": "ab" * 32, "split": "s", "modalities": "a,b,c", "metric": "mrr"}


def register(export: Path, out: Path, name: str, score: float, **contest: str) -> str:
    """Register a copy of an export through the tracker, as training does."""
    shutil.copytree(export, out / "best")
    with Tracker(out, "experiment", "run", {"a": 1}) as tracker:
        uri = tracker.register(out / "best", name, score=score, parameters={"step": 7}, contest={**CONTEST, **contest})
    assert uri is not None
    return uri


@pytest.fixture(scope="module")
def store(export_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with three versions of one model: 1 champion at first, 2 better, 3 of another contest."""
    folder = tmp_path_factory.mktemp("registry")
    before, here = os.environ.get("MLFLOW_TRACKING_URI"), Path.cwd()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.chdir(folder)
    for i, (score, split) in enumerate([(0.5, "s"), (0.7, "s"), (0.9, "other")]):
        register(export_folder, folder / f"run{i}", "toy", score, split=split)
    yield folder
    os.chdir(here)
    if before is None:
        del os.environ["MLFLOW_TRACKING_URI"]
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def test_every_kind_of_uri_loads_the_same_model(store: Path, export_folder: Path) -> None:
    entry = find("models:/toy/2")
    assert entry is not None and entry.model_id.startswith("m-")
    expected = load(str(export_folder))
    assert isinstance(expected, Foundation)
    for uri in ("models:/toy@champion", "models:/toy/2", "models:/toy/latest", f"models:/{entry.model_id}"):
        model = load(uri)
        assert isinstance(model, Foundation) and model.modalities == expected.modalities
        for name, value in expected.model.state_dict().items():
            assert value.equal(model.model.state_dict()[name])


def test_the_better_of_a_contest_is_champion_and_the_history_says_so(store: Path) -> None:
    (first, second) = promoted("toy")[:2]
    assert (first.version, first.previous, second.version, second.previous) == ("1", "", "2", "1")
    assert second.metric == "mrr = 0.7" and second.who and second.time_ms >= first.time_ms


def test_versions_are_found_by_metric_tag_alias_modality_and_digest(store: Path) -> None:
    found = entries("toy")
    assert [entry.version for entry in found] == ["3", "2", "1"]
    assert found[0].parameters["step"] == "7" and found[0].metrics == {"score": 0.9}
    assert len(found[0].tags[SEAL_TAG]) == 64 and len(found[0].tags["git_commit"]) == 40

    def versions(**conditions: Any) -> list[str]:
        return [entry.version for entry in search(found, **conditions)]

    assert versions(metrics=["score>=0.7"]) == ["3", "2"] and versions(metrics=["score<0.6"]) == ["1"]
    assert versions(metrics=["other>0"]) == []
    assert versions(tags=["split=s"]) == ["2", "1"] and versions(alias="champion") == ["2"]
    assert versions(modalities=["c", "a"]) == ["3", "2", "1"] and versions(modalities=["z"]) == []
    assert versions(data="abab") == ["3", "2", "1"] and versions(data="ac") == []
    with pytest.raises(ConfigError, match="no condition on a metric"):
        versions(metrics=["score"])


def test_what_is_not_there_is_named(store: Path) -> None:
    with pytest.raises(RegistryError, match=r"aliases \['champion'\] and the versions \[1, 2, 3\]"):
        resolve("models:/toy@production")
    with pytest.raises(RegistryError, match="toy"):
        resolve("models:/tox/1")
    with pytest.raises(RegistryError, match="no metric 'mae'"):
        promote_version("toy", "1", why="x", metric="mae", alias="unused")


def test_promotion_and_the_way_back(store: Path) -> None:
    alias = "production"
    with pytest.raises(RegistryError, match="has never pointed to another version"):
        rollback("toy", alias=alias, why="x")
    for version in ("1", "2", "3"):
        promote_version("toy", version, alias=alias, why=f"try {version}", metric="score")
    assert rollback("toy", alias=alias, why="3 is bad").version == "2"
    assert rollback("toy", alias=alias, why="2 too").version == "1"
    found = find(f"models:/toy@{alias}")
    assert found is not None and found.version == "1"
    assert [record.version for record in promoted("toy", alias)] == ["1", "2", "3", "2", "1"]
    with pytest.raises(RegistryError, match="has never pointed to another version"):
        rollback("toy", alias=alias, why="further")


def compete(uri: str, version: str, results: Any) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        promote_version("toy", version, alias="contested", why=f"by {version}", after=0)
        results.put(("won", version))
    except RegistryError as error:
        results.put(("lost", str(error)))


def test_of_promotions_at_the_same_moment_one_wins(store: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = [(tracking_uri(), version, results) for version in ("1", "2", "3")]
    processes = [context.Process(target=compete, args=one) for one in arguments]
    for process in processes:
        process.start()
    told = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    (winner,) = [version for outcome, version in told if outcome == "won"]
    assert all(f"to version {winner}" in text for outcome, text in told if outcome == "lost")
    found = find("models:/toy@contested")
    assert found is not None and found.version == winner and len(promoted("toy", "contested")) == 1


def test_a_model_whose_files_and_seal_were_both_changed_is_refused(
    store: Path, export_folder: Path, tmp_path: Path
) -> None:
    """A seal alone proves that a folder is whole, not that it is the one that was registered."""
    register(export_folder, tmp_path / "run", "swapped", 0.5)
    folder = resolve("models:/swapped/1")
    stage = folder.parent / f".{folder.name}.partial"
    shutil.copytree(folder, stage)
    (stage / SEAL).unlink()
    card = stage / "MODEL_CARD.md"
    card.write_text(card.read_text() + "\nchanged\n")
    publish(folder)
    check_contents(folder)
    with pytest.raises(CheckpointError, match="not the model that was registered"):
        resolve("models:/swapped/1")
    with pytest.raises(CheckpointError, match="not the model that was registered"):
        promote_version("swapped", "1", why="x", alias="unused")


def tampered(folder: Path, kind: str, rng: np.random.Generator) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: rng.integers(len(data))])
    elif kind == "remove":
        path.unlink()
    elif kind == "append":
        path.write_bytes(data + b" ")
    elif kind == "rename":
        path.rename(path.with_name(f"x{path.name}"))
    elif kind == "add":
        (folder / f"extra{rng.integers(9)}.json").write_text("{}")
    elif kind == "pickle":
        (folder / "model.pkl").write_bytes(b"\x80\x04.")
    elif kind == "link":
        target = folder.parent / path.name
        path.rename(target)
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(folder / "pipe.json")
    else:
        other = files[(files.index(path) + 1) % len(files)]
        path.write_bytes(other.read_bytes())


KINDS = ("flip", "truncate", "remove", "append", "rename", "add", "pickle", "link", "pipe", "swap")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_tampered_artifacts_are_refused(kind: str, export_folder: Path, tmp_path: Path) -> None:
    """Ten of each kind."""
    for i in range(10):
        folder = shutil.copytree(export_folder, tmp_path / str(i) / "model")
        seal = check_contents(folder)
        tampered(folder, kind, np.random.default_rng([i, KINDS.index(kind)]))
        with pytest.raises(MatloomError):
            check_contents(folder, seal=seal)


CANARY = "import pathlib; pathlib.Path('CANARY').touch()"
HOSTILE: dict[str, dict[str, str]] = {
    "card": {"MODEL_CARD.md": "<script>alert(1)</script>\x1b[2J"},
    "no recipe": {"recipe.json": "[]"},
    "recipe of another kind": {"recipe.json": json.dumps({"name": CANARY})},
    "deep": {"recipe.json": "[" * 100_000},
    "unknown encoder": {"recipe.json": '{"modalities": {"a": {"encoder": {"kind": "os.system"}}}}'},
    "huge encoder": {"recipe.json": '{"modalities": {"a": {"encoder": {"kind": "vector", "dim": 1000000000000}}}}'},
    "not utf-8": {"recipe.json": "\udcff"},
    "no schema": {"schema.json": "null"},
    "schema of code": {"schema.json": json.dumps({"a": {"feature": CANARY}})},
    "schema with a path": {"schema.json": '{"a": {"name": "../../a", "kind": "vector", "fields": {}}}'},
    "fitted of code": {"fitted.json": json.dumps([CANARY])},
    "fitted with a path": {"fitted.json": '{"a": {"weights": "/etc/passwd"}}'},
    "metrics": {"metrics.json": "NaN"},
    "weights are a pickle": {"model.safetensors": "\x80\x04cposix\nsystem\n(S'touch CANARY'\ntR."},
    "weights with a huge header": {"model.safetensors": "\xff" * 16},
    "weights empty": {"model.safetensors": ""},
    "predictor of code": {"predictor.json": json.dumps({"targets": CANARY})},
    "predictor": {"predictor.json": '{"targets": ["x"], "task": "regression", "modalities": ["../a"]}'},
    "pickle": {"model.pkl": "\x80\x04cposix\nsystem\n(S'touch CANARY'\ntR."},
    "flavour": {"MLmodel": "flavors:\n  python_function:\n    loader_module: os\n"},
    "torch": {"data/model.pth": "PK"},
    "bin": {"pytorch_model.bin": "PK"},
    "script": {"modeling.py": CANARY},
    "conda": {"conda.yaml": "dependencies: [evil]"},
    "library": {"kernel.so": "\x7fELF"},
    "deep folder": {"a/b/c/d/e.json": "{}"},
    "notebook": {"x.ipynb": "{}"},
    "config of code": {"config.json": json.dumps({"auto_map": {"AutoModel": "modeling.Evil"}})},
    "joblib": {"model.joblib": CANARY},
    "shell": {"run.sh": "touch CANARY"},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_thirty_hostile_entries_execute_and_write_nothing(
    kind: str, store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed properly, as somebody would who may write to the registry."""
    assert len(HOSTILE) == 30
    with sealing(tmp_path / "model") as stage:
        shutil.copytree(export_folder, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SEAL))
        for name, text in HOSTILE[kind].items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(text.encode("utf-8", "surrogateescape") if "\\udcff" not in text else b"\xff")
    name = f"hostile-{list(HOSTILE).index(kind)}"
    with Tracker(tmp_path, "experiment", name, {}) as tracker:
        uri = tracker.register(tmp_path / "model", name, score=1.0, parameters={}, contest=CONTEST)
    assert uri is not None
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    harmless = kind in ("card", "config of code")
    try:
        load(uri)
    except MatloomError:
        assert not harmless
    else:
        assert harmless
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not list(empty.iterdir()) and not (store / "CANARY").exists()
