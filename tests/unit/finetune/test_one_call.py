"""One call of one stored model takes every form of a material, and says value, unit, uncertainty and importance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from finetune.adapt.base import ADAPTATIONS
from finetune.calibration import Calibration
from finetune.heads.base import HEADS
from finetune.loading import PropertyModel, load
from finetune.predicted import Predicted, Predictions
from finetune.predictor import PredictorInfo, build_predictor, write_predictor
from pretrain.config import parse_recipe
from pretrain.export import read_export
from shards.build import SplitPlan, build
from shards.features import feature
from shards.reader import Dataset
from shards.sources.base import RawDos, Record
from tests.random_models import write_model

ENERGY = np.linspace(-2.5, 2.5, 101)
TARGETS = ("band_gap_ev", "bulk_modulus_gpa")
FEATURES: dict[str, dict[str, Any]] = {
    "crystal": {"step": "crystal", "potentials": False},
    "dos": {"step": "dos", "start": -2.0, "stop": 2.0, "points": 40, "min_coverage": 0.0, "scale": "absolute"},
    "text": {"step": "text"},
    "smiles": {"step": "smiles"},
    "micrograph": {"step": "image", "size": 32},
    "process": {"step": "table", "columns": ["voltage_kv"], "categorical": {"solvent": ["DMF", "water"]}},
    "descriptors": {"step": "vector", "array": "descriptors", "length": 3},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "crystal": {"kind": "composition"},
    "dos": {"kind": "spectrum_cnn"},
    "text": {"kind": "text"},
    "smiles": {"kind": "smiles_transformer"},
    "micrograph": {"kind": "image"},
    "process": {"kind": "table_mlp"},
    "descriptors": {"kind": "vector"},
}


def salt(edge: float = 5.64) -> Structure:
    return Structure(edge / 2 * (np.ones((3, 3)) - np.eye(3)), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    return Record(
        id=f"m{number}",
        structure=salt(5.6 + 0.01 * number),
        dos=RawDos(energy_ev=ENERGY, states_per_ev=np.exp(-((ENERGY - 0.05 * number) ** 2))),
        text=f"salt number {number}",
        smiles="C" * (number + 1) + "O",
        images=(rng.integers(256, size=(16, 16), dtype=np.uint8),),
        columns={"voltage_kv": float(number), "solvent": ("DMF", "water")[number % 2]},
        arrays={"descriptors": rng.normal(size=3)},
        labels={"band_gap_ev": 5 + rng.normal(), "bulk_modulus_gpa": 25 + rng.normal()},
        tags={"chemical_system": f"X{number}"},
    )


def records() -> Iterator[Record]:
    return map(record, range(20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PropertyModel:
    """A stored predictor of two properties over seven modalities: untrained, calibrated, joined by gates."""
    folder = tmp_path_factory.mktemp("one_call")
    steps = {name: feature(table) for name, table in FEATURES.items()}
    splits = {"chemical_system": SplitPlan(by="chemical_system", fractions={"train": 0.6, "val": 0.2, "test": 0.2})}
    build(records(), steps, folder / "shards", name="all", splits=splits)
    dataset = Dataset(folder / "shards")
    recipe = parse_recipe(
        {
            "name": "all",
            "data": {"path": str(folder / "shards"), "batch_size": 8},
            "modalities": {name: {"encoder": table} for name, table in ENCODERS.items()},
            "projection": {"dim": 8},
            "objective": {"kind": "anchored", "anchor": "crystal"},
        },
        where="test",
    )
    export = read_export(
        write_model(folder / "export", recipe, dataset, data_name="all", data_contents=dataset.contents)
    )
    head = HEADS.options({"kind": "gaussian", "hidden": 8})
    join = {"kind": "gated", "form": "attention", "dim": 16}
    predictor = build_predictor(
        export, tuple(FEATURES), head, TARGETS, adaptation=ADAPTATIONS.options({"kind": "frozen"}), fusion=join,
        pretrained=True,
    ).eval()  # fmt: skip
    targets = torch.tensor([[sample.labels[name] for name in TARGETS] for sample in dataset])
    predictor.head.fit(targets)
    info = PredictorInfo(
        targets=TARGETS, task="regression", modalities=tuple(FEATURES), head=head.model_dump(mode="json"),
        foundation="none", foundation_seal="0", strategy="frozen", metrics={}, fusion=join,
    )  # fmt: skip
    write_predictor(folder / "plain", predictor, export, info)
    plain = load(str(folder / "plain"))
    assert isinstance(plain, PropertyModel)
    calibration = Calibration.fit(plain.estimate(list(dataset)), targets)
    info = replace(info, calibration=calibration.model_dump(mode="json"))
    write_predictor(folder / "predictor", predictor, export, info)
    found = load(str(folder / "predictor"))
    assert isinstance(found, PropertyModel)
    return found


def forms(folder: Path) -> list[tuple[str, Any, set[str]]]:
    """Name, material and the modalities that it has; what stands for one material follows it."""
    cif, poscar, picture, dos = folder / "a.cif", folder / "POSCAR", folder / "a.png", folder / "dos.csv"
    salt().to(str(cif), fmt="cif")
    salt().to(str(poscar), fmt="poscar")
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(pixels).save(picture)
    states = np.exp(-(ENERGY**2))
    dos.write_text(
        "energy_ev,states_per_ev_atom\n" + "".join(f"{e},{s}\n" for e, s in zip(ENERGY, states, strict=True))
    )
    row = {"voltage_kv": 12.0, "solvent": "water"}
    crystal, spectrum, image, table = {"crystal"}, {"dos"}, {"micrograph"}, {"process"}
    return [
        ("pymatgen", salt(), crystal),
        ("ase", AseAtomsAdaptor.get_atoms(salt()), crystal),
        ("cif path", cif, crystal),
        ("cif text", cif.read_text(), crystal),
        ("poscar path", str(poscar), crystal),
        ("poscar text", poscar.read_text(), crystal),
        ("dict", salt().as_dict(), crystal),
        ("smiles", "CCO", {"smiles"}),
        ("smiles by name", {"smiles": "CCO"}, {"smiles"}),
        ("dos array", np.stack([ENERGY, states]), spectrum),
        ("dos pair", (ENERGY, states), spectrum),
        ("dos csv", dos, spectrum),
        ("image array", pixels, image),
        ("image", Image.fromarray(pixels), image),
        ("image path", picture, image),
        ("row", pd.Series(row), table),
        ("row by name", {"table": row}, table),
        ("as read", {"descriptors": [1.0, 2.0, 3.0]}, {"descriptors"}),
        ("description", {"text": "a salt"}, {"text"}),
        ("structure and dos", {"structure": salt(), "dos": (ENERGY, states)}, crystal | spectrum),
        (
            "everything",
            {"structure": cif, "dos": dos, "smiles": "CCO", "image": picture, "table": row, "text": "a salt",
             "arrays": {"descriptors": [1.0, 2.0, 3.0]}},
            set(FEATURES),
        ),
    ]  # fmt: skip


def test_every_form_is_predicted_by_one_call_in_order(model: PropertyModel, tmp_path: Path) -> None:
    given = forms(tmp_path)
    found = model.predict([material for _, material, _ in given], batch_size=4)
    assert isinstance(found, Predictions) and len(found) == len(given)
    first: dict[frozenset[str], float] = {}
    for (name, material, modalities), several in zip(given, found, strict=True):
        gap, modulus = (several[target] for target in TARGETS)
        assert (gap.unit, modulus.unit) == ("eV", "GPa"), name
        for value in (gap, modulus):
            assert value.std is not None and value.lower is not None and value.upper is not None
            assert value.std > 0 and value.lower < float(value) < value.upper, name
        # the fusion's shares are of what the material has, and of nothing else
        shares = {modality for modality, share in gap.importance.items() if share > 0}
        assert shares == modalities and sum(gap.importance.values()) == pytest.approx(1), name
        # alone as in company, and the same in every spelling
        alone = model.predict(material)
        assert isinstance(alone, dict) and isinstance(alone["band_gap_ev"], Predicted)
        assert float(alone["band_gap_ev"]) == pytest.approx(float(gap), abs=1e-5), name
        assert float(gap) == pytest.approx(first.setdefault(frozenset(modalities), float(gap)), abs=1e-4), name
    # each modality moves the prediction: what is told apart above is not one constant
    assert len({round(value, 4) for value in first.values()}) == len(first) == 9


def test_unknown_numbers_of_another_material_change_nothing(model: PropertyModel) -> None:
    """A row that holds NaN in a column says nothing there; the neighbours of a batch are as they are alone."""
    rows = [{"table": {"voltage_kv": value, "solvent": "water"}} for value in (1.0, float("nan"), 3.0)]
    found = model.predict(rows)
    assert isinstance(found, Predictions) and np.isfinite(found.values).all()
    np.testing.assert_allclose(found.values[[0, 2]], model.predict([rows[0], rows[2]]).values, atol=1e-6)
