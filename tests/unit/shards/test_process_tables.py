"""Electrospun nanofibres as a laboratory keeps them: pictures, a process table, tests that were not all done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build import build
from shards.features import feature
from shards.reader import Dataset
from shards.sources import source
from shards.sources.join import JoinedSource
from shards.splits.plan import SplitPlan

SPECIMENS, DIRECTIONS = 12, ("along", "across")


@pytest.fixture
def laboratory(tmp_path: Path) -> Path:
    """Twelve mats, each spun once, photographed two or three times, and pulled in two directions, where it held."""
    rng = np.random.default_rng(0)
    (tmp_path / "sem").mkdir()
    process = ["id,mat,Voltage (kV),Flow rate (mL/h),PVA (wt%),Humidity [%],Solvent,micrographs"]
    tests = ["test,Strength (MPa),Strain (%)"]
    for mat in range(SPECIMENS):
        names = [f"m{mat}_{shot}.png" for shot in range(2 + mat % 2)]
        for name in names:
            Image.fromarray(rng.integers(0, 255, (90, 96), dtype=np.uint8)).save(tmp_path / "sem" / name)
        solvent = ("water", "DMF", "")[mat % 3]
        humidity = "" if mat == 5 else 30 + mat
        spun = f"m{mat},{10 + mat},{0.1 * mat:.1f},{8 + mat % 3},{humidity},{solvent},{';'.join(names)}"
        for direction in DIRECTIONS:
            strength = "-" if (mat, direction) == (7, "across") else 5 + mat
            process.append(f"m{mat}-{direction},{spun}")
            tests.append(f"m{mat}-{direction},{strength},{'' if mat % 4 == 3 else 20 + mat}")
    (tmp_path / "process.csv").write_text("\n".join(process))
    (tmp_path / "tests.csv").write_text("\n".join(tests))
    return tmp_path


def joined(laboratory: Path) -> JoinedSource:
    process = source(
        {
            "kind": "table",
            "path": laboratory / "process.csv",
            "id": "id",
            "group": "mat",
            "columns": {
                "voltage_kv": "Voltage (kV)",
                "flow_rate_ul_per_min": "Flow rate (mL/h)",
                "polymer_mass_fraction": "PVA (wt%)",
                "humidity_pct": "Humidity [%]",
                "solvent": "Solvent",
            },
            "units": {"flow_rate_ul_per_min": "mL/h", "polymer_mass_fraction": "wt%"},
            "images": {"column": "micrographs", "folder": "sem"},
        }
    )
    tests = {
        "kind": "table",
        "path": laboratory / "tests.csv",
        "id": "test",
        "labels": {"strength_mpa": "Strength (MPa)", "strain_pct": "Strain (%)"},
    }
    return JoinedSource(source=process, table=source(tests))  # type: ignore[arg-type]


def test_nanofibres_become_a_data_set(laboratory: Path, tmp_path: Path) -> None:
    records = joined(laboratory)
    steps = {
        "sem": feature({"step": "image", "size": 64, "fit": "resize", "crop_bottom": 0.1}),
        "process": feature({"step": "table"}),
    }
    fitted = {name: step.fitted(records) for name, step in steps.items()}
    made = {}
    for workers in (1, 2):
        out = tmp_path / f"fibres-{workers}"
        splits = {"mats": SplitPlan(by="group")}
        manifest = build(records, fitted, out, name="fibres", splits=splits, workers=workers, shard_samples=8)
        made[workers] = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".tar"}
    assert made[1] == made[2] and len(made[1]) == 3
    assert manifest.samples == 2 * SPECIMENS and not manifest.quarantined
    assert manifest.labels["strength_mpa"].count == 2 * SPECIMENS - 1 and manifest.labels["strain_pct"].count == 18
    part = {id: name for name, ids in manifest.splits["mats"].ids.items() for id in ids}
    assert all(part[f"m{mat}-along"] == part[f"m{mat}-across"] for mat in range(SPECIMENS))
    assert manifest.modalities["process"].feature["categorical"] == {"solvent": ["DMF", "water"]}

    samples = {sample.id: sample for sample in Dataset(tmp_path / "fibres-2")}
    along, across = samples["m0-along"], samples["m7-across"]
    assert along.arrays["sem"]["pixels"].shape == (2, 1, 64, 64) and along.arrays["process"]["categories"].tolist() == [
        2
    ]
    first = Image.open(laboratory / "sem" / "m0_0.png").crop((0, 0, 96, 81)).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(along.arrays["sem"]["pixels"][0, 0], np.asarray(first))
    assert across.arrays["sem"]["pixels"].shape == (3, 1, 64, 64) and across.group == "m7"
    assert across.labels == {} and samples["m7-along"].labels == {"strength_mpa": 12.0}
    process = samples["m5-along"].arrays["process"]
    np.testing.assert_allclose(process["numeric"], [15.0, 0.5 * 1000 / 60, 0.10, 0.0], rtol=1e-6)
    assert process["known"].tolist() == [1, 1, 1, 0] and process["categories"].tolist() == [0]
