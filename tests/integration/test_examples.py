"""What the README and the docs show is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pretrain.export import read_export
from tests.distributed.ranks import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]


def run_example(name: str, folder: Path) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    command = [sys.executable, str(ROOT / "docs" / "examples" / name), str(folder)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_adding_a_modality_takes_under_50_lines_and_trains(tmp_path: Path) -> None:
    assert len((ROOT / "docs" / "examples" / "add_modality.py").read_text().splitlines()) < 50
    run_example("add_modality.py", tmp_path)
    export = read_export(tmp_path / "run" / "best")
    assert list(export.specs) == ["crystal", "dos", "composition"]
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]


def test_bringing_your_own_data(tmp_path: Path) -> None:
    run_example("own_data.py", tmp_path)
    from shards.reader import Dataset

    dataset = Dataset(tmp_path / "shards")
    assert len(dataset) == 12 and dataset.manifest.labels["band_gap_ev"].count == 6
    assert dataset.manifest.coverage == {"crystal": 12, "xrd": 12, "text": 8}


def test_adding_a_source(tmp_path: Path) -> None:
    run_example("add_source.py", tmp_path)
    from shards.reader import Dataset

    manifest = Dataset(tmp_path / "shards").manifest
    assert manifest.samples == 4 and list(manifest.quarantined) == ["salt-4"]
    assert manifest.source["kind"] == "rock_salts"
