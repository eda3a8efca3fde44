"""Matbench v0.1: the record of a benchmark, one prediction for each test sample of each of its folds.

The record is ``results.json.gz``, what ``MatbenchBenchmark.as_dict`` of the package matbench gives; with ``info.json``
it is a submission (https://matbench.materialsproject.org; Dunn et al., npj Comput. Mater. 6, 138 (2020)).
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from finetune.leaderboards.entries import Values, check_entries, write_gzip
from shards.errors import ConfigError, DataError, suggest

BENCHMARK, VERSION = "matbench_v0.1", "0.6"
RESULTS, INFO = "results.json.gz", "info.json"
INFO_KEYS = ("authors", "algorithm", "algorithm_long", "bibtex_refs", "notes", "requirements")
METRICS = {
    "regression": ("mae", "rmse", "mape", "max_error"),
    "classification": ("accuracy", "balanced_accuracy", "f1", "rocauc"),
}
# matbench leaves targets of a smaller magnitude out of the relative error
SMALLEST = 1e-5
# tasks whose target is a class
CLASSES = ("matbench_expt_is_metal", "matbench_glass", "matbench_mp_is_metal")


def task_type(task: str) -> str:
    """Return ``regression`` or ``classification``."""
    return "classification" if task in CLASSES else "regression"


def read_folds(path: Path, task: str) -> dict[str, list[str]]:
    """Return the test ids of each fold from ``matbench_v0.1_validation.json`` of the package matbench."""
    try:
        splits = json.loads(path.read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("these are no folds of Matbench", where=path, why=repr(error)) from None
    if task not in splits:
        raise ConfigError(f"there is no task '{task}'", where=path, why=suggest(task, splits))
    return {fold: list(parts["test"]) for fold, parts in splits[task].items()}


def score(task: str, truth: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return matbench's metrics of one fold."""
    from sklearn import metrics

    y, p = np.asarray(truth, float), np.asarray(predicted, float)
    if task_type(task) == "classification":
        found = {
            "accuracy": metrics.accuracy_score(y, p),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, p),
            "f1": metrics.f1_score(y, p),
            "rocauc": metrics.roc_auc_score(y, p),
        }
    else:
        large = np.abs(y) > SMALLEST
        found = {
            "mae": metrics.mean_absolute_error(y, p),
            "rmse": metrics.root_mean_squared_error(y, p),
            "mape": np.mean(np.abs((y - p)[large] / y[large])),
            "max_error": metrics.max_error(y, p),
        }
    return {name: float(value) for name, value in found.items()}


def record(
    task: str,
    predictions: Mapping[str, Values],
    targets: Mapping[str, Values],
    *,
    parameters: Mapping[str, Mapping[str, Any]],
    metadata: Mapping[str, Any],
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the record of one task.

    Parameters
    ----------
    task : str
        ``matbench_dielectric``.
    predictions, targets : mapping of str to mapping
        Fold (``fold_0``) to values by id; of a class 0 or 1. Matbench takes probabilities too, but its own scores, the
        area under the ROC curve among them, are those of the classes.
    parameters : mapping of str to mapping
        Fold to what is worth telling of its model.
    metadata : mapping
        Of the algorithm.
    now : datetime, optional
        The datestamp.
    """
    kind: type = bool if task_type(task) == "classification" else float
    results = {
        fold: {
            "data": {name: kind(value) for name, value in values.items()},
            "parameters": dict(parameters.get(fold, {})),
            "scores": score(task, [targets[fold][name] for name in values], list(values.values())),
        }
        for fold, values in predictions.items()
    }
    tables = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": VERSION,
        "tasks": {
            task: {
                "@module": "matbench.task",
                "@class": "MatbenchTask",
                "benchmark_name": BENCHMARK,
                "dataset_name": task,
                "results": results,
            }
        },
        "user_metadata": dict(metadata),
        "benchmark_name": BENCHMARK,
        "datestamp": (now or datetime.now(UTC)).strftime("%Y.%m.%d %H:%M.%S"),
    }
    # keys in order within lists too, where matbench leaves them as they are when it makes the hash
    ordered = json.loads(json.dumps(tables, sort_keys=True))
    return {**ordered, "hash": digest(ordered)}


def digest(tables: Mapping[str, Any]) -> str:
    """Return the hash that matbench compares: sha256 of the JSON with keys in order, without the hash itself."""
    rest = {key: value for key, value in tables.items() if key != "hash"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_submission(folder: Path, tables: Mapping[str, Any], info: Mapping[str, Any]) -> Path:
    """Write ``results.json.gz`` and ``info.json``; return the first."""
    lacking = [key for key in INFO_KEYS if key not in info]
    if lacking:
        raise ConfigError(f"the metadata lack {lacking}", do="give them by --metadata FILE.toml")
    write_gzip(folder / RESULTS, json.dumps(tables))
    (folder / INFO).write_text(json.dumps({key: info[key] for key in INFO_KEYS}, indent=2) + "\n")
    return folder / RESULTS


def validate_submission(folder: Path, task: str, folds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Read a submission back by matbench's own rules and return the mean of each metric over the folds.

    Raises
    ------
    DataError
        Where a fold or an id is missing or extra, a value or score is of the wrong type, or the hash differs.
    """
    path = folder / RESULTS
    try:
        tables = json.loads(gzip.decompress(path.read_bytes()))
        info = json.loads((folder / INFO).read_text())
        stored, results = tables["hash"], tables["tasks"][task]["results"]
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError("this is no record of the task", where=path, why=repr(error)) from None
    if stored != digest(tables):
        raise DataError("the hash is not that of the record", where=path, why="it was changed after it was written")
    if set(info) < set(INFO_KEYS):
        raise DataError(f"info.json lacks {sorted(set(INFO_KEYS) - set(info))}", where=folder)
    if set(results) != set(folds):
        raise DataError(f"the record has the folds {sorted(results)}, not {sorted(folds)}", where=path)
    kind: type = bool if task_type(task) == "classification" else float
    for fold, ids in folds.items():
        found = results[fold]
        if set(found) != {"data", "parameters", "scores"}:
            raise DataError(f"'{fold}' has the keys {sorted(found)}", where=path)
        if not all(type(value) is kind for value in found["data"].values()):
            raise DataError(f"a prediction of '{fold}' is no {kind.__name__}", where=path)
        if set(found["scores"]) != set(METRICS[task_type(task)]):
            raise DataError(f"'{fold}' has the scores {sorted(found['scores'])}", where=path)
        check_entries(found["data"], ids, where=path)
    return {
        name: float(np.mean([results[fold]["scores"][name] for fold in folds])) for name in METRICS[task_type(task)]
    }
