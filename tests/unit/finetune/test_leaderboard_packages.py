"""Leaderboard files through the leaderboards' own packages, where these are installed.

``pip install matbench jarvis-leaderboard`` in an environment of its own: neither is needed by the project.
"""

from __future__ import annotations

import copy
import gzip
from pathlib import Path

import numpy as np
import pytest

from finetune.leaderboards import jarvis, matbench


@pytest.mark.parametrize("task", ["matbench_dielectric", "matbench_steels", "matbench_glass", "matbench_expt_is_metal"])
def test_matbench_reads_and_validates_a_record(tmp_path: Path, task: str) -> None:
    package = pytest.importorskip("matbench")
    from matbench.bench import MatbenchBenchmark
    from matbench.data_ops import score_array
    from matbench.util import hash_dictionary

    folds = matbench.read_folds(Path(package.__file__).parent / "matbench_v0.1_validation.json", task)
    rng, kind = np.random.default_rng(0), matbench.task_type(task)
    as_type = bool if kind == "classification" else float

    def drawn() -> dict[str, dict[str, float]]:
        return {fold: {name: float(as_type(rng.normal() > 0)) for name in ids} for fold, ids in folds.items()}

    truth, guess = drawn(), drawn()
    tables = matbench.record(
        task,
        guess,
        truth,
        parameters={fold: {"model": "m", "modalities": ["b", "a"]} for fold in folds},
        metadata={"algorithm": "x", "list": [{"b": 1, "a": 2}]},
    )
    path = matbench.write_submission(tmp_path, tables, dict.fromkeys(matbench.INFO_KEYS, ""))
    plain = tmp_path / "results.json"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    found = MatbenchBenchmark.from_file(plain)
    assert found.is_valid and found.is_recorded and not found.validate()
    for fold, values in guess.items():
        theirs = score_array([as_type(v) for v in truth[fold].values()], [as_type(v) for v in values.values()], kind)
        assert tables["tasks"][task]["results"][fold]["scores"] == pytest.approx(theirs)
    # it can refuse: one prediction less, sealed anew
    short = copy.deepcopy(tables)
    short["tasks"][task]["results"]["fold_0"]["data"].pop(folds["fold_0"][0])
    del short["hash"]
    short["hash"] = hash_dictionary(short)
    with pytest.raises(ValueError, match="required indices"):
        MatbenchBenchmark.from_dict(short)


@pytest.mark.parametrize("quantity", ["formation_energy_peratom", "optb88vdw_bandgap"])
def test_the_jarvis_leaderboard_scores_a_contribution(tmp_path: Path, quantity: str) -> None:
    package = pytest.importorskip("jarvis_leaderboard")
    from jarvis_leaderboard import rebuild

    name = f"AI-SinglePropertyPrediction-{quantity}-dft_3d-test-mae"
    task, folder = jarvis.Task.parse(name), Path(package.__file__).parent / "benchmarks"
    parts = jarvis.read_benchmark(folder / task.category / task.sub / f"{task.benchmark}.zip", task)
    rng = np.random.default_rng(0)
    predictions = {id: value + float(rng.normal()) for id, value in parts["test"].items()}
    metadata = dict.fromkeys(jarvis.REQUIRED, "x@y.org")
    path = jarvis.write_contribution(tmp_path / "contributions" / "ours", task, predictions, metadata)
    found = rebuild.get_metric_value(csv_path=str(path))
    assert not rebuild.errors and found["num_entries"] == len(predictions) > 5000
    assert found["res"] == round(jarvis.validate_contribution(path.parent, task, parts), 4)
