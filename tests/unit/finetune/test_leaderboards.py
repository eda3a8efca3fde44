"""Leaderboard files: round trip, exactly the test set, the score is our own; and each rule of the formats can bite."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml

from finetune.leaderboards import discovery, jarvis, matbench
from finetune.leaderboards.entries import labels_of, mean_absolute_error, predict_ids
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from tests.unit.finetune.evaluations.linear import LABEL, build_linear, linear_model

NAME = "AI-SinglePropertyPrediction-formation_energy_peratom-dft_3d-test-mae"
TASK = jarvis.Task.parse(NAME)
META = {
    "model_name": "matloom", "project_url": "https://example.org/matloom", "team_name": "weavers",
    "author_email": "weaver@example.org", "git_url": "https://example.org/matloom.git", "time_taken_seconds": "1",
    "software_used": "matloom", "hardware_used": "one core",
}  # fmt: skip
CARD: dict[str, Any] = {
    "model_name": "Matloom", "model_key": "matloom-1.0", "model_version": "1.0",
    "dates": {"benchmark_added": "2026-11-26", "paper_published": None},
    "authors": [{"name": "A. Weaver", "email": "weaver@example.org"}, {"name": "B. Loom"}],
    "license": {"code": "Apache-2.0", "checkpoint": "Apache-2.0"},
    "environment": {"dependencies": ["torch==2.8.0"], "python_version": "3.11"},
    "openness": "OSOD", "architecture_types": ["gnn"], "train_task": "RS2RE", "test_task": "IS2RE",
    "training_sets": ["MP 2022"],
}  # fmt: skip
# `required` of tests/model-schema.yml in janosh/matbench-discovery
SCHEMA_REQUIRED = {
    "authors", "architecture_types", "environment", "checkpoint_url", "dates", "doi", "license", "lifecycle",
    "model_key", "model_name", "model_params", "model_version", "openness", "paper", "pr_url", "repo", "targets",
    "test_task", "train_task", "training_sets",
}  # fmt: skip
URL = {"type": ["string", "null"], "pattern": "^https?://"}
PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name"],
    "properties": {key: {"type": "string"} for key in ("name", "affiliation", "email")}
    | {key: {"type": "string", "pattern": "^https?://"} for key in ("url", "orcid", "github")}
    | {"corresponding": {"type": "boolean"}},
}  # fmt: skip
# what that file wants of the keys that are written here, at its commit e1e30eecdff176b8ed20eaa527f1a6daa87a30b6
SCHEMA: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": sorted(SCHEMA_REQUIRED),
    "properties": {
        "model_name": {"type": "string"}, "model_key": {"pattern": "^[a-z0-9]+(?:[.-][a-z0-9]+)*$"},
        "model_version": {"type": ["string", "null"]},
        "dates": {"required": ["benchmark_added", "paper_published"], "additionalProperties": {
            "type": ["string", "null"], "pattern": r"^\d{4}-\d\d-\d\d$"}},
        "lifecycle": {"enum": ["active", "superseded", "deprecated", "aborted"]}, "superseded_by": {"type": "string"},
        "authors": {"type": "array", "minItems": 1, "items": PERSON}, "trained_by": {"type": "array", "items": PERSON},
        **dict.fromkeys(("repo", "doi", "paper", "docs", "pypi", "pr_url", "checkpoint_url"), URL),
        "license": {"required": ["code", "checkpoint"], "additionalProperties": False, "properties": {
            "code": {"type": "string"}, "checkpoint": {"type": "string"}, "code_url": URL, "checkpoint_url": URL}},
        "environment": {"required": ["dependencies", "python_version"], "additionalProperties": False, "properties": {
            "dependencies": {"type": "array", "minItems": 1, "items": {"type": "string"}},
            "python_version": {"type": "string", "pattern": r"^[0-9]+\.[0-9]+$"}}},
        "openness": {"enum": ["OSOD", "OSCD", "CSOD", "CSCD"]},
        "architecture_types": {"type": "array", "minItems": 1, "uniqueItems": True},
        "train_task": {"enum": ["RP2RE", "RS2RE", "S2E", "S2RE", "S2EF", "S2EFS", "S2EFSM"]},
        "test_task": {"enum": ["IP2E", "IS2E", "IS2RE", "IS2RE-SR"]}, "targets": {"const": "E"},
        "training_sets": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}},
        "model_params": {"type": "integer", "minimum": 0}, "n_estimators": {"type": "integer", "minimum": 2},
        "size": {"type": "string"}, "fine_tune": {"type": "boolean"},
        "notes": {"type": "object", "propertyNames": {"pattern": "^[a-z0-9]+(?:_[a-z0-9]+)*$"}},
        "metrics": {"additionalProperties": False, "properties": {"discovery": {
            "additionalProperties": False, "properties": {"pred_file": {
                "required": ["name"], "additionalProperties": False, "properties": {
                    "name": {"type": "string", "minLength": 1}, "url": {"type": "string"}}}}}}},
    },
}  # fmt: skip
INFO = {"authors": "A. Weaver", "algorithm": "matloom", "algorithm_long": "", "bibtex_refs": "", "notes": "",
        "requirements": {"python": ["matloom"]}}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_linear(tmp_path_factory.mktemp("board") / "set", count=60)


@pytest.fixture(scope="module")
def ids(dataset: Dataset) -> dict[str, list[str]]:
    parts = dataset.manifest.splits["chemical_system"].ids
    return {part: sorted(parts[part]) for part in ("train", "val", "test")}


@pytest.fixture(scope="module")
def predictions(dataset: Dataset, ids: dict[str, list[str]]) -> dict[str, float]:
    return predict_ids(linear_model(dataset, (("left",), ("junk",))), dataset, ids["test"])


@pytest.fixture(scope="module")
def targets(dataset: Dataset, ids: dict[str, list[str]]) -> dict[str, float]:
    return labels_of(dataset, LABEL, ids["test"])


@pytest.fixture
def benchmark_file(tmp_path: Path, dataset: Dataset, ids: dict[str, list[str]]) -> Path:
    tables = {part: labels_of(dataset, LABEL, names) for part, names in ids.items()}
    path = tmp_path / "dft_3d_formation_energy_peratom.json.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dft_3d_formation_energy_peratom.json", json.dumps(tables))
    return path


def test_predictions_by_id_are_those_of_the_samples(dataset: Dataset, predictions: dict[str, float]) -> None:
    model = linear_model(dataset, (("left",), ("junk",)))
    for name in list(predictions)[:3]:
        sample = dataset[dataset.position(name)]
        assert predictions[name] == pytest.approx(float(model.estimate([sample]).value[0, 0]), rel=1e-5)
    with pytest.raises(DataError, match="no sample 'nobody'"):
        predict_ids(model, dataset, ["nobody"])


def test_a_jarvis_contribution_is_read_back_as_the_leaderboard_does(
    tmp_path: Path, benchmark_file: Path, predictions: dict[str, float], targets: dict[str, float]
) -> None:
    parts = jarvis.read_benchmark(benchmark_file, TASK)
    path = jarvis.write_contribution(tmp_path / "ours", TASK, predictions, META)
    assert path.name == f"{NAME}.csv.zip" and {"metadata.json"} < {p.name for p in path.parent.iterdir()}
    # what jarvis_leaderboard/rebuild.py does: pandas reads the zip, ids are merged, sklearn's error
    frame = pd.read_csv(path, float_precision="round_trip")
    assert list(frame.columns) == ["id", "prediction"] and len(frame) == len(targets)
    merged = frame.assign(actual=frame["id"].map(parts["test"]))
    theirs = float((merged["actual"] - merged["prediction"]).abs().mean())
    ours = jarvis.validate_contribution(path.parent, TASK, parts)
    assert ours == pytest.approx(theirs, rel=1e-12) == mean_absolute_error(predictions, targets) and ours > 0.1
    assert dict(zip(frame["id"], frame["prediction"], strict=True)) == predictions
    again = jarvis.write_contribution(tmp_path / "again", TASK, predictions, META)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: dict(list(p.items())[1:]), "1 ids are not in the file"),
        (lambda p: {**p, "stranger": 1.0}, "not in the test set"),
        (lambda p: {**p, next(iter(p)): float("nan")}, "not finite"),
    ],
)
def test_a_jarvis_contribution_must_hold_exactly_the_test_set(
    tmp_path: Path, benchmark_file: Path, predictions: dict[str, float], change: Any, message: str
) -> None:
    parts = jarvis.read_benchmark(benchmark_file, TASK)
    jarvis.write_contribution(tmp_path / "bad", TASK, change(predictions), META)
    with pytest.raises(DataError, match=message):
        jarvis.validate_contribution(tmp_path / "bad", TASK, parts)


def test_jarvis_names_benchmarks_and_metadata_are_checked(
    tmp_path: Path, benchmark_file: Path, predictions: dict[str, float]
) -> None:
    assert str(TASK) == NAME and jarvis.Task.parse(f"{NAME}.csv.zip") == TASK
    for wrong in ("AI-formation_energy-dft_3d-test-mae", NAME.replace("mae", "acc"), NAME.replace("-test", "")):
        with pytest.raises(ConfigError):
            jarvis.Task.parse(wrong)
    with pytest.raises(DataError, match="no benchmark of the task"):
        jarvis.read_benchmark(benchmark_file, jarvis.Task.parse(NAME.replace("dft_3d", "dft_2d")))
    parts = jarvis.read_benchmark(benchmark_file, TASK)
    # what check_metadata_info_exists of jarvis_leaderboard 2024.10.30 looks for, and get_metric_value reads
    for change, message in (
        *(({name: ""}, name) for name in META), ({"date_submitted": ""}, "date_submitted"),
        ({"author_email": "nobody"}, "address"),
    ):  # fmt: skip
        jarvis.write_contribution(tmp_path / "poor", TASK, predictions, {**META, **change})
        with pytest.raises(DataError, match=message):
            jarvis.validate_contribution(tmp_path / "poor", TASK, parts)


def test_an_id_in_two_parts_of_a_benchmark_stays_in_the_one_that_is_predicted(
    tmp_path: Path, dataset: Dataset, ids: dict[str, list[str]]
) -> None:
    # as in dft_3d_formation_energy_peratom: two of the test ids are among the training ids
    both = ids["test"][:2]
    doubled = {"train": [*ids["train"], *both], "val": [*ids["val"], both[0]], "test": ids["test"]}
    path = tmp_path / "dft_3d_formation_energy_peratom.json.zip"
    with zipfile.ZipFile(path, "w") as archive:
        tables = {part: {name: str(value) for name, value in labels_of(dataset, LABEL, names).items()}
                  for part, names in doubled.items()}  # fmt: skip
        archive.writestr("dft_3d_formation_energy_peratom.json", json.dumps(tables))
    said: list[str] = []
    parts = jarvis.read_benchmark(path, TASK, said.append)
    assert {part: sorted(values) for part, values in parts.items()} == ids and list(parts) == ["train", "val", "test"]
    assert [line[:16] for line in said] == ["1 ids of part 'v", "2 ids of part 't"]
    # another part can be asked for
    other = jarvis.read_benchmark(path, jarvis.Task.parse(NAME.replace("-test-", "-val-")))
    assert set(other["val"]) == set(doubled["val"]) and both[0] not in other["test"]


def test_the_split_of_a_benchmark_is_imported(tmp_path: Path, benchmark_file: Path, ids: dict[str, list[str]]) -> None:
    folder = tmp_path / "set"
    build_linear(folder, count=60)
    parts = jarvis.read_benchmark(benchmark_file, TASK)
    smaller = {**parts, "train": dict(list(parts["train"].items())[2:])}
    jarvis.import_split(folder, "jarvis", smaller, TASK)
    split = Dataset(folder).manifest.splits["jarvis"]
    assert split.ids["test"] == ids["test"] and split.ids["val"] == ids["val"]
    assert len(split.ids["unassigned"]) == 2 and split.parameters == {"task": NAME}
    assert sum(map(len, split.ids.values())) == 60
    with pytest.raises(DataError, match="1 ids of the benchmark"):
        jarvis.import_split(folder, "other", {**parts, "test": {**parts["test"], "JVASP-1": 0.0}}, TASK)


@pytest.fixture
def folds(tmp_path: Path, ids: dict[str, list[str]]) -> Path:
    splits = {f"fold_{i}": {"train": [], "test": part} for i, part in enumerate(np.array_split(ids["test"], 5))}
    tables = {
        name: {k: {p: list(v) for p, v in f.items()} for k, f in splits.items()}
        for name in ("matbench_dielectric", "matbench_glass")
    }
    path = tmp_path / "matbench_v0.1_validation.json"
    path.write_text(json.dumps({"splits": tables, "metadata": {}}))
    return path


def recorded(path: Path, task: str, values: dict[str, float], truth: dict[str, float]) -> dict[str, Any]:
    ids = matbench.read_folds(path, task)
    chosen = {fold: {name: values[name] for name in names} for fold, names in ids.items()}
    known = {fold: {name: truth[name] for name in names} for fold, names in ids.items()}
    return matbench.record(task, chosen, known, parameters={}, metadata={"algorithm": "x", "list": [{"b": 1, "a": 2}]})


def test_a_matbench_record_follows_the_packages_own_rules(
    tmp_path: Path, folds: Path, predictions: dict[str, float], targets: dict[str, float]
) -> None:
    task = "matbench_dielectric"
    tables = recorded(folds, task, predictions, targets)
    matbench.write_submission(tmp_path / "ours", tables, INFO)
    read = json.loads(gzip.decompress((tmp_path / "ours" / "results.json.gz").read_bytes()))
    # the keys that MatbenchBenchmark.from_dict and MatbenchTask.from_dict want, and no others
    assert set(read) == {
        "@module",
        "@class",
        "version",
        "benchmark_name",
        "tasks",
        "user_metadata",
        "datestamp",
        "hash",
    }
    assert set(read["tasks"][task]) == {"@module", "@class", "dataset_name", "results", "benchmark_name"}

    def immutified(d: dict[str, Any]) -> dict[str, Any]:
        """Order the keys as matbench does: of dicts in dicts, not of dicts in lists."""
        return dict(sorted((k, immutified(v) if isinstance(v, dict) else v) for k, v in d.items()))

    rest = {key: value for key, value in read.items() if key != "hash"}
    assert hashlib.sha256(json.dumps(immutified(rest)).encode()).hexdigest() == read["hash"]
    scores = matbench.validate_submission(tmp_path / "ours", task, matbench.read_folds(folds, task))
    per_fold = [
        mean_absolute_error({n: predictions[n] for n in names}, targets)
        for names in matbench.read_folds(folds, task).values()
    ]
    assert scores["mae"] == pytest.approx(np.mean(per_fold)) and set(scores) == {"mae", "rmse", "mape", "max_error"}


def test_a_matbench_record_that_was_changed_or_is_incomplete_is_refused(
    tmp_path: Path, folds: Path, predictions: dict[str, float], targets: dict[str, float]
) -> None:
    task = "matbench_dielectric"
    ids = matbench.read_folds(folds, task)

    def refused(change: Any, message: str, *, seal: bool = True) -> None:
        tables = recorded(folds, task, predictions, targets)
        change(tables["tasks"][task]["results"])
        tables["hash"] = matbench.digest(tables) if seal else tables["hash"]
        matbench.write_submission(tmp_path / "bad", tables, INFO)
        with pytest.raises(DataError, match=message):
            matbench.validate_submission(tmp_path / "bad", task, ids)

    first = ids["fold_0"][0]
    refused(lambda r: r["fold_0"]["data"].update({first: 0.0}), "the hash", seal=False)
    refused(lambda r: r.pop("fold_4"), "has the folds")
    refused(lambda r: r["fold_0"]["data"].pop(first), "1 ids are not in the file")
    refused(lambda r: r["fold_0"]["data"].update({first: 1}), "is no float")
    refused(lambda r: r["fold_0"]["scores"].pop("mape"), "has the scores")
    refused(lambda r: r["fold_0"].pop("parameters"), "has the keys")
    with pytest.raises(ConfigError, match="lack"):
        matbench.write_submission(tmp_path / "bad", recorded(folds, task, predictions, targets), {"authors": "x"})


def test_classes_are_booleans_and_relative_errors_leave_out_what_is_zero(
    tmp_path: Path, folds: Path, targets: dict[str, float]
) -> None:
    truth = {name: float(value > 0) for name, value in targets.items()}
    guess = {name: float(i % 3 > 0) for i, name in enumerate(truth)}
    matbench.write_submission(tmp_path, recorded(folds, "matbench_glass", guess, truth), INFO)
    scores = matbench.validate_submission(tmp_path, "matbench_glass", matbench.read_folds(folds, "matbench_glass"))
    assert set(scores) == {"accuracy", "balanced_accuracy", "f1", "rocauc"}
    assert matbench.score("matbench_dielectric", [0.0, 2.0], [1.0, 1.0])["mape"] == 0.5


def test_a_matbench_discovery_submission_has_the_documented_names_columns_and_keys(
    tmp_path: Path, predictions: dict[str, float], targets: dict[str, float]
) -> None:
    path, described = discovery.write_submission(tmp_path, "matloom", predictions, CARD, parameters=123)
    assert described == tmp_path / "models" / "matloom" / "matloom-1.0.yml"
    assert path.parent == described.with_suffix("").parent / "matloom-1.0" and path.name.endswith("-discovery.csv.gz")
    frame = pd.read_csv(path, float_precision="round_trip")
    assert list(frame.columns) == ["material_id", "e_form_per_atom"]
    assert dict(zip(frame.material_id, frame.e_form_per_atom, strict=True)) == predictions
    card = yaml.safe_load(described.read_text())
    assert set(card) >= SCHEMA_REQUIRED and card["model_params"] == 123
    jsonschema.validate(card, SCHEMA)
    more = {"notes": {"how_trained": "x"}, "n_estimators": 5, "docs": "https://example.org", "lifecycle": "superseded",
            "superseded_by": "matloom-2.0", "fine_tune": True, "trained_by": [{"name": "C. Heddle"}]}  # fmt: skip
    _, other = discovery.write_submission(tmp_path / "more", "matloom", predictions, {**CARD, **more}, parameters=1)
    jsonschema.validate(yaml.safe_load(other.read_text()), SCHEMA)
    # the schema can refuse
    with pytest.raises(jsonschema.ValidationError, match="paper"):
        jsonschema.validate({key: value for key, value in card.items() if key != "paper"}, SCHEMA)
    assert card["metrics"]["discovery"]["pred_file"] == {"name": str(path.relative_to(tmp_path))}
    assert card["authors"][1] == {"name": "B. Loom"} and card["dates"]["paper_published"] is None
    mae = discovery.validate_submission(described, list(targets), targets)
    assert mae == pytest.approx(np.mean([abs(predictions[n] - targets[n]) for n in targets]))


def test_a_matbench_discovery_submission_that_does_not_fit_is_refused(
    tmp_path: Path, predictions: dict[str, float], targets: dict[str, float]
) -> None:
    changes = (
        ({"model_key": "Not_A_Slug"}, "model_key"), ({"openness": "open"}, "openness"), ({"colour": "red"}, "colour"),
        ({"authors": [{"name": "nobody"}]}, "email"), ({"repo": "ftp://x"}, "repo"), ({"test_task": None}, "test_task"),
        ({"lifecycle": "superseded"}, "superseded_by"), ({"notes": {"How": "x"}}, "notes"),
        ({"n_estimators": 1}, "n_estimators"),
        ({"training_sets": ["MP 2022", "MP 2022"]}, "twice"),
        ({"authors": [{"name": "A. Weaver", "email": "nowhere"}]}, "email"),
    )  # fmt: skip
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            discovery.write_submission(tmp_path, "matloom", predictions, {**CARD, **change}, parameters=1)
    with pytest.raises(ConfigError, match="family"):
        discovery.write_submission(tmp_path, "Mat Loom", predictions, CARD, parameters=1)
    short = dict(list(predictions.items())[1:])
    _, described = discovery.write_submission(tmp_path, "matloom", short, CARD, parameters=1)
    with pytest.raises(DataError, match="1 ids are not in the file"):
        discovery.validate_submission(described, list(targets), targets)
