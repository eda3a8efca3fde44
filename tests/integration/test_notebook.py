"""The notebook of the docs: from a folder of CIFs and a CSV of labels to a registered predictor."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from finetune.loading import PropertyModel, load
from shards.sources.embedded import EmbeddedSource
from tests.integration.spine import ROOT, Spine

NOTEBOOK = ROOT / "docs" / "examples" / "cifs_to_predictor.ipynb"
MATERIALS = 120


@pytest.fixture(scope="module")
def user(spine: Spine) -> Path:
    """What a user has: CIFs and labels, in the folder of the registry."""
    source = EmbeddedSource(name="dft_crystals")
    (spine.folder / "cifs").mkdir()
    rows = []
    for item in source.items():
        record = source.read(item)
        energy = record.labels.get("formation_energy_ev_per_atom")
        if energy is None or (len(rows) >= MATERIALS and record.id != "GaN_wurtzite"):
            continue
        assert record.structure is not None
        record.structure.to(filename=str(spine.folder / "cifs" / f"{record.id}.cif"))
        rows.append((record.id, energy))
    with (spine.folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "formation_energy"), *rows])
    return spine.folder


def test_the_notebook_has_under_40_lines_of_code() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert sum(len([line for line in "".join(cell["source"]).splitlines() if line.strip()]) for cell in cells) < 40
    assert not any(cell["outputs"] for cell in cells)


def test_the_notebook_runs(spine: Spine, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(NOTEBOOK, user)
    spine.run(sys.executable, "-m", "pytest", "-q", "--rootdir", user, "-p", "no:cacheprovider", "--nbmake",
              "--nbmake-timeout", 250, user / NOTEBOOK.name)  # fmt: skip
    monkeypatch.chdir(user)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{user}/mlflow.db")
    model = load("models:/mine@champion")
    assert isinstance(model, PropertyModel)
    prediction = model.predict("cifs/GaN_wurtzite.cif")
    assert prediction.unit == "eV/atom" and prediction.lower < float(prediction) < prediction.upper
    assert (user / "evaluation" / "report" / "report.html").is_file()
